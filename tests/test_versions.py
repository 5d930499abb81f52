"""TRL and transformers of another version are refused in one sentence, before either is imported."""

import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import trl_opd
from trl_opd import versions
from trl_opd.cli.main import main

INSTALLED = {"trl": "1.16.0", "transformers": "5.23.0"}


@pytest.fixture
def installed(monkeypatch):
    """Pretends other versions; None is not installed."""

    def pretend(**found: str | None) -> None:
        def version(package: str) -> str:
            if (INSTALLED | found)[package] is None:
                raise metadata.PackageNotFoundError(package)
            return (INSTALLED | found)[package]

        monkeypatch.setattr(versions.metadata, "version", version)

    return pretend


def test_the_ranges_are_those_of_the_distribution():
    project = tomllib.loads((Path(__file__).parents[1] / "pyproject.toml").read_text())["project"]
    required = {one.name: one.specifier for one in map(Requirement, project["dependencies"])}
    assert {package: required[package] for package in versions.RANGES} == versions.RANGES


@pytest.mark.parametrize("found", [{}, {"trl": "1.17.0.dev0"}, {"trl": "1.17.3"}, {"transformers": "6.0.1"}])
def test_versions_that_work_are_silent(found, installed):
    installed(**found)
    versions.check_versions()


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"trl": "1.15.2"}, "trl 1.15.2 is installed, but trl_opd needs trl>=1.16,<1.18; install one that works"),
        ({"trl": "1.18.0"}, "trl 1.18.0 is installed"),
        ({"trl": None}, "trl is not installed"),
        ({"transformers": "4.57.1"}, "transformers 4.57.1 is installed, but trl_opd needs transformers>=5.10"),
    ],
)
def test_another_version_is_refused_at_import_and_on_the_command_line(found, message, installed, capsys):
    installed(**found)
    with pytest.raises(trl_opd.UserError, match=message):
        from trl_opd import SDPOConfig  # noqa: F401
    assert main(["recipes", "list"]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line
    assert "pip install" in line
    assert main(["--version"]) == 0


def test_the_check_imports_neither():
    loaded = "import sys, trl_opd.versions as v; v.check_versions(); print({'trl', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", loaded], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.strip() == "set()"
