"""The code scorer as a TRL reward function."""

import json
import os
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

from trl_opd.errors import UserError
from trl_opd.verify.code import CodeVerifier
from trl_opd.verify.rewards import last_text


@cache
def _verifier() -> CodeVerifier:
    return CodeVerifier(workers=os.cpu_count() or 1)


def code_reward(
    completions: list[str] | list[list[dict[str, Any]]],
    tests: list[Any] | None = None,
    log_extra: Callable[[str, list], None] | None = None,
    **kwargs: Any,
) -> list[float]:
    """1.0 for a completion whose program passes all tests, else 0.0. Programs run in the sandbox.

    Args:
        completions (`list`): `B` texts or `B` lists of messages, of which the last one is scored.
        tests (`list`): The data set's `tests` column, `B` values, each as such or as its JSON: a list of asserts, a
            list of `{"input": ..., "output": ...}` for programs that read standard input, or a mapping of `dialect`
            (see `trl_opd.verify.code_dialects`) and its fields.
        log_extra (`Callable`, *optional*): TRL's hook for more columns in the completions table; gets the programs, the
            reasons of the verdicts, and feedback for methods whose teacher reads it.
        **kwargs: What else TRL passes; not read.

    Returns:
        `list[float]`: `B` rewards.

    Raises:
        UserError: The data set has no `tests` column, a row of it cannot be read, or no sandbox can run here.
    """
    if tests is None:
        raise UserError("code_reward needs a data set with a 'tests' column: rename the column that holds the tests.")
    requests = [
        (completion if isinstance(completion, str) else last_text(completion), *_dialect_and_fields(row))
        for completion, row in zip(completions, tests, strict=True)
    ]
    verdicts = _verifier().verify_all(requests)
    if log_extra is not None:
        log_extra("extracted", [verdict.extracted or "" for verdict in verdicts])
        log_extra("verdict", [verdict.reason for verdict in verdicts])
        log_extra("feedback", [verdict.feedback for verdict in verdicts])
    return [float(verdict.correct) for verdict in verdicts]


def _dialect_and_fields(row: Any) -> tuple[str, Mapping[str, Any]]:
    try:
        value = json.loads(row) if isinstance(row, str) else row
    except ValueError as error:
        raise UserError(f"A row of the 'tests' column is no JSON ({error}): mend it.") from error
    if isinstance(value, Mapping) and "dialect" in value:
        return value["dialect"], {name: item for name, item in value.items() if name != "dialect"}
    if isinstance(value, list) and value and all(isinstance(item, str) for item in value):
        return "mbpp", {"test_list": value}
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return "stdin", {"tests": value}
    raise UserError(
        "A row of the 'tests' column is neither a list of asserts, nor a list of inputs and outputs, nor a mapping "
        "with a 'dialect': mend it."
    )
