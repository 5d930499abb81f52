"""The table of methods: what the command line, the docs and the boards may name."""

from dataclasses import dataclass
from importlib import import_module
from typing import Literal

from trl_opd import user_code
from trl_opd.errors import UserError
from trl_opd.suggest import suggest


@dataclass(frozen=True)
class Method:
    """One line on a method, and its classes: public names of `trl_opd`, or `module:Class` from outside.

    An on-policy method learns from the student's rollouts of the moment and has an objective in `trl_opd.objectives`;
    an off-policy one learns from completions that are there before the first step, by TRL's `SFTTrainer`.
    """

    trainer: str
    config: str
    summary: str
    kind: Literal["on-policy", "off-policy"] = "on-policy"


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
    "sft": Method("SFTTrainer", "SFTConfig", "likelihood of the reference solutions", "off-policy"),
    "rft": Method("RFTTrainer", "RFTConfig", "likelihood of the start model's own right completions", "off-policy"),
    "mix": Method("MixTrainer", "MixConfig", "any combination of teacher, context, divergence, routing and weighting"),
}


def method(name: str) -> Method:
    """The method of a name; `module:Trainer` is one from outside the package, and is imported.

    Raises:
        `UserError`: If there is none, with the nearest known name.
    """
    if ":" in name:
        return _from_outside(name)
    if name not in METHODS:
        raise UserError(
            f"There is no method {name!r}{suggest(name, METHODS)}; use one of {', '.join(METHODS)}, or module:Trainer "
            "for one of your own."
        )
    return METHODS[name]


def load(name: str) -> type:
    """The class that a `Method` names."""
    return user_code.find(name, "class") if ":" in name else getattr(import_module("trl_opd"), name)


def _from_outside(name: str) -> Method:
    trainer = user_code.find(name, "trainer")
    if not (isinstance(trainer, type) and hasattr(trainer, "config_class") and hasattr(trainer, "method")):
        raise UserError(f"{name} is no method; name a subclass of trl_opd.OnPolicyTrainer with an objective_class.")
    known = METHODS.get(trainer.method)
    config = known.config if known else f"{trainer.config_class.__module__}:{trainer.config_class.__name__}"
    return Method(name, config, (trainer.__doc__ or "a method of your own").strip().splitlines()[0])
