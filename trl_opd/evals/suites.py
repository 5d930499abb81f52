"""Finding benchmarks and suites: YAML files, one a benchmark, or a list of benchmarks by name."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from trl_opd.errors import UserError
from trl_opd.evals.benchmark import Benchmark, Protocol, load_benchmark
from trl_opd.evals.files import read_yaml
from trl_opd.evals.records import from_mapping, suggest


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Several benchmarks under one name.

    Attributes:
        title (`str`, *optional*): Name on pages.
        benchmarks (`list[str]`): Their names.
        protocol (`dict`): Settings that take the place of every benchmark's own, such as `n`.
    """

    title: str | None = None
    benchmarks: list[str]
    protocol: Mapping[str, Any] = field(default_factory=dict)


def suites_dir() -> Path:
    """The folder of the YAML files: package data in an installed wheel, `evals/` in a checkout of the repository."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "_evals"
    return installed if installed.is_dir() else package.parent / "evals"


def names() -> list[str]:
    """All benchmarks and suites by name."""
    return sorted(path.stem for path in suites_dir().glob("*.yaml"))


def load_suite(name: str) -> list[Benchmark]:
    """The benchmarks of a suite, or the one benchmark of that name.

    Args:
        name (`str`): Name of a suite or of a benchmark, or the path of such a YAML file. The benchmarks that a file
            names lie beside it or among the suites of the package.

    Raises:
        UserError: The name is unknown or a file cannot be read as it should.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else _find(name, suites_dir())
    if not path.is_file():
        raise UserError(
            f"{path} does not exist: pass the path of a YAML file, or a name that `trl-opd eval list` shows."
        )
    values = read_yaml(path)
    if "benchmarks" not in values:
        return [load_benchmark(path)]
    suite = from_mapping(Suite, values, f"The suite {path.name}")
    if not suite.benchmarks:
        raise UserError(f"The suite {path.name} names no benchmarks: list at least one.")
    benchmarks = [load_benchmark(_find(str(benchmark), path.parent)) for benchmark in suite.benchmarks]
    return [replace(benchmark, protocol=_protocol(benchmark, suite, path)) for benchmark in benchmarks]


def _protocol(benchmark: Benchmark, suite: Suite, path: Path) -> Protocol:
    """The benchmark's protocol with the suite's settings in place of its own."""
    return from_mapping(Protocol, {**asdict(benchmark.protocol), **suite.protocol}, f"The suite {path.name}: protocol")


def _find(name: str, folder: Path) -> Path:
    candidates = [place / f"{name}.yaml" for place in (folder, suites_dir())]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        known = {*names(), *(path.stem for path in folder.glob("*.yaml"))}
        raise UserError(f"There is no benchmark or suite {name!r}{suggest(name, known)}.")
    return found
