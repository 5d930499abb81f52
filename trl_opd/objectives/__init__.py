"""The methods: one file each, and the one table from name to objective.

A new method is a file with an `Objective`, a config in `trl_opd.configs`, a line in `METHODS` and a test; see
CONTRIBUTING.md.
"""

from trl_opd.objectives.base import Divergence, Objective
from trl_opd.objectives.grpo import GRPO
from trl_opd.objectives.opd import OPD
from trl_opd.objectives.opsd import OPSD

#: Name of a method -> its objective.
OBJECTIVES: dict[str, type[Objective]] = {objective.name: objective for objective in (GRPO, OPD, OPSD)}

__all__ = ["GRPO", "OBJECTIVES", "OPD", "OPSD", "Divergence", "Objective"]
