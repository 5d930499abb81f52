"""One scorer for rewards and for evaluation."""

from trl_opd.verify.base import Verdict
from trl_opd.verify.math import MathVerifier, scorer_version

__all__ = ["MathVerifier", "Verdict", "scorer_version"]
