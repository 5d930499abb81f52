"""The distributions: source and wheel are built, and the wheel works in a virtual environment without the repository.

The libraries are those of the environment that runs the tests, so what pip would resolve is not part of this.
"""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """A folder with the source distribution and the wheel, which `build` makes from the former."""
    folder = tmp_path_factory.mktemp("dist")
    subprocess.run([sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)], check=True, timeout=300)
    return folder


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """Runs the commands of a new environment that has the wheel, in an empty folder far from the repository."""
    environment = tmp_path_factory.mktemp("environment")
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    venv.create(environment, with_pip=True)
    bin_folder = environment / "bin"
    (wheel,) = distributions.glob("*.whl")
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    variables |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}

    def run(*command: str) -> str:
        done = subprocess.run(
            [str(bin_folder / command[0]), *command[1:]],
            cwd=elsewhere, env=variables, capture_output=True, text=True, timeout=300, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    run("python", "-m", "pip", "install", "--quiet", "--no-deps", str(wheel))
    # A line of a .pth file is only put on the path: an editable install in that folder stays without effect.
    (own,) = environment.glob("lib/python*/site-packages")
    (own / "libraries.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return run, elsewhere, environment


def test_the_source_distribution_is_the_repository(distributions):
    (source,) = distributions.glob("*.tar.gz")
    with tarfile.open(source) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    wanted = {"pyproject.toml", "README.md", "LICENSE", "CITATION.cff", "CHANGELOG.md", "SECURITY.md", "Makefile"}
    wanted |= {"trainers/sdpo.py", "trainers/slurm/train.sbatch", "leaderboards/arithmetic.yaml", "docs/index.md"}
    wanted |= {"evals/arithmetic.yaml", "tests/test_packaging.py"}
    assert wanted - names == set()


def test_the_wheel_holds_what_lies_beside_the_code(distributions):
    (wheel,) = distributions.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        packed = set(archive.namelist())
    for folder, inside, pattern in (
        ("trainers/recipes", "_recipes", "*/*.yaml"),
        ("trainers/accelerate_configs", "_accelerate_configs", "*.yaml"),
        ("trainers/slurm", "_slurm", "*.sbatch"),
        ("evals", "_evals", "*.yaml"),
    ):
        found = sorted((ROOT / folder).glob(pattern))
        assert found
        assert {f"trl_opd/{inside}/{path.relative_to(ROOT / folder)}" for path in found} <= packed
    assert not [name for name in packed if name.startswith(("tests/", "trainers/"))]


def test_the_wheel_trains_without_the_repository(installed):
    run, elsewhere, environment = installed
    where = run("python", "-c", "import trl_opd; print(trl_opd.__file__)").strip()
    assert Path(where).is_relative_to(environment)
    assert run("trl-opd", "--version").startswith("trl-opd 0.")
    assert "testbed/sdpo" in run("trl-opd", "recipes", "list", "--model", "testbed")
    assert "arithmetic" in run("trl-opd", "eval", "list")
    run("trl-opd", "recipes", "copy", "testbed/sdpo", "mine.yaml")
    run("trl-opd", "recipes", "copy", "accelerate/single", ".")
    assert (elsewhere / "single.yaml").is_file()
    assert "finished" in run(
        "trl-opd", "train", "sdpo", "--config", "mine.yaml", "--max_steps", "2", "--output_dir", "r"
    )
    record = json.loads((elsewhere / "r" / "run.json").read_text())
    assert (record["status"], record["steps"]) == ("finished", 2)
