"""Functions and classes of the user's own, named on the command line or in a recipe."""

import sys
from importlib import import_module
from typing import Any

from trl_opd.errors import UserError


def find(name: str, what: str) -> Any:
    """What `module.attribute` or `module:attribute` names; modules beside the current folder are found.

    Args:
        name (`str`): The name.
        what (`str`): What it should be, for the message.

    Raises:
        `UserError`: If there is no such module, or nothing of that name in it.
    """
    module, _, attribute = name.rpartition(":" if ":" in name else ".")
    if "" not in sys.path:  # the console script starts with its own folder there, not with the user's
        sys.path.insert(0, "")
    try:
        found = import_module(module)
    except ModuleNotFoundError as error:
        # A module that the user's own one asks for in vain is not the user's typing error.
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise UserError(
                f"{module}, which is to hold the {what} {name!r}, needs {error.name}: install it."
            ) from error
        raise UserError(
            f"There is no module {module!r} for the {what} {name!r}; start where it lies, or check the name."
        ) from error
    except ValueError as error:
        raise UserError(f"{name!r} names no {what}; write it as module.name.") from error
    if not hasattr(found, attribute):
        raise UserError(f"The module {module} has no {attribute!r}, which is to be the {what}; check the name.")
    return getattr(found, attribute)
