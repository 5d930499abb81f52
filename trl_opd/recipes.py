"""What ships beside the code, by name: recipes, accelerate's launch configurations and the Slurm script."""

import re
from dataclasses import dataclass
from pathlib import Path

from trl_opd.errors import UserError
from trl_opd.suggest import suggest

#: Folder -> (the first part of its names, the files in it).
LAUNCH_FOLDERS = {"accelerate_configs": ("accelerate", "*.yaml"), "slurm": ("slurm", "*.sbatch")}

_RUN_HERE = re.compile(r"^# (Not run here|Run here)\b[:.]? ?(.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Shipped:
    """A file that is copied or shown by name.

    Attributes:
        name: `MODEL/METHOD` of a recipe, such as `qwen3-4b/sdpo`; `accelerate/ddp` or `slurm/train` of a launch file.
        path: Where it lies.
    """

    name: str
    path: Path

    @property
    def summary(self) -> str:
        """Its first line, a comment."""
        lines = [line for line in self.text().splitlines() if not line.startswith("#!")]
        return lines[0].removeprefix("#").strip()

    def text(self) -> str:
        """What is in it."""
        return self.path.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Recipe(Shipped):
    """A recipe: a YAML file of options for `trl-opd train METHOD`."""

    @property
    def model(self) -> str:
        """The folder: a model, or a data set for any model."""
        return self.name.split("/")[0]

    @property
    def method(self) -> str:
        """The method that it is for."""
        return self.name.split("/")[1]

    @property
    def run_here(self) -> bool:
        """Whether the project has run it, as its header says."""
        found = _RUN_HERE.search(self.text())
        return found is not None and found[1] == "Run here"


def shipped_folder(name: str) -> Path:
    """A folder of shipped files: package data in an installed wheel, below `trainers/` in a checkout."""
    package = Path(__file__).resolve().parent
    installed = package / f"_{name}"
    return installed if installed.is_dir() else package.parent / "trainers" / name


def recipes() -> list[Recipe]:
    """All recipes by name."""
    folder = shipped_folder("recipes")
    return [Recipe(f"{path.parent.name}/{path.stem}", path) for path in sorted(folder.glob("*/*.yaml"))]


def launch_files() -> list[Shipped]:
    """All launch files by name."""
    return [
        Shipped(f"{prefix}/{path.stem}", path)
        for folder, (prefix, pattern) in LAUNCH_FOLDERS.items()
        for path in sorted(shipped_folder(folder).glob(pattern))
    ]


def find(name: str) -> Shipped:
    """The recipe or launch file of a name.

    Raises:
        `UserError`: If there is none, with the nearest known name.
    """
    known = {one.name: one for one in [*recipes(), *launch_files()]}
    if name not in known:
        raise UserError(f"There is no recipe {name!r}{suggest(name, known)}; `trl-opd recipes list` names them all.")
    return known[name]


def with_paths(options: list[str]) -> list[str]:
    """Command-line options, with the path in place of a shipped recipe's name after `--config`.

    A file of that name comes first; a name that is neither is left to whoever reads the recipe.
    """
    if "--config" not in options[:-1]:
        return options
    place = options.index("--config") + 1
    named = {one.name: one.path for one in recipes()}.get(options[place])
    if named is None or Path(options[place]).is_file():
        return options
    return [*options[:place], str(named), *options[place + 1 :]]
