"""A benchmark of twelve sums in a local file, and an engine that needs no model."""

import hashlib
import json
import random
from collections.abc import Iterator

import pytest
import yaml

from trl_opd.evals.benchmark import Problem, load_benchmark
from trl_opd.evals.engines import Generation, in_batches
from trl_opd.evals.rows import rows_sha256


def sums(count: int = 12) -> list[dict]:
    return [{"id": f"sum-{i}", "problem": f"{i + 1}+{i % 3}=?", "answer": str(i + 1 + i % 3)} for i in range(count)]


def write_benchmark(folder, rows: list[dict], /, **changes):
    """Write `sums.yaml` and `sums.jsonl` whose hashes agree; returns the path of the YAML file.

    A change to `None` leaves the key out.
    """
    folder.mkdir(exist_ok=True)
    data = "".join(json.dumps(row) + "\n" for row in rows).encode()
    (folder / "sums.jsonl").write_bytes(data)
    values = {
        "name": "sums",
        "title": "Sums",
        "licence": "none",
        "released": "2024-02",
        "source": {"hub": "nobody/sums", "split": "test"},
        "rows": len(rows),
        "rows_sha256": rows_sha256([Problem(row["id"], row["problem"], row["answer"]) for row in rows]),
        "local": {"file": "sums.jsonl", "sha256": hashlib.sha256(data).hexdigest()},
        "prompt": "{problem}",
        "extraction": "last-number",
        "scorer": "math",
        "protocol": {"n": 4, "temperature": 1, "top_p": 0.9, "max_new_tokens": 24, "note": "for tests"},
    }
    path = folder / "sums.yaml"
    given = {key: value for key, value in (values | changes).items() if value is not None}
    path.write_text(yaml.safe_dump(given))
    return path


def result_rows(folder, what: str) -> list[dict]:
    """The stored completions or verdicts of a run, sorted by key; `what` is `generations` or `verdicts`."""
    lines = [line for file in (folder / what).rglob("*.jsonl") for line in file.read_text().splitlines()]
    return sorted(map(json.loads, lines), key=lambda row: (row["problem_id"], row["index"]))


def results(folder) -> list:
    """All that a run found out: completions and verdicts whoever wrote them in whatever order, and the summary."""
    summary = json.loads((folder / "summary.json").read_text())
    return [result_rows(folder, "generations"), result_rows(folder, "verdicts"), summary]


@pytest.fixture
def sums_path(tmp_path):
    return write_benchmark(tmp_path / "data", sums())


@pytest.fixture
def benchmark(sums_path):
    return load_benchmark(sums_path)


class ScriptedEngine:
    """Answers from each request's seed: some right, some wrong, some without a number, some cut."""

    def __init__(self, model: str = "scripted") -> None:
        self.model = model
        self.drawn = 0

    def identity(self) -> dict:
        return {"engine": "scripted", "model": self.model}

    def details(self) -> dict:
        return {"device": "none"}

    def batches(self, requests, sampling):
        return in_batches(requests[::-1], 5)

    def generate(self, batches, sampling, done=frozenset()) -> Iterator[Generation]:
        for request in (request for batch in batches for request in batch):
            if request.key in done:
                continue
            self.drawn += 1
            rng = random.Random(request.seed)
            left, right = request.messages[-1]["content"].removesuffix("=?").split("+")
            total = int(left) + int(right)
            completion = rng.choice([f"{total}", f"{total}.0", f"{total + 1}", "cut before a number"])
            reason = "length" if completion.startswith("cut") else "stop"
            yield Generation(request.problem_id, request.index, f"<{total}>", completion, rng.randrange(1, 9), reason)


@pytest.fixture
def engine():
    return ScriptedEngine()
