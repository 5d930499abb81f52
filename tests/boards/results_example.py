"""A synthetic `results.json`: every case that a page must show, with numbers that a seed draws and nobody measured."""

import typing
from types import UnionType
from typing import Any

import numpy as np

from trl_opd.boards.schema import FORMAT, METHODS, RUNS, Results

HOSTILE = "</script><img src=x onerror=alert(1)> {{ 7 * 7 }} <b>&amp;"
PROBLEMS, ANSWERS, STEPS = 40, 4, 30
ARITHMETIC, PASS_AT_K, QUICK = "arithmetic", "arithmetic/pass_at_k", "quick"
LINES = {
    # name: (method, kind, true accuracy)
    "base": (None, "base", 0.30),
    "grpo": ("grpo", "baseline", 0.62),
    "dapo": ("dapo", "baseline", 0.64),
    "opd": ("opd", "method", 0.81),
    "opsd": ("opsd", "method", 0.60),
    "sdpo": ("sdpo", "method", 0.41),
    "sft": ("sft", "reference", 0.55),
    "srpo": ("srpo", "method", None),  # every run failed
}


def make_results(seeds: tuple[int, ...] = (0, 1, 2)) -> Results:
    """A board of eight lines and three benchmarks; with one seed it speaks of its runs alone."""
    rng = np.random.default_rng(0)
    scope = METHODS if len(seeds) > 1 else RUNS
    abilities = rng.normal(0, 1.2, PROBLEMS)
    runs = [_run(name, seed) for name in LINES for seed in ((None,) if name == "base" else seeds)]
    return {
        "format": FORMAT,
        "name": "example",
        "title": "An <example> board",
        "description": f"For the tests & nothing else. {HOSTILE}",
        "notes": [] if len(seeds) > 1 else ["One seed: differences are about these runs, not about the methods."],
        "base_model": "testbed/base",
        "data": {"dataset_name": "testbed"},
        "budget": {"unit": "steps", "value": STEPS},
        "checkpoint_rule": "last",
        "baseline": "grpo",
        "seeds": list(seeds),
        "level": 0.95,
        "suite": [
            _benchmark(ARITHMETIC, "primary", ANSWERS),
            _benchmark(PASS_AT_K, "pass_at_k", 64),
            _benchmark(QUICK, "forgetting", 1),
        ],
        "primary": ARITHMETIC,
        "design": {
            "seeds": len(seeds),
            "problems": PROBLEMS,
            "answers": ANSWERS,
            "smallest_detectable": 0.061,
            "comparisons": 6,
            "smallest_detectable_holm": 0.083,
            "assumed": {"seed": 0.012, "problem": 0.11, "residual": 0.13, "decoding": 0.36},
            "assumed_from": "the board's own finished runs",
        },
        "made": "2026-01-02T03:04:05+00:00",
        "provenance": {
            "commit": ["0123456789abcdef0123456789abcdef01234567"],
            "versions": {"trl": ["1.16.0"], "torch": ["2.13.0"]},
            "hardware": ["1 x NVIDIA H100", "x86_64 CPU, 1 thread(s)"],
        },
        "rows": [_row(rng, name, seeds, scope) for name in LINES],
        "runs": runs + [_run("opd", seeds[0], role="trial", rate=rate) for rate in (1e-5, 3e-5)],
        "curves": {
            name: [_curve(rng, seed, truth) for seed in seeds]
            for name, (_, kind, truth) in LINES.items()
            if kind != "base" and truth is not None
        },
        "problems": {ARITHMETIC: _problems(rng, abilities)},
        "files": {"trials.json": "ef" * 32},
        "warnings": [
            "1 of 8 lines has no finished run: srpo.",
            "arithmetic is uncalibrated: no published score was reproduced with this harness.",
        ],
    }


def _benchmark(key: str, purpose: str, n: int) -> dict[str, Any]:
    return {
        "key": key,
        "benchmark": key.split("/")[0],
        "purpose": purpose,
        "n": n,
        "limit": None,
        "seed": 0,
        "max_new_tokens": 48,
        "calibration": "uncalibrated" if purpose == "forgetting" else "own",
        "problems": PROBLEMS,
        "answers": n,
        "ks": [2**power for power in range(n.bit_length())],
    }


def _row(rng: np.random.Generator, name: str, seeds: tuple[int, ...], scope: str) -> dict[str, Any]:
    method, kind, truth = LINES[name]
    planned = [None] if kind == "base" else list(seeds)
    finished = 0 if truth is None else len(planned)
    return {
        "name": name,
        "label": {"dapo": "DAPO-style", "opd": "OPD (external teacher)"}.get(name, name),
        "method": method,
        "kind": kind,
        "is_baseline": name == "grpo",
        "planned": len(planned),
        "finished": finished,
        "runs": [_run_name(name, seed) for seed in planned],
        "scores": {}
        if truth is None
        else {
            ARITHMETIC: _score(rng, name, truth, scope, 4),
            PASS_AT_K: _score(rng, name, truth, scope, 64),
            QUICK: _score(rng, name, 0.5 + 0.02 * truth, scope, 1),
        },
        "training": _training(rng, None if kind == "base" else truth),
        "checkpoint": None
        if kind == "base" or truth is None
        else {
            "rule": "last",
            "last": {"mean": truth, "steps": {_run_name(name, seed): STEPS for seed in seeds}},
            "best": {"mean": truth + 0.004, "steps": {_run_name(name, seed): STEPS - 10 for seed in seeds}},
        },
        "trials": _trials() if name == "opd" else [],
        "learning_rate": 3e-5 if name == "opd" else None,
        "warnings": ["41 % of the groups had rewards without variance: they gave GRPO's advantage no signal."]
        if name == "sdpo"
        else [],
    }


def _score(rng: np.random.Generator, name: str, truth: float, scope: str, n: int) -> dict[str, Any]:
    half = 0.06
    seed_error = 0.01 if scope == METHODS and name != "base" else None
    mean = float(np.clip(truth + rng.normal(0, 0.01), 0, 1))
    ks = [2**power for power in range(n.bit_length())]
    return {
        "accuracy": {
            "mean": mean,
            "low": max(mean - half, 0.0),
            "high": min(mean + half, 1.0),
            "scope": METHODS if name == "base" else scope,
            "errors": {"decoding": 0.005 if n > 1 else None, "problems": 0.02, "seeds": seed_error},
        },
        "difference": None if name == "grpo" else _difference(mean - 0.62, scope, corrected=name != "base"),
        "to_base": None if name == "base" else _difference(mean - 0.30, scope, corrected=False),
        "majority": {"k": n, "value": min(mean + 0.03, 1.0)} if n > 1 else None,
        "pass_at_k": {str(k): float(1 - (1 - mean) ** (1 + np.log2(k))) for k in ks},
        "truncated": 0.01,
        "no_answer": 0.002,
        "mean_tokens": 27.5,
    }


def _difference(value: float, scope: str, corrected: bool) -> dict[str, Any]:
    half, p = 0.07, float(np.exp(-40 * abs(value)))
    p_holm = min(6 * p, 1.0)
    words = "not distinguishable" if p_holm >= 0.05 else ("better" if value > 0 else "worse")
    return {
        "value": value,
        "low": value - half,
        "high": value + half,
        "scope": scope,
        "p": p,
        "p_tail": p,
        "p_holm": p_holm if corrected else None,
        "p_runs": p,
        "p_runs_holm": p_holm if corrected else None,
        "verdict": words if scope == METHODS else f"{words} in these runs",
        "distinguishable": p_holm < 0.05,
    }


def _training(rng: np.random.Generator, truth: float | None) -> dict[str, float | None]:
    names = (
        "generated_tokens", "teacher_tokens", "seconds", "gpu_hours", "peak_memory_bytes", "steps",
        "completion_length", "truncated", "entropy", "active_fraction", "zero_variance",
    )  # fmt: skip
    if truth is None:
        return dict.fromkeys(names)
    seconds = float(rng.uniform(500, 4000))
    values = (
        4096.0 * STEPS, 2048.0 * STEPS, seconds, seconds / 3600, 3e9, float(STEPS), 26.5, 0.01, 0.12, 0.8,
        float(rng.uniform(0.1, 0.5)),
    )  # fmt: skip
    return dict(zip(names, values, strict=True))


def _trials() -> list[dict[str, Any]]:
    done = [
        {"run": f"opd-lr{rate}", "learning_rate": rate, "validation": value, "chosen": value == 0.8,
         "status": "finished", "error": None}
        for rate, value in ((1e-5, 0.7), (3e-5, 0.8))
    ]  # fmt: skip
    lost = {"validation": None, "chosen": False, "status": "failed", "error": f"the loss is {HOSTILE}"}
    return [*done, {"run": "opd-lr0.001", "learning_rate": 1e-3} | lost]


def _run_name(line: str, seed: int | None) -> str:
    return line if seed is None else f"{line}-seed{seed}"


def _run(line: str, seed: int | None, role: str | None = None, rate: float | None = None) -> dict[str, Any]:
    method, kind, truth = LINES[line]
    failed = truth is None
    name = f"{line}-lr{rate}" if role == "trial" else _run_name(line, seed)
    return {
        "name": name,
        "role": role or ("base" if kind == "base" else "final"),
        "line": line,
        "seed": seed,
        "learning_rate": rate,
        "status": "failed" if failed else "finished",
        "stage": "train" if failed else None,
        "error": f"RuntimeError: the loss is {HOSTILE}" if failed else None,
        "attempts": 2 if failed else 1,
        "not_comparable": None,
        "accuracy": truth,
        "scores": {} if failed or role == "trial" else {ARITHMETIC: truth, PASS_AT_K: truth, QUICK: 0.5},
        "commands": [
            *(
                []
                if kind == "base"
                else [f"trl-opd train {method} --output_dir leaderboards/example/runs/{name}/train"]
            ),
            f"trl-opd eval --model leaderboards/example/runs/{name}/train/model --benchmark arithmetic --n 4",
        ],
        "settings_hash": "80dc3fca9cb1",
        "config": {} if kind == "base" else {"learning_rate": rate or 5e-05, "max_steps": STEPS, "bf16": False},
        "overrides": {"epsilon_high": 0.28} if line == "dapo" else {},
        "versions": {} if kind == "base" else {"python": "3.11.7", "trl": "1.16.0", "torch": "2.13.0"},
        "hardware": None if kind == "base" else "1 x NVIDIA H100",
        "training": _training(np.random.default_rng(1), None if kind == "base" or failed else truth),
        "evaluation": {} if failed else {ARITHMETIC: {"data": "99114f0b8a49", "n": 4, "seed": 0}},
        "files": {"run.json": "ab" * 32, "log.jsonl": "cd" * 32},
    }


def _curve(rng: np.random.Generator, seed: int, truth: float) -> dict[str, Any]:
    steps = np.arange(1, STEPS + 1)
    reward = truth * (1 - np.exp(-steps / 8)) + rng.normal(0, 0.03, STEPS)
    return {
        "seed": seed,
        "step": steps.tolist(),
        "generated_tokens": (4096.0 * steps).tolist(),
        "seconds": (20.0 * steps).tolist(),
        "reward": [None, *reward[1:].tolist()],
        "loss": rng.normal(0, 0.1, STEPS).tolist(),
        "entropy": (1.2 * np.exp(-steps / 20)).tolist(),
        "validation": [[float(step), float(reward[step - 1])] for step in (10, 20, 30)],
    }


def _problems(rng: np.random.Generator, abilities: np.ndarray) -> dict[str, Any]:
    ids = [f"sum-{number:03}" for number in range(PROBLEMS)]
    share = {}
    for name, (_, _, truth) in LINES.items():
        if truth is not None:
            right = 1 / (1 + np.exp(-(abilities + np.log(truth / (1 - truth)))))
            share[name] = (rng.binomial(ANSWERS, right) / ANSWERS).tolist()
    return {
        "ids": ids,
        "questions": {problem: f"What is {number} + 0? {HOSTILE}" for number, problem in enumerate(ids)},
        "share": share,
        "answers": {problem: {name: _answer(name, share[name][i] > 0.5, i) for name in share} for i, problem in
                    enumerate(ids)},
    }  # fmt: skip


def _answer(line: str, right: bool, number: int) -> dict[str, Any]:
    return {
        "run": _run_name(line, None if line == "base" else 0),
        "completion": f"The sum is \\boxed{{{number}}}." if right else HOSTILE * (1 + number % 3),
        "extracted": str(number) if right else None,
        "reason": "" if right else "no answer",
        "correct": right,
    }


def shape_errors(expected: Any, value: Any, where: str = "results") -> list[str]:
    """Where `value` is not of the shape that the annotation `expected` describes."""
    if expected is Any:
        return []
    if typing.is_typeddict(expected):
        hints = typing.get_type_hints(expected)
        if not isinstance(value, dict) or value.keys() != hints.keys():
            found = sorted(value) if isinstance(value, dict) else repr(value)
            return [f"{where} must have the keys {sorted(hints)}, not {found}"]
        return [error for key, hint in hints.items() for error in shape_errors(hint, value[key], f"{where}.{key}")]
    origin, arguments = typing.get_origin(expected), typing.get_args(expected)
    if origin is UnionType:
        found = [shape_errors(one, value, where) for one in arguments]
        return min(found, key=len)
    if origin is typing.Literal:
        return [] if value in arguments else [f"{where} must be one of {arguments}, not {value!r}"]
    if origin is list and isinstance(value, list):
        return [e for i, one in enumerate(value) for e in shape_errors(arguments[0], one, f"{where}[{i}]")]
    if origin is dict and isinstance(value, dict):
        keys = [f"{where} has the key {key!r}" for key in value if not isinstance(key, arguments[0])]
        return keys + [e for k, one in value.items() for e in shape_errors(arguments[1], one, f"{where}[{k!r}]")]
    plain = origin or expected
    right = type(value) in ((int, float) if plain is float else (plain,))
    return [] if right else [f"{where} must be {plain}, not {value!r}"]
