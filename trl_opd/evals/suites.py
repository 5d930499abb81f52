"""Finding benchmarks and suites: YAML files, one a benchmark, or a list of benchmarks by name."""

from pathlib import Path

from trl_opd.errors import UserError
from trl_opd.evals.benchmark import Benchmark, load_benchmark, read_yaml
from trl_opd.evals.records import suggest


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
    unknown = set(values) - {"benchmarks", "title"}
    if unknown:
        raise UserError(
            f"The suite {path.name} has the unknown key {min(map(str, unknown))!r}: it takes a title and benchmarks."
        )
    if not isinstance(values["benchmarks"], list) or not values["benchmarks"]:
        raise UserError(f"The suite {path.name} names no benchmarks: list at least one.")
    return [load_benchmark(_find(str(benchmark), path.parent)) for benchmark in values["benchmarks"]]


def _find(name: str, folder: Path) -> Path:
    candidates = [place / f"{name}.yaml" for place in (folder, suites_dir())]
    found = next((path for path in candidates if path.is_file()), None)
    if found is None:
        known = {*names(), *(path.stem for path in folder.glob("*.yaml"))}
        raise UserError(f"There is no benchmark or suite {name!r}{suggest(name, known)}.")
    return found
