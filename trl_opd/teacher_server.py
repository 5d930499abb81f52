"""A teacher behind vLLM's OpenAI-compatible server: prompt log-probabilities of the student's very token ids.

One request per row (`POST /v1/completions` with token ids, `max_tokens: 1` and `prompt_logprobs: K`), many at a time,
each with a time limit and retries with back-off. A row whose request fails for good, or whose answer is not a finite
log-probability for every token, is reported as missing: nothing is filled in. TRL's `VLLMClient` speaks the same
protocol, but needs vLLM beside the trainer, sends many rows in a request that fails as one, and pads what is missing.

vLLM computes prompt log-probabilities from unscaled logits, whatever the request's temperature and the server's
`--logprobs-mode` (vLLM pull requests 37082 and 47680); the probe before the first step finds out what a server does.
"""

import math
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from threading import Event
from typing import Any

import requests
import torch
from requests.adapters import HTTPAdapter
from urllib3.util.retry import Retry

from trl_opd.errors import UserError
from trl_opd.scoring import Answer, Oracle, Reading

#: HTTP statuses that may pass: overloaded, starting, a worker that died. Others are the request's own fault.
PASSING = (408, 425, 429, 500, 502, 503, 504)

#: Seconds before the second attempt; each further one waits twice as long, up to the limit.
BACKOFF, LONGEST_BACKOFF = 0.5, 30.0

#: vLLM writes -9999 for a log-probability of minus infinity, as JSON has no infinity.
IMPOSSIBLE = -9000.0

#: Largest mean difference, in nats per token, between two readings of the same tokens by the same teacher. Kernels in
#: bfloat16 differ by about 0.01; another model, another tokenizer or another temperature by far more.
TOLERANCE = 0.05

#: Read by the server's tokenizer and by the student's: digits, spaces, accents, other scripts, an emoji.
PROBE_TEXT = "Solve 3x + 17 = 512.\n\n  \\boxed{165}  naïve Straße 数学 Δt→0 🙂 <|im_start|>"


class NoAnswer(Exception):
    """A request that was retried in vain, or whose answer cannot be used."""


class ServerGone(NoAnswer):
    """The server itself does not answer any more."""


@dataclass(frozen=True)
class Connection:
    """How to reach a server.

    Attributes:
        url: Its base address, e.g. http://teacher-host:8000.
        model: The served model's name; None for the only one.
        timeout: Seconds that one attempt may take.
        retries: Further attempts after the first.
        concurrency: Requests under way at a time.
    """

    url: str
    model: str | None
    timeout: float
    retries: int
    concurrency: int


class Client:
    """The requests that a teacher needs.

    Args:
        connection (`Connection`): How to reach the server.

    Raises:
        `UserError`: If the server is down, is no such server, or does not serve the model.
    """

    def __init__(self, connection: Connection):
        self.connection = connection
        self.url = connection.url.rstrip("/").removesuffix("/v1")
        self._session = requests.Session()
        retry = Retry(
            total=connection.retries,
            status_forcelist=PASSING,
            allowed_methods=None,  # scoring changes nothing, so that a POST may be repeated
            backoff_factor=BACKOFF,
            backoff_max=LONGEST_BACKOFF,
            raise_on_status=False,
        )
        for scheme in ("http://", "https://"):
            self._session.mount(scheme, HTTPAdapter(max_retries=retry, pool_maxsize=connection.concurrency))
        self.model, self.max_length = self._served()

    def tokenize(self, text: str) -> list[int]:
        """The server's token ids of a text, without special tokens of its own."""
        payload = {"model": self.model, "prompt": text, "add_special_tokens": False}
        return self._ask("POST", "/tokenize", payload)["tokens"]

    def prompt_logprobs(self, ids: list[int], temperature: float, top: int) -> list[dict[int, float] | None]:
        """For each token the log-probabilities of the `top` likeliest and of itself; None for the first token.

        Raises:
            `NoAnswer`: If the server refused, gave up, or answered about other tokens.
            `ServerGone`: If it cannot be reached any more.
        """
        payload = {
            "model": self.model,
            "prompt": ids,
            "max_tokens": 1,
            "prompt_logprobs": top,
            "temperature": temperature,
            "top_p": 1.0,
            "top_k": -1,
            "repetition_penalty": 1.0,
        }
        found = self._ask("POST", "/v1/completions", payload)["choices"][0]["prompt_logprobs"]
        scored = found[1:]
        if len(found) != len(ids) or any(str(token) not in entry for token, entry in zip(ids[1:], scored, strict=True)):
            raise NoAnswer("its answer is about other tokens than those that were sent")
        return [None, *({int(t): _number(values["logprob"]) for t, values in entry.items()} for entry in scored)]

    def is_up(self) -> bool:
        """Whether the server says that it is well, asked once."""
        try:
            return requests.get(f"{self.url}/health", timeout=self.connection.timeout).ok
        except requests.RequestException:
            return False

    def _served(self) -> tuple[str, int | None]:
        try:
            models = self._ask("GET", "/v1/models")["data"]
        except NoAnswer as error:
            raise UserError(
                f"The teacher server {self.url} does not answer as a vLLM server ({error}); start it, or mend "
                "teacher_server."
            ) from error
        wanted = self.connection.model
        chosen = [model for model in models if wanted in (None, model["id"])]
        if (wanted is None and len(models) > 1) or not chosen:
            raise UserError(
                f"The teacher server {self.url} serves {', '.join(model['id'] for model in models)}, and "
                f"teacher_server_model is {wanted!r}; set it to one of them."
            )
        longest = chosen[0].get("max_model_len")
        # One token is drawn after every prompt and needs room too.
        return chosen[0]["id"], None if longest is None else longest - 1

    def _ask(self, method: str, path: str, payload: dict[str, Any] | None = None) -> dict[str, Any]:
        try:
            response = self._session.request(method, f"{self.url}{path}", json=payload, timeout=self.connection.timeout)
        except requests.RequestException as error:
            kind = NoAnswer if path != "/v1/models" and self.is_up() else ServerGone
            raise kind(_reason(error)) from error
        if not response.ok:
            raise NoAnswer(f"status {response.status_code}: {' '.join(response.text.split())[:200]}")
        try:
            return response.json()
        except requests.JSONDecodeError as error:
            raise NoAnswer("its answer is no JSON") from error


def _number(value: float | None) -> float:
    return math.nan if value is None else float(value)


def _reason(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout) or "timed out" in str(error):
        return "no answer within the time limit"
    return "no connection" if isinstance(error, requests.ConnectionError) else type(error).__name__


class ServerTeacher(Oracle):
    """An external teacher behind a server.

    Args:
        client (`Client`): The connection.
        temperature (`float`): Of the teacher's distribution, as of the student's.
        support_size (`int`, *optional*): The likeliest tokens that are asked for; None for the sampled tokens alone.
    """

    def __init__(self, client: Client, temperature: float, support_size: int | None):
        self.client = client
        self.temperature = temperature
        self.support_size = support_size
        self.max_length = client.max_length
        self.name = f"The teacher server {client.url}"

    def answer(self, reading: Reading) -> Answer:
        shape, device = reading.completion_mask.shape, reading.completion_mask.device
        found = Answer(
            logps=torch.zeros(shape, device=device), missing=torch.zeros(shape[0], dtype=torch.bool, device=device)
        )
        if self.support_size is not None:
            found.support_ids = torch.zeros(*shape, self.support_size, dtype=torch.int32, device=device)
            found.support_logps = torch.zeros(*shape, self.support_size, device=device)
        sequences = []
        for row in reading.rows:
            completion = reading.completion_ids[row][reading.completion_mask[row].bool()].tolist()
            sequences.append((reading.prompts[row], completion))
        for row, scored in zip(reading.rows, self.score(sequences, reading.vocabulary), strict=True):
            if scored is None:
                found.missing[row] = True
                continue
            width = len(scored.logps)
            found.logps[row, :width] = torch.tensor(scored.logps, device=device)
            if self.support_size is not None:
                found.support_ids[row, :width] = torch.tensor(scored.support_ids, device=device)
                found.support_logps[row, :width] = torch.tensor(scored.support_logps, device=device)
            found.tokens += len(reading.prompts[row]) + width
        return found

    def score(self, sequences: list[tuple[list[int], list[int]]], vocabulary: int) -> Iterator["Scored | None"]:
        """The scores of (prompt, completion) pairs, in their order; None where there is no usable answer.

        Once the server is gone the pairs that were not asked about yet are given up at once.
        """
        gone = Event()

        def one(pair: tuple[list[int], list[int]]) -> Scored | None:
            if gone.is_set():
                return None
            try:
                return self._read(*pair, vocabulary)
            except ServerGone:
                gone.set()
            except NoAnswer:
                pass
            return None

        with ThreadPoolExecutor(self.client.connection.concurrency) as pool:
            yield from pool.map(one, sequences)

    def _read(self, prompt: list[int], completion: list[int], vocabulary: int) -> "Scored":
        ids = prompt + completion
        entries = self.client.prompt_logprobs(ids, self.temperature, self.support_size or 0)[len(prompt) :]
        return Scored.of(entries, completion, self.support_size or 0, vocabulary)


@dataclass(frozen=True)
class Scored:
    """What the server said about one completion of n tokens: `[n]`, `[n][K]` and `[n][K]`."""

    logps: list[float]
    support_ids: list[list[int]]
    support_logps: list[list[float]]

    @classmethod
    def of(cls, entries: list[dict[int, float]], completion: list[int], top: int, vocabulary: int) -> "Scored":
        """Sorted by rank and checked.

        Raises:
            `NoAnswer`: If a value is no log-probability, or a token is none of the student's.
        """
        likeliest = []
        for token, entry in zip(completion, entries, strict=True):
            if any(not IMPOSSIBLE < logp <= 1e-4 for logp in entry.values()):
                raise NoAnswer("a value is no finite log-probability")
            if max(entry) >= vocabulary:
                raise NoAnswer("a token is outside the student's vocabulary")
            # The sampled token comes on top of the likeliest where it is none of them.
            ranked = sorted(entry.items(), key=lambda item: -item[1])
            if len(ranked) == top + 1:
                ranked = [item for item in ranked if item[0] != token]
            if len(ranked) != top and top:
                raise NoAnswer(f"{len(ranked)} likeliest tokens were given in place of {top}")
            likeliest.append(ranked)
        return cls(
            logps=[entry[token] for token, entry in zip(completion, entries, strict=True)],
            support_ids=[[token for token, _ in ranked] for ranked in likeliest],
            support_logps=[[logp for _, logp in ranked] for ranked in likeliest],
        )


def check_tokenizer(client: Client, tokenizer) -> None:
    """Refuses a server that reads a text as other token ids than the student does.

    Raises:
        `UserError`: With the first token that differs.
    """
    text = PROBE_TEXT + " ".join(tokenizer.all_special_tokens)
    own = tokenizer(text, add_special_tokens=False)["input_ids"]
    try:
        theirs = client.tokenize(text)
    except NoAnswer as error:
        raise UserError(
            f"The teacher server {client.url} does not tokenize ({error}), so that its tokenizer cannot be compared "
            "with the student's; serve the teacher with vLLM's OpenAI-compatible server."
        ) from error
    if own != theirs:
        at = next((i for i, (a, b) in enumerate(zip(own, theirs, strict=False)) if a != b), min(len(own), len(theirs)))
        raise UserError(
            f"The teacher server {client.url} has another tokenizer than the student (token {at} of a probe text is "
            f"{theirs[at : at + 1]} there and {own[at : at + 1]} here): it cannot score the student's token ids; serve "
            "a teacher of the same tokenizer."
        )


def probe(teacher: ServerTeacher, sequences: list[list[int]], vocabulary: int, local=None) -> dict[str, float]:
    """Scores a few token sequences before the first step, and refuses a server whose numbers cannot be trained on.

    Args:
        teacher (`ServerTeacher`): The teacher.
        sequences (`list[list[int]]`): Token ids, at least 2 each; all but the first are scored.
        vocabulary (`int`): Rows of the student's head.
        local (`Callable`, *optional*): Log-probabilities of the same tokens by a copy of the teacher that is here.

    Returns:
        `dict`: Mean differences in nats per token: "again" between two readings, "local" from the copy.

    Raises:
        `UserError`: If scores are missing, not those of the temperature, not repeatable, or not the copy's.
    """
    first, second = (_logps(teacher, sequences, vocabulary) for _ in range(2))
    found = {"again": _mean_difference(first, second)}
    if not found["again"] <= TOLERANCE:
        raise UserError(
            f"The teacher server {teacher.client.url} scores the same tokens differently each time (by "
            f"{found['again']:.3f} nats per token); serve it without sampling penalties or a changing adapter."
        )
    _check_temperature(teacher, sequences[0])
    if local is not None:
        found["local"] = _mean_difference(first, local(sequences))
        if not found["local"] <= TOLERANCE:
            raise UserError(
                f"The teacher server {teacher.client.url} and the copy in teacher_model_name_or_path differ by "
                f"{found['local']:.3f} nats per token, more than {TOLERANCE}: they are not the same model; name the "
                "model that is served, or none."
            )
    return found


def _logps(teacher: ServerTeacher, sequences: list[list[int]], vocabulary: int) -> list[list[float]]:
    found = []
    for ids in sequences:
        try:
            found.append(teacher._read(ids[:1], ids[1:], vocabulary).logps)
        except NoAnswer as error:
            raise UserError(
                f"The teacher server {teacher.client.url} did not score a probe of {len(ids)} tokens ({error}); start "
                f"vLLM's server with --max-logprobs {max(teacher.support_size or 0, 2)} or more, and see its log."
            ) from error
    return found


def _check_temperature(teacher: ServerTeacher, ids: list[int]) -> None:
    """At temperature t the likeliest tokens are 1/t as far apart, in nats, as at 1."""
    if teacher.temperature == 1.0:
        return
    plain, scaled = (teacher.client.prompt_logprobs(ids, t, 2)[1:] for t in (1.0, teacher.temperature))
    gaps = []
    for entry, other in zip(plain, scaled, strict=True):
        a, b = sorted(entry, key=lambda token: -entry[token])[:2]
        if a in other and b in other:
            gaps.append(((entry[a] - entry[b]) / teacher.temperature, other[a] - other[b]))
    difference = sum(abs(wanted - got) for wanted, got in gaps) / max(len(gaps), 1)
    size = sum(wanted for wanted, _ in gaps) / max(len(gaps), 1)
    if not gaps or difference > 0.01 * size + 1e-3:
        raise UserError(
            f"The teacher server {teacher.client.url} does not score at temperature {teacher.temperature} (vLLM leaves "
            "prompt log-probabilities unscaled); set temperature: 1.0, or load the teacher here."
        )


def _mean_difference(one: list[list[float]], other: list[list[float]]) -> float:
    pairs = [(a, b) for left, right in zip(one, other, strict=True) for a, b in zip(left, right, strict=True)]
    return sum(abs(a - b) for a, b in pairs) / len(pairs)
