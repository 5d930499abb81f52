"""The sandboxes that can run here, for tests of all of them."""

from functools import cache

import pytest

from trl_opd.errors import UserError
from trl_opd.verify.code import CodeVerifier
from trl_opd.verify.sandbox import Limits

#: Small, so that what runs into a limit does so at once.
TIGHT = Limits(cpu_seconds=1, memory_bytes=512 * 2**20, output_bytes=2**20)


@cache
def verifier(name: str, limits: Limits | None = None) -> CodeVerifier:
    """A verifier with this sandbox; the test is skipped where the sandbox cannot run."""
    try:
        return CodeVerifier(workers=2, sandbox=name, limits=limits)
    except UserError as error:
        pytest.skip(str(error))


def block(code: str) -> str:
    """A completion that holds a program."""
    return f"Here it is:\n\n```python\n{code}\n```\n"
