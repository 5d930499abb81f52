"""The table of methods: what the command line, the docs and the boards may name."""

from dataclasses import dataclass

from trl_opd.errors import UserError
from trl_opd.suggest import suggest


@dataclass(frozen=True)
class Method:
    """A method's public names in `trl_opd` and one line on what it does."""

    trainer: str
    config: str
    summary: str


METHODS = {
    "grpo": Method("GRPOTrainer", "GRPOConfig", "rewards alone: the baseline, equal to TRL's GRPOTrainer"),
    "dr_grpo": Method("DrGRPOTrainer", "DrGRPOConfig", "GRPO without division by deviation and by length"),
    "dapo": Method("DAPOTrainer", "DAPOConfig", "GRPO with a higher clip, a mean over tokens, overlong filtering"),
    "grpo_ema": Method("GRPOEMATrainer", "GRPOEMAConfig", "GRPO held to a moving average of the policy"),
    "opd": Method("OPDTrainer", "OPDConfig", "an external teacher scores the student's rollouts"),
    "opsd": Method("OPSDTrainer", "OPSDConfig", "the model itself, having read the reference solution, is the teacher"),
    "sdpo": Method("SDPOTrainer", "SDPOConfig", "the model itself, having read a successful sibling or feedback"),
    "srpo": Method("SRPOTrainer", "SRPOConfig", "wrong rollouts as in SDPO, the others as in GRPO"),
    "exopd": Method("ExOPDTrainer", "ExOPDConfig", "beyond an external teacher, away from a reference"),
    "scope": Method("SCOPETrainer", "SCOPEConfig", "likelihood on right rollouts, an external teacher on wrong ones"),
    "mix": Method("MixTrainer", "MixConfig", "any combination of teacher, context, divergence, routing and weighting"),
}


def method(name: str) -> Method:
    """The method of a name.

    Raises:
        `UserError`: If there is none, with the nearest known name.
    """
    if name not in METHODS:
        raise UserError(f"There is no method {name!r}{suggest(name, METHODS)}; use one of {', '.join(METHODS)}.")
    return METHODS[name]
