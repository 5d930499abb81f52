"""A small board with a stand-in for the trainer and the harness."""

import sys
from functools import partial
from pathlib import Path

import pytest
import yaml


@pytest.fixture(scope="session")
def launcher() -> tuple[str, ...]:
    return (sys.executable, "-S", str(Path(__file__).with_name("fake_trl_opd.py")))


@pytest.fixture
def write_spec(tmp_path):
    """Write a spec below the temporary folder, see `spec_in`."""
    return partial(spec_in, tmp_path)


def spec_in(folder: Path, **changes) -> Path:
    """Write a spec with its recipe; keyword arguments replace keys, None removes one."""
    recipe = folder / "recipes" / "fake.yaml"
    recipe.parent.mkdir(exist_ok=True)
    if not recipe.exists():
        recipe.write_text("learning_rate: 0.0003\n")
    raw = {
        "name": "small",
        "title": "A <small> board",
        "description": "For the tests & nothing else.",
        "base_model": "testbed/base",
        "methods": [{"name": name, "method": name, "recipe": "recipes/fake.yaml"} for name in ("grpo", "opd", "opsd")],
        "baseline": "grpo",
        "seeds": [0, 1],
        "data": {"dataset_name": "testbed"},
        "budget": {"unit": "steps", "value": 30},
        "evaluation": [{"benchmark": "arithmetic", "n": 2, "limit": 12}],
        "launch": {"workers": 2},
    } | changes
    path = folder / "boards" / f"{raw['name']}.yaml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(yaml.safe_dump({key: value for key, value in raw.items() if value is not None}))
    return path
