"""One scorer for rewards and for evaluation."""

from trl_opd.verify.math import MathVerifier, Verdict, scorer_version

__all__ = ["MathVerifier", "Verdict", "scorer_version"]
