"""What the sandbox costs: milliseconds a problem over a bare subprocess, and the time of HumanEval's solutions.

    python benchmarks/sandbox_overhead.py --data-dir FOLDER [--quick] [--sandbox bwrap|landlock] [--json FILE]

FOLDER holds `humaneval.jsonl`. A bare run is `python program.py` with the solution, the tests and the call of `check`
in one file. Ours starts two confined processes, one for the program and one for its tests. Both run one after the other
and take turns; the overhead is the difference of the medians, and on a machine that others use, rather that of the
fastest runs. Then all solutions are scored by two workers at once. The column "theirs" holds what is allowed.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from _bench import finish, parser, row

ALLOWED_MS, ALLOWED_SECONDS, WORKERS = 60.0, 60.0, 2
PROBLEMS = {False: 164, True: 24}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data-dir", type=Path, required=True, help="folder with humaneval.jsonl")
    options.add_argument("--sandbox", default="auto", help="bwrap or landlock; by default what a run would take")
    options = options.parse_args()
    from trl_opd.verify.code import CodeVerifier

    with (options.data_dir / "humaneval.jsonl").open(encoding="utf-8") as file:
        problems = [json.loads(line) for line in file][: PROBLEMS[options.quick]]
    verifier = CodeVerifier(WORKERS, options.sandbox)
    requests = [(f"```python\n{fields['prompt']}{fields['canonical_solution']}\n```", fields) for fields in problems]

    def confined(text: str, fields: dict[str, Any]) -> None:
        assert verifier.verify(text, "humaneval", fields).correct

    pairs = [(_ms(_bare, fields), _ms(confined, text, fields)) for text, fields in requests]
    bare, ours = ([pair[side] for pair in pairs] for side in (0, 1))
    quiet = min(ours) - min(bare)
    overhead = statistics.median(ours) - statistics.median(bare)
    together = _ms(verifier.verify_all, [(text, "humaneval", fields) for text, fields in requests]) / 1000
    rows = [
        row(f"{verifier.backend.name}: more than a bare subprocess, medians", overhead, ALLOWED_MS, 1, "ms"),
        row(f"{verifier.backend.name}: the same of the fastest runs", quiet, ALLOWED_MS, 1, "ms"),
        row(f"{len(problems)} solutions of HumanEval, {WORKERS} workers", together, ALLOWED_SECONDS, 1, "s"),
    ]
    medians = {"bare_ms": statistics.median(bare), "confined_ms": statistics.median(ours)}
    finish(rows, options, {"problems": len(problems), **medians})


def _bare(fields: dict[str, Any]) -> None:
    parts = (fields["prompt"] + fields["canonical_solution"], fields["test"], f"check({fields['entry_point']})")
    with tempfile.NamedTemporaryFile("w", suffix=".py") as file:
        file.write("\n".join(parts))
        file.flush()
        subprocess.run([sys.executable, file.name], check=True)


def _ms(run: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter()
    run(*arguments)
    return 1000 * (time.perf_counter() - start)


if __name__ == "__main__":
    main()
