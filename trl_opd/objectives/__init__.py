"""The methods: one file each, and the one table from name to objective.

A new method is a file with an `Objective`, a config in `trl_opd.configs`, a line in the tables and a test; see
CONTRIBUTING.md.
"""

from trl_opd.objectives.base import Objective
from trl_opd.objectives.divergence import Divergence
from trl_opd.objectives.exopd import ExOPD
from trl_opd.objectives.grpo import DAPO, GRPO, DrGRPO
from trl_opd.objectives.grpo_ema import GRPOEMA
from trl_opd.objectives.mix import Mix
from trl_opd.objectives.opd import OPD
from trl_opd.objectives.opsd import OPSD
from trl_opd.objectives.scope import SCOPE
from trl_opd.objectives.sdpo import SDPO
from trl_opd.objectives.srpo import SRPO

#: Name of a method -> its objective.
OBJECTIVES: dict[str, type[Objective]] = {
    objective.name: objective for objective in (GRPO, DrGRPO, DAPO, GRPOEMA, OPD, OPSD, SDPO, SRPO, ExOPD, SCOPE, Mix)
}

__all__ = [
    "DAPO",
    "GRPO",
    "GRPOEMA",
    "OBJECTIVES",
    "OPD",
    "OPSD",
    "SCOPE",
    "SDPO",
    "SRPO",
    "Divergence",
    "DrGRPO",
    "ExOPD",
    "Mix",
    "Objective",
]
