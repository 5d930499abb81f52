"""trl_opd: on-policy (self-)distillation trainers on top of TRL, and a harness to compare them."""

from importlib import import_module

__version__ = "0.1.0"

#: Public name -> its module. Loaded on first use: the harness and the command line must not wait for TRL.
_LAZY = {
    "GRPOConfig": "configs",
    "DrGRPOConfig": "configs",
    "DAPOConfig": "configs",
    "GRPOEMAConfig": "configs",
    "OPDConfig": "configs",
    "OPSDConfig": "configs",
    "SDPOConfig": "configs",
    "SRPOConfig": "configs",
    "ExOPDConfig": "configs",
    "SCOPEConfig": "configs",
    "MixConfig": "configs",
    "GRPOTrainer": "trainer",
    "DrGRPOTrainer": "trainer",
    "DAPOTrainer": "trainer",
    "GRPOEMATrainer": "trainer",
    "OPDTrainer": "trainer",
    "OPSDTrainer": "trainer",
    "SDPOTrainer": "trainer",
    "SRPOTrainer": "trainer",
    "ExOPDTrainer": "trainer",
    "SCOPETrainer": "trainer",
    "MixTrainer": "trainer",
    "OnPolicyTrainer": "trainer",
    "Objective": "objectives",
    "DiscoverConfig": "discover",
    "DiscoverTrainer": "discover",
    "SFTConfig": "sft",
    "SFTTrainer": "sft",
    "RFTConfig": "rft",
    "RFTTrainer": "rft",
    "UserError": "errors",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str):
    if name not in _LAZY:
        raise AttributeError(f"module 'trl_opd' has no attribute {name!r}")
    if name != "UserError":
        import_module("trl_opd.versions").check_versions()
    return getattr(import_module(f"trl_opd.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
