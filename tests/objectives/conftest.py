"""Objectives made from their real configs."""

from collections.abc import Callable

import pytest

from tests.objectives import bench


@pytest.fixture
def make(tmp_path) -> Callable[..., bench.Method]:
    """Makes the method of a name with some options."""
    return lambda name, **options: bench.make(name, tmp_path, **options)
