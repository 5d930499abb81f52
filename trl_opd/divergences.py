"""Per-token divergences between a student p and a teacher q, as pure functions.

Everything here takes log-probabilities `[N, V]` (or those of the sampled tokens, `[N]`) and returns one value in nats
for each of the N tokens: no mask, no reduction, no logging. Gradients flow to the student only; callers detach the
teacher, and `q` below always means the detached teacher.

One convention for the interpolation number, shared with OPSD (`beta`), SDPO (`alpha`) and TRL:

    D_0 = KL(q || p)                                     forward: the teacher stands outside
    D_1 = KL(p || q)                                     reverse: the student stands outside
    0 < b < 1:  m = b q + (1 - b) p,   D_b = b KL(q || m) + (1 - b) KL(p || m)

The end points are special cases and not the limits of D_b, which tends to 0 on both sides: a sweep over b also sweeps
the size of the gradient. Gradients with respect to the student's logits z (the tests hold autograd to them, and
`trl_opd.closed_forms` computes them without a graph):

    dD_0/dz = p - q
    dD_1/dz = p (ln p - ln q - KL(p || q))
    dD_b/dz = (1 - b) p (ln p - ln m - KL(p || m))
"""

import math

import torch
from torch import Tensor


def forward_kl(student_logps_NV: Tensor, teacher_logps_NV: Tensor, entry_clip: float | None = None) -> Tensor:
    """Per-token KL(teacher || student) over the vocabulary, optionally clipped entry by entry.

    With `entry_clip` = tau this is the OPSD objective (https://huggingface.co/papers/2601.18734, v3, section 3): every
    summand q ln(q / p) is capped at tau before the sum over the vocabulary. The clipped value can be negative, and a
    capped entry is pushed down although the teacher wants it up: with U the entries below the cap and Q_U their teacher
    mass, the gradient with respect to logit j is p_j Q_U - q_j [j in U].

    Args:
        student_logps_NV (`torch.Tensor`): Log-probabilities of the student, `[N, V]`.
        teacher_logps_NV (`torch.Tensor`): Log-probabilities of the teacher, `[N, V]`; -inf marks an impossible token.
        entry_clip (`float`, *optional*): Cap on each summand, in nats.

    Returns:
        `torch.Tensor`: Divergence in nats, `[N]`.
    """
    summands = _weighted_log_ratio(teacher_logps_NV, teacher_logps_NV, student_logps_NV)
    if entry_clip is not None:
        summands = summands.clamp(max=entry_clip)
    return summands.sum(-1)


def reverse_kl(student_logps_NV: Tensor, teacher_logps_NV: Tensor) -> Tensor:
    """Per-token KL(student || teacher) over the vocabulary, `[N, V]` -> `[N]`, in nats."""
    return _weighted_log_ratio(student_logps_NV, student_logps_NV, teacher_logps_NV).sum(-1)


def generalized_jsd(student_logps_NV: Tensor, teacher_logps_NV: Tensor, beta: float) -> Tensor:
    """Per-token D_beta over the vocabulary, `[N, V]` -> `[N]`, in nats; beta 0 is the forward KL and 1 the reverse KL.

    Bounded by -b ln b - (1 - b) ln(1 - b). The mixture is differentiated through: detaching it in both terms changes
    nothing (it is the minimiser of the sum), detaching it in one term only would give a wrong gradient.

    Raises:
        `ValueError`: If `beta` is outside [0, 1].
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"beta is {beta}, but the divergence is defined on [0, 1]: 0 forward KL, 1 reverse KL.")
    if beta == 0.0:
        return forward_kl(student_logps_NV, teacher_logps_NV)
    if beta == 1.0:
        return reverse_kl(student_logps_NV, teacher_logps_NV)
    # A token that is impossible on both sides adds nothing; its logaddexp would have no gradient (inf - inf).
    impossible = torch.isneginf(teacher_logps_NV) & torch.isneginf(student_logps_NV)
    teacher, student = (side.masked_fill(impossible, 0.0) for side in (teacher_logps_NV, student_logps_NV))
    mixture_logps_NV = torch.logaddexp(teacher + math.log(beta), student + math.log1p(-beta))
    from_teacher = _weighted_log_ratio(teacher_logps_NV, teacher_logps_NV, mixture_logps_NV).sum(-1)
    from_student = _weighted_log_ratio(student_logps_NV, student_logps_NV, mixture_logps_NV).sum(-1)
    return beta * from_teacher + (1.0 - beta) * from_student


def sampled_reverse_kl(student_logps_N: Tensor, teacher_logps_N: Tensor) -> Tensor:
    """Score-function estimator of the reverse KL's gradient, from the log-probabilities of the sampled tokens, `[N]`.

    sg[ln p(y) - ln q(y)] ln p(y) with y drawn from p: the expectation of its gradient is the gradient of KL(p || q) at
    that position. Its value means nothing (log ln p - ln q instead), and it is token-local: the log-ratios of future
    tokens are dropped, as in G-OPD (https://huggingface.co/papers/2602.12125, eq. 5-6).
    """
    return (student_logps_N - teacher_logps_N).detach() * student_logps_N


def k2(student_logps_N: Tensor, teacher_logps_N: Tensor) -> Tensor:
    """(ln p - ln q)^2 / 2 on the sampled tokens, `[N]`: its gradient's expectation is that of the reverse KL."""
    return (student_logps_N - teacher_logps_N).square() / 2.0


def k3(student_logps_N: Tensor, teacher_logps_N: Tensor) -> Tensor:
    """q/p - ln(q/p) - 1 on the sampled tokens, `[N]`: the value of KL(p || q), but the gradient of KL(q || p)."""
    log_ratio = teacher_logps_N - student_logps_N
    return log_ratio.exp() - log_ratio - 1.0


def clipped_reverse_kl(student_logps_NV: Tensor, teacher_logps_NV: Tensor, advantage_clip: float) -> Tensor:
    """Per-token reverse KL whose log-ratios ln q(v) - ln p(v), SDPO's advantages, are clipped to +-`advantage_clip`.

    sum_v p(v) sg[-clip(ln q(v) - ln p(v))]: without a clip its gradient is that of the reverse KL. The form of the clip
    at test time is our reading of SDPO (https://huggingface.co/papers/2601.20802, section 5), which gives its size.
    """
    advantages = (teacher_logps_NV - student_logps_NV).detach().clamp(-advantage_clip, advantage_clip)
    return -(student_logps_NV.exp() * advantages).sum(-1)


def truncated_support(
    student_logps_NV: Tensor, teacher_logps_NV: Tensor, k: int, owner: str, tail: bool
) -> tuple[Tensor, Tensor]:
    """Both distributions over the k likeliest tokens of one side, as log-probabilities of proper distributions.

    With `tail` the rest of the vocabulary is one more category, which makes the divergence a lower bound of the full
    one; without it both sides are renormalised on the k tokens, blind to the mass outside (objectives of SDPO and of
    OPSD's early code).

    Args:
        student_logps_NV, teacher_logps_NV (`torch.Tensor`): Log-probabilities, `[N, V]`.
        k (`int`): Number of tokens, at most V.
        owner (`str`): Whose likeliest tokens: "student" or "teacher".
        tail (`bool`): Whether the rest is a category of its own.

    Returns:
        `tuple`: Student and teacher, `[N, k + 1]` with the tail, else `[N, k]`.
    """
    owned = student_logps_NV if owner == "student" else teacher_logps_NV
    support = owned.detach().topk(k, dim=-1).indices
    student, teacher = (proper(side.gather(-1, support), tail) for side in (student_logps_NV, teacher_logps_NV))
    return student, teacher


def proper(kept_logps_NK: Tensor, tail: bool) -> Tensor:
    """A distribution from the log-probabilities of a part of it: with the rest as one more category, or renormalised.

    Args:
        kept_logps_NK (`torch.Tensor`): Log-probabilities of the kept tokens, `[N, K]`.
        tail (`bool`): Whether the rest is a category of its own.

    Returns:
        `torch.Tensor`: `[N, K + 1]` with the tail, else `[N, K]`.
    """
    return torch.cat([kept_logps_NK, tail_logp(kept_logps_NK)], -1) if tail else kept_logps_NK.log_softmax(-1)


def tail_logp(kept_logps_NK: Tensor) -> Tensor:
    """ln(1 - sum of the kept probabilities), `[N, K]` -> `[N, 1]`; the sum is held below 1 by 1e-7."""
    kept = torch.logsumexp(kept_logps_NK, -1, keepdim=True).clamp(max=-1e-7)
    return torch.log(-torch.expm1(kept))


def entropy(logps_NV: Tensor) -> Tensor:
    """Per-token entropy of a distribution given by its log-probabilities, `[N, V]` -> `[N]`, in nats."""
    # 0 ln 0 = 0: a finite bound in place of -inf, so that the product is 0 and not nan.
    return -(logps_NV.exp() * logps_NV.clamp(min=torch.finfo(logps_NV.dtype).min)).sum(-1)


def entry_clip_fraction(student_logps_NV: Tensor, teacher_logps_NV: Tensor, entry_clip: float) -> Tensor:
    """Teacher mass on the entries that OPSD's cap mutes (1 - Q_U), `[N, V]` -> `[N]`: 1 means no signal is left."""
    summands = _weighted_log_ratio(teacher_logps_NV, teacher_logps_NV, student_logps_NV)
    return (teacher_logps_NV.exp() * (summands > entry_clip)).sum(-1)


def _weighted_log_ratio(weight_logps: Tensor, numerator_logps: Tensor, denominator_logps: Tensor) -> Tensor:
    """exp(weight) (numerator - denominator) for each entry, with 0 ln 0 = 0 in the value and in the gradient."""
    impossible = torch.isneginf(weight_logps)
    ratio = torch.where(impossible, 0.0, numerator_logps - denominator_logps)
    return torch.where(impossible, 0.0, weight_logps).exp() * ratio
