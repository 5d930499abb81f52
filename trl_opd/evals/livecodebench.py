"""LiveCodeBench's rows brought to its evaluator's form: inputs, outputs and the name of the function to call."""

import base64
import binascii
import io
import json
import pickle
import zlib
from collections.abc import Mapping
from typing import Any

from trl_opd.errors import UserError


def evaluation_sample(row: Mapping[str, Any]) -> dict[str, Any]:
    """All tests of a row, public ones first.

    Args:
        row (`Mapping`): A row with the evaluator's own `evaluation_sample`, or one of the Hub's with
            `public_test_cases`, `private_test_cases` and `metadata`, each JSON; the private ones may be packed.

    Returns:
        `dict`: `inputs` and `outputs`, lists of texts of one length, and `fn_name`, `None` where the program reads
        its input from stdin.

    Raises:
        UserError: The row has no tests or they cannot be read.
    """
    try:
        sample = row["evaluation_sample"] if "evaluation_sample" in row else _from_hub(row)
        sample = json.loads(sample) if isinstance(sample, str) else sample
        whole = {"inputs": list(sample["inputs"]), "outputs": list(sample["outputs"]), "fn_name": sample["fn_name"]}
    except (KeyError, TypeError, ValueError, binascii.Error, zlib.error, pickle.UnpicklingError, EOFError) as error:
        raise UserError(
            "A LiveCodeBench row has no tests that can be read: it needs evaluation_sample, or public_test_cases, "
            "private_test_cases and metadata."
        ) from error
    if not whole["inputs"] or len(whole["inputs"]) != len(whole["outputs"]):
        raise UserError("A LiveCodeBench row has no tests, or not one output for each input: get the data again.")
    return whole


def _from_hub(row: Mapping[str, Any]) -> dict[str, Any]:
    tests = [*json.loads(row["public_test_cases"]), *_private_tests(row["private_test_cases"])]
    metadata = json.loads(row["metadata"] or "{}")
    return {
        "inputs": [test["input"] for test in tests],
        "outputs": [test["output"] for test in tests],
        "fn_name": metadata.get("func_name"),
    }


def _private_tests(text: str) -> list[dict[str, Any]]:
    """JSON as it is, or packed: base64 over zlib over a pickled string of JSON."""
    if text.lstrip().startswith("["):
        return json.loads(text)
    return json.loads(_TextUnpickler(io.BytesIO(zlib.decompress(base64.b64decode(text)))).load())


class _TextUnpickler(pickle.Unpickler):
    """Reads text and plain containers alone: a pickle that names any class or function is refused."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is not data")
