"""Generation and scoring at the same time, by as many processes as work on one run.

The engine never waits for a verdict: what it drew is stored and offered to threads that score. What they have no room
for is read back from the disk when the engine is done, so that memory holds a short queue and no more.
"""

import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from queue import Empty, Full, Queue
from threading import Event, Thread
from types import TracebackType
from typing import Any, Self

from trl_opd.errors import UserError
from trl_opd.evals.benchmark import Problem
from trl_opd.evals.engines import Engine, Key, Request, Sampling
from trl_opd.evals.scorers import Scorer
from trl_opd.evals.store import RunStore, key_of

QUEUE_LENGTH = 256
"""Completions that wait in memory; the longest there are (32k tokens) make 32 MB."""

POLL_SECONDS = 0.2
"""How often a process looks whether others that it waits for are done."""


class ScoringThreads:
    """Threads that score completions and store the verdicts, until the `with` block ends.

    Args:
        store (`RunStore`): Where the verdicts go.
        scorer (`Scorer`): What judges; its own processes do the work, the threads wait for them.
        problems (`Mapping[str, Problem]`): The problems by id.
        workers (`int`): Number of threads.
    """

    def __init__(self, store: RunStore, scorer: Scorer, problems: Mapping[str, Problem], workers: int) -> None:
        self._store = store
        self._scorer = scorer
        self._problems = problems
        self._queue: Queue[tuple[int, dict[str, Any]] | None] = Queue(QUEUE_LENGTH + workers)
        self._stop = Event()
        self._failure: BaseException | None = None
        self._threads = [Thread(target=self._work, name=f"scorer-{i}", daemon=True) for i in range(workers)]
        for thread in self._threads:
            thread.start()

    def offer(self, writer: int, row: dict[str, Any]) -> None:
        """Have a completion scored, if there is room for it now.

        Raises:
            Exception: What stopped a thread.
        """
        self.check()
        try:
            self._queue.put_nowait((writer, row))
        except Full:
            return

    def score_rest(self, tick: Callable[[], None]) -> None:
        """Score all that this process holds, that belongs to the problems and that has no verdict yet.

        Args:
            tick (`Callable[[], None]`): Called now and then while it lasts.

        Raises:
            Exception: What stopped a thread.
        """
        self._wait(tick)
        for item in self._store.unscored():
            while item[1]["problem_id"] in self._problems:
                self.check()
                tick()
                try:
                    self._queue.put(item, timeout=POLL_SECONDS)
                    break
                except Full:
                    continue
        self._wait(tick)

    def check(self) -> None:
        """Stop where a thread had to stop.

        Raises:
            Exception: What stopped it.
        """
        if self._failure is not None:
            raise self._failure

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End the threads and the scorer; verdicts in the making are thrown away."""
        self._stop.set()
        with suppress(Empty):
            while True:
                self._queue.get_nowait()
        for _ in self._threads:
            self._queue.put(None)
        self._scorer.close()
        for thread in self._threads:
            thread.join()

    def _wait(self, tick: Callable[[], None]) -> None:
        while self._queue.unfinished_tasks:
            self.check()
            tick()
            time.sleep(0.01)
        self.check()

    def _work(self) -> None:
        while (item := self._queue.get()) is not None:
            try:
                self._score(*item)
            except Exception as error:
                self._failure = error
                return
            self._queue.task_done()

    def _score(self, writer: int, row: dict[str, Any]) -> None:
        problem_id, index = key_of(row)
        try:
            verdict = self._scorer.score(row["completion"], self._problems[problem_id])
        except UserError:
            raise
        except Exception as error:
            raise RuntimeError(
                f"The scorer failed on sample {index} of {problem_id} ({type(error).__name__}: {error})."
            ) from error
        if not self._stop.is_set():  # what a scorer says that is being closed is no verdict
            self._store.add_verdict({"problem_id": problem_id, "index": index, **asdict(verdict)}, writer)


class Shares:
    """The batches that this process draws, each claimed when the engine asks for it and let go when it is stored.

    Args:
        store (`RunStore`): Knows what is drawn, and holds the claims.
        batches (`list[list[Request]]`): All batches of the run.
    """

    def __init__(self, store: RunStore, batches: list[list[Request]]) -> None:
        self._store = store
        self._batches = batches
        self._batch_of: dict[Key, int] = {}
        self._left: Counter[int] = Counter()

    def __iter__(self) -> Iterator[list[Request]]:
        for number, batch in enumerate(self._batches):
            if not self._missing(batch) or number in self._left or not self._store.claim(number):
                continue
            self._store.refresh()  # its last owner may have finished it, or died with a part of it stored
            missing = self._missing(batch)
            if not missing:
                self._store.release(number)
                continue
            self._left[number] = len(missing)
            self._batch_of |= dict.fromkeys(missing, number)
            yield batch

    @property
    def open(self) -> int:
        """Number of batches that were taken and are not stored."""
        return len(self._left)

    def stored(self, key: Key) -> None:
        """Note that a completion is stored."""
        number = self._batch_of.pop(key)
        self._left[number] -= 1
        if not self._left[number]:
            del self._left[number]
            self._store.release(number)

    def _missing(self, batch: list[Request]) -> list[Key]:
        return [request.key for request in batch if request.key not in self._store.drawn]


def fill(
    store: RunStore,
    engine: Engine,
    threads: ScoringThreads,
    requests: list[Request],
    sampling: Sampling | None,
    tick: Callable[[], None],
) -> None:
    """Draw and score all that is missing, together with the other processes that do so.

    It returns when the whole run is stored, whoever stored it. Where another process dies, its share is taken over.

    Args:
        tick (`Callable[[], None]`): Called after each completion, and while this process waits.

    Raises:
        Exception: What stopped the engine or a scorer.
    """
    batches = engine.batches(requests, sampling)
    while True:
        shares = Shares(store, batches)
        for generation in engine.generate(shares, sampling, store.drawn):
            row = asdict(generation)
            store.add_generation(row)
            shares.stored(generation.key)
            threads.offer(store.writer, row)
            tick()
        assert not shares.open, "the engine did not draw what was asked"
        threads.score_rest(tick)
        if len(store.scored) == len(requests):
            return
        store.refresh()
        store.adopt()
        tick()
        time.sleep(POLL_SECONDS)
