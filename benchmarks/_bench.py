"""What the benchmarks share: measuring in fresh processes, rows with targets, tables, plots and files of results.

A benchmark names its cases. Run without `--case` it calls itself once for each case, in a fresh process with one
thread, and compares what comes back; run with `--case NAME` it measures that case and reports it:

    options = parser(__doc__).parse_args()
    if options.case:
        report(measure(make_step(options.case, options), options.device))
    else:
        theirs, ours = (in_fresh_process(__file__, case, options) for case in ("their-grpo", "our-grpo"))
        rows = [row("GRPO: peak memory", ours["peak_gib"], theirs["peak_gib"], target=0.35, unit="GiB")]
        finish(rows, options, work={"batch": [8, 256]})
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

REPEATS = 3
GIB = 2**30
_MARK = "RESULT "


def parser(description: str) -> argparse.ArgumentParser:
    """The options that every benchmark has."""
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--quick", action="store_true", help="a small batch, under a minute")
    made.add_argument("--json", type=Path, help="write rows, machine and versions to this file")
    made.add_argument("--plot", type=Path, help="draw ratios and targets into this file (.svg or .png)")
    made.add_argument("--device", choices=("cpu", "cuda"), default="cuda" if torch.cuda.is_available() else "cpu")
    made.add_argument("--case", help=argparse.SUPPRESS)
    return made


def in_fresh_process(script: str, case: str, options: argparse.Namespace) -> dict[str, Any]:
    """What `script --case case` reports, from a process of its own with one thread, on the device of the options.

    Raises:
        `RuntimeError`: With the end of its output, if it fails or is killed.
    """
    command = [sys.executable, script, "--case", case, "--device", options.device, *(["--quick"] * options.quick)]
    # Numbers of one thread: with more, the scheduling of others on the machine would be in them.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode or _MARK not in done.stdout:
        raise RuntimeError(f"{case} ended with status {done.returncode}:\n{(done.stdout + done.stderr)[-3000:]}")
    return json.loads(done.stdout.split(_MARK)[-1])


def report(result: dict[str, Any]) -> None:
    """Hands the result of this process's case to the process that started it."""
    print(_MARK + json.dumps(result), flush=True)


def measure(step: Callable[[], Tensor], device: str, repeats: int = REPEATS, backward: bool = True) -> dict[str, float]:
    """Peak memory above idle, and the median time of `loss = step(); loss.backward()`.

    On the CPU, memory is the high-water mark of the resident set and time is the process's CPU time; on a GPU, memory
    is what its allocator handed out and time is wall time up to the end of the queue.

    Args:
        step (`Callable`): Makes the loss, a scalar.
        device (`str`): Where it runs: "cpu" or "cuda".
        repeats (`int`): Runs that are timed; gradients accumulate from one to the next, as in training.
        backward (`bool`): Whether the backward pass is part of it.

    Returns:
        `dict`: `peak_gib`, `seconds`, and the last `loss`.
    """
    meter = _GpuMeter() if device == "cuda" else _CpuMeter()
    seconds = []
    for _ in range(repeats):
        start = meter.now()
        loss = step()
        if backward:
            loss.backward()
        seconds.append(meter.now() - start)
        value = float(loss.detach())
        del loss
    return {"peak_gib": meter.peak() / GIB, "seconds": statistics.median(seconds), "loss": value}


class _CpuMeter:
    """CPU time, and the resident set's high-water mark above what the idle process holds."""

    def __init__(self):
        gc.collect()
        if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
            libc.malloc_trim(0)  # freed pages that still count as resident would hide as much of the peak
        Path("/proc/self/clear_refs").write_text("5")  # the mark starts anew from here
        self.idle = _resident("VmRSS")

    def now(self) -> float:
        return time.process_time()

    def peak(self) -> int:
        return _resident("VmHWM") - self.idle


class _GpuMeter:
    """Wall time with the queue drained, and the allocator's peak above what it held before."""

    def __init__(self):
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        self.idle = torch.cuda.memory_allocated()

    def now(self) -> float:
        torch.cuda.synchronize()
        return time.perf_counter()

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated() - self.idle


def _resident(field: str) -> int:
    """A field of this process's status, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"This system does not tell {field}; the memory of a process is measured on Linux only.")


def row(figure: str, ours: float, theirs: float, target: float | None = None, unit: str = "") -> dict[str, Any]:
    """One figure: both values, their ratio, and whether it is at most the target (None where there is no target)."""
    ratio = ours / theirs
    return {
        "figure": figure,
        "unit": unit,
        "ours": ours,
        "theirs": theirs,
        "ratio": ratio,
        "target": target,
        "met": None if target is None else ratio <= target,
    }


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as a Markdown table."""
    lines = ["| figure | theirs | ours | ratio | at most | met |", "|---|--:|--:|--:|--:|---|"]
    for entry in rows:
        values = [f"{entry[side]:.3g} {entry['unit']}".strip() for side in ("theirs", "ours")]
        target = "" if entry["target"] is None else f"{entry['target']:g}"
        met = {None: "", True: "yes", False: "no"}[entry["met"]]
        lines.append(f"| {entry['figure']} | {values[0]} | {values[1]} | {entry['ratio']:.3f} | {target} | {met} |")
    return "\n".join(lines)


def about() -> dict[str, Any]:
    """The kind of machine and the versions that the figures were taken with."""
    model = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    packages = ("torch", "trl", "transformers", "accelerate", "peft")
    return {
        "cpu": model[0].split(":")[1].strip() if model else platform.machine(),
        "cores": os.cpu_count(),
        "threads": 1,
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in packages},
    }


def finish(rows: list[dict[str, Any]], options: argparse.Namespace, work: dict[str, Any]) -> None:
    """Prints the table, and writes the files that were asked for.

    Args:
        rows (`list[dict]`): See `row`.
        options (`argparse.Namespace`): What `parser` parsed.
        work (`dict`): What was measured: sizes of the batch and of the models.
    """
    print(table(rows))
    if options.json:
        content = {"machine": about(), "work": work, "rows": rows}
        options.json.write_text(json.dumps(content, indent=1) + "\n")
    if options.plot:
        plot(rows, options.plot)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Ratios as bars on a logarithmic axis, with a line at parity and a mark at each target."""
    import matplotlib

    matplotlib.use("agg")
    matplotlib.rcParams["svg.hashsalt"] = "trl-opd"  # the same figures give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.36 * len(rows)), layout="constrained")
    places = range(len(rows), 0, -1)
    colours = ["#b3413a" if entry["met"] is False else "#3b6ea8" for entry in rows]
    axes.barh(places, [entry["ratio"] for entry in rows], color=colours, height=0.6)
    for place, entry in zip(places, rows, strict=True):
        axes.text(entry["ratio"] * 1.05, place, f"{entry['ratio']:.3g}", va="center", fontsize=8)
        if entry["target"] is not None:
            axes.plot([entry["target"]] * 2, [place - 0.4, place + 0.4], color="black", linewidth=2)
    axes.axvline(1.0, color="grey", linewidth=0.8, linestyle="--")
    axes.set(xscale="log", xlabel="ours / theirs (bar: measured, black mark: at most)")
    axes.set_yticks(list(places), [entry["figure"] for entry in rows], fontsize=8)
    figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
