"""Recorded losses of the methods' own released code, against what our losses make of the same inputs.

A file holds blocks of tensors and cases: the settings of one loss, its value and its gradient with respect to the
student's logits. Every case goes through what the trainers call (the objective's routing, divergence and target, and
`token_weights`), in float64 and on two paths: `dense` takes whole log-probabilities, `tiled` goes through `token_loss`
with an identity matrix for a head, so that the hidden states are the logits.
"""

import json
import math
from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from trl_opd.aggregation import Window, count, token_weights
from trl_opd.configs import ExOPDConfig, OPSDConfig, SDPOConfig
from trl_opd.defaults import default_of
from trl_opd.errors import UserError
from trl_opd.loss import LOG_RATIO_LIMIT, Tokens, token_loss
from trl_opd.objectives.base import Objective
from trl_opd.objectives.exopd import ExOPD
from trl_opd.objectives.opsd import OPSD
from trl_opd.objectives.sdpo import SDPO
from trl_opd.rollouts import Rollouts
from trl_opd.suggest import suggest
from trl_opd.tiled import Head

FORMAT = 1
TOLERANCE = 1e-9

#: Name of a reduction in the files -> ours. A block is one micro-batch.
AGGREGATIONS = {
    "mean over completion tokens": "token-micro",
    "token-mean": "token-micro",
    "seq-mean-token-mean": "seq-mean-live",
}


@dataclass(frozen=True)
class Case:
    """One recorded loss.

    Attributes:
        name (`str`): Where it is in the file.
        settings (`dict`): Its fields except for the outputs.
        loss (`float`): Recorded value; nan where the denominator is empty.
        gradient (`torch.Tensor`): Recorded d loss / d student logits, `[B, T, V]`.
    """

    name: str
    settings: dict[str, Any]
    loss: float
    gradient: Tensor

    @property
    def method(self) -> str:
        return self.settings["method"]

    @property
    def temperature(self) -> float:
        return self.settings.get("temperature") or 1.0


@dataclass(frozen=True)
class Block:
    """Inputs that several cases share.

    Attributes:
        student, teacher, reference (`torch.Tensor`): Logits in float64, `[B, T, V]`.
        ids (`torch.Tensor`): Sampled tokens, `[B, T]`.
        mask (`torch.Tensor`): 1 on completion tokens, `[B, T]`.
        old_noise (`torch.Tensor`): Rollout-time log-probability of the sampled token minus the current, `[B, T]`.
        has_teacher (`torch.Tensor`): Rows with a teacher context, bool `[B]`.
        cases (`list[Case]`): At least one.
    """

    student: Tensor
    teacher: Tensor
    reference: Tensor
    ids: Tensor
    mask: Tensor
    old_noise: Tensor
    has_teacher: Tensor
    cases: list[Case]


@dataclass(frozen=True)
class Result:
    """What came of one case (of a method) on one path.

    Attributes:
        live (`bool`, *optional*): Whether any token carries weight; None where the case could not be run.
        undefined (`bool`): Whether the recorded loss is nan.
        loss_error, gradient_error (`float`, *optional*): Largest absolute errors; None where none is defined.
        failure (`str`, *optional*): Why it fails; None if it passes.
    """

    case: str
    method: str
    path: str
    live: bool | None = None
    undefined: bool = False
    loss_error: float | None = None
    gradient_error: float | None = None
    failure: str | None = None


# The file


def load(path: Path) -> list[Block]:
    """The blocks of a file.

    Raises:
        `UserError`: If it cannot be read, or if its format, a field or a shape is not what it must be.
    """
    try:
        content = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); check the path.") from error
    except ValueError as error:
        raise UserError(f"{path} is no JSON ({error}); pass a file of recorded losses.") from error
    found = content.get("format") if isinstance(content, dict) else None
    if found != FORMAT:
        raise UserError(f"{path} is of format {found!r}, but only {FORMAT} is known; pass a file of recorded losses.")
    blocks = [_block(raw, f"block {index}") for index, raw in enumerate(_field(content, "blocks", list, "the file"))]
    if not any(block.cases for block in blocks):
        raise UserError(f"{path} holds no case: there is nothing to compare; pass a file with recorded losses.")
    return blocks


def _block(raw: Any, where: str) -> Block:
    shape = _field(raw, "shape", list, where)
    if len(shape) != 3 or any(type(size) is not int or size < 1 for size in shape):
        raise UserError(f"{where}: shape is {shape}, but must be three positive integers [B, T, V]; mend the file.")
    rows, positions, vocabulary = shape
    inputs = _field(raw, "inputs", dict, where)

    def read(name: str, *wanted: int) -> Tensor:
        return _tensor(_field(inputs, name, list, where), wanted, f"{where}, {name}")

    ids = read("completion_ids", rows, positions)
    if ((ids != ids.round()) | (ids < 0) | (ids >= vocabulary)).any():
        raise UserError(f"{where}: completion_ids holds no token ids from 0 to {vocabulary - 1}; mend the file.")
    mask, has_teacher = read("completion_mask", rows, positions), read("has_teacher", rows)
    for name, flags in (("completion_mask", mask), ("has_teacher", has_teacher)):
        if ((flags != 0) & (flags != 1)).any():
            raise UserError(f"{where}: {name} holds other values than 0 and 1; mend the file.")
    cases = _field(raw, "cases", list, where)
    return Block(
        student=read("student_logits", *shape),
        teacher=read("teacher_logits", *shape),
        reference=read("ref_logits", *shape),
        ids=ids.long(),
        mask=mask,
        old_noise=read("old_noise", rows, positions),
        has_teacher=has_teacher.bool(),
        cases=[_case(case, shape, f"{where}, case {index}") for index, case in enumerate(cases)],
    )


def _case(raw: Any, shape: list[int], where: str) -> Case:
    method = _field(raw, "method", str, where)
    needed = METHODS[method][-1] if method in METHODS else None
    for name in ("beta", "alpha", "lam", "temperature", "top_k", "is_clip"):
        if name == needed or raw.get(name) is not None:
            _field(raw, name, int if name == "top_k" else (int, float), where)
    if not (raw.get("temperature") or 1.0) > 0.0:
        raise UserError(f"{where}: temperature is {raw['temperature']}, but it divides logits; mend the file.")
    # JSON has no nan: a writer that keeps to the standard leaves null.
    loss = math.nan if "loss" in raw and raw["loss"] is None else _field(raw, "loss", (int, float), where)
    settings = {name: value for name, value in raw.items() if name not in ("loss", "grad_student_logits")}
    gradient = _tensor(_field(raw, "grad_student_logits", list, where), shape, f"{where}, grad_student_logits")
    return Case(f"{where} ({method})", settings, loss, gradient)


def _field(record: Any, name: str, kind: type | tuple[type, ...], where: str) -> Any:
    if not isinstance(record, dict) or name not in record:
        raise UserError(f"{where} has no {name!r}; mend the file.")
    if not isinstance(record[name], kind) or isinstance(record[name], bool):
        raise UserError(f"{where}: {name} is a {type(record[name]).__name__}, which it must not be; mend the file.")
    return record[name]


def _tensor(values: list, shape: tuple[int, ...] | list[int], where: str) -> Tensor:
    try:
        tensor = torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError) as error:
        raise UserError(f"{where} is no regular array of numbers; mend the file.") from error
    if list(tensor.shape) != list(shape):
        raise UserError(f"{where} has the shape {list(tensor.shape)} instead of {list(shape)}; mend the file.")
    return tensor


# The objective that a case describes

#: Name in the files -> our objective, its configuration, and the field without which a case says nothing.
METHODS: dict[str, tuple[type[Objective], type, str | None]] = {
    "opsd": (OPSD, OPSDConfig, "beta"),
    "opsd_sampled": (OPSD, OPSDConfig, None),
    "sdpo": (SDPO, SDPOConfig, "alpha"),
    "sdpo_sampled": (SDPO, SDPOConfig, None),
    "exopd_sampled": (ExOPD, ExOPDConfig, "lam"),
}

SAMPLED = {"divergence": "reverse_kl", "jsd_beta": None, "estimator": "k1", "support_size": None}


def _objective(case: Case) -> Objective:
    kind, config, needed = METHODS[case.method]
    # A configuration's defaults, without the training arguments' search for an accelerator.
    options = {f.name: default_of(f) for f in fields(config)}
    options |= SAMPLED if case.method.endswith("_sampled") else _over_vocabulary(case, case.settings[needed])
    options |= {
        "entry_clip": None,
        "importance_cap": case.settings.get("is_clip"),
        "extrapolation": case.settings.get("lam"),
    }
    return kind(SimpleNamespace(**options))


def _over_vocabulary(case: Case, number: float) -> dict[str, Any]:
    """Options for 0 forward KL, 1 reverse KL, else the generalised JSD, over the case's support."""
    top_k = case.settings.get("top_k")
    return {
        "divergence": {0: "forward_kl", 1: "reverse_kl"}.get(number, "jsd"),
        "jsd_beta": None if number in (0, 1) else float(number),
        "estimator": "topk" if top_k else "full",
        "support_size": top_k or None,
        "support_owner": case.settings.get("support") or ("teacher" if case.method == "opsd" else "student"),
        "support_tail": bool(case.settings.get("add_tail")),
    }


@dataclass(frozen=True)
class Setup:
    """A case made ready for both paths.

    Attributes:
        objective, temperature: Whose divergence, target and cap act; what divides all logits.
        weights (`torch.Tensor`): Routing times reduction, `[B, T]`.
        scorers (`list[torch.Tensor]`): The scorers' logits, `[B, T, V]` each.
        old_logps (`torch.Tensor`, *optional*): Of the sampled tokens at rollout time, `[B, T]`.
        log_ratio_value (`bool`): Whether the recorded value is the mean log-ratio. G-OPD's surrogate is sg[A] times
            p / sg[p], ours sg[A] ln p: one gradient, but another value, which is why the trainers log the log-ratio.
    """

    objective: Objective
    temperature: float
    weights: Tensor
    scorers: list[Tensor]
    old_logps: Tensor | None
    log_ratio_value: bool


def prepare(block: Block, case: Case) -> Setup:
    """What both paths need of a case.

    Raises:
        `UserError`: If the method, the reduction or a setting of it is not among ours.
    """
    if case.method not in METHODS:
        raise UserError(f"There is no method {case.method!r} here{suggest(case.method, METHODS)}.")
    reduction = case.settings.get("aggregation") or "token-mean"
    if reduction not in AGGREGATIONS:
        raise UserError(f"There is no aggregation {reduction!r} here{suggest(reduction, AGGREGATIONS)}.")
    objective = _objective(case)
    has_context = block.has_teacher if isinstance(objective, SDPO) else torch.ones_like(block.has_teacher)
    old_logps = None
    if case.settings.get("is_clip") is not None and isinstance(objective, SDPO):
        old_logps = _sampled(_logps(block.student, case.temperature), block.ids) + block.old_noise
    return Setup(
        objective=objective,
        temperature=case.temperature,
        weights=_weights(block, objective, has_context, AGGREGATIONS[reduction]),
        scorers=[block.teacher, block.reference] if objective.uses_reference else [block.teacher],
        old_logps=old_logps,
        log_ratio_value=isinstance(objective, ExOPD),
    )


def _weights(block: Block, objective: Objective, has_context: Tensor, aggregation: str) -> Tensor:
    rows = len(block.mask)
    rollouts = Rollouts(
        examples=[{}] * rows,
        prompts=[""] * rows,
        own=[],
        siblings=[],
        position=[],
        feedback=[],
        feedback_reported=False,
        mask=block.mask,
        advantages=torch.zeros(rows),
    )
    signals = objective.route(rollouts, has_context)
    counted = block.mask * signals.counted[:, None]
    tokens, live_rows = count(counted)
    window = Window(tokens, live_rows, micro_batches=1, processes=1, max_completion_length=block.mask.shape[1])
    return signals.kl[:, None] * block.mask * token_weights(counted, aggregation, window)


# The two paths: the loss and its gradient with respect to the student's logits


def dense(block: Block, setup: Setup) -> tuple[Tensor, Tensor]:
    """On whole log-probabilities of all positions."""
    logits = block.student.clone().requires_grad_()
    student, *scorers = (_logps(side, setup.temperature).flatten(0, 1) for side in (logits, *setup.scorers))
    ids, weights = block.ids.flatten(), setup.weights.flatten()
    sampled = _sampled(student, ids)
    if setup.old_logps is not None:
        log_ratio = (sampled.detach() - setup.old_logps.flatten()).clamp(-LOG_RATIO_LIMIT, LOG_RATIO_LIMIT)
        weights = weights * log_ratio.exp().clamp(max=setup.objective.importance_cap)
    divergence = setup.objective.divergence
    if divergence.sampled:
        target = setup.objective.target([_sampled(scorer, ids) for scorer in scorers])
        loss = (weights * divergence.on_sampled(sampled, target)).sum()
    else:
        loss = (weights * divergence.over_vocabulary(student, setup.objective.target(scorers))).sum()
    (gradient,) = torch.autograd.grad(loss, logits)
    value = (weights * (sampled - target)).sum() if setup.log_ratio_value else loss
    return value.detach(), gradient


def tiled(block: Block, setup: Setup) -> tuple[Tensor, Tensor]:
    """Through the trainers' `token_loss`, on the unmasked positions."""
    mask = block.mask.bool()
    logits = block.student.clone().requires_grad_()
    head = Head(torch.eye(logits.shape[-1], dtype=logits.dtype), bias=None, temperature=setup.temperature)
    weights, ids = setup.weights[mask], block.ids[mask]
    zeros = torch.zeros_like(weights)
    tokens = Tokens(
        ids=ids,
        pg=zeros,
        kl=weights,
        ce=zeros,
        penalty=zeros,
        advantages=zeros,
        old_logps=None if setup.old_logps is None else setup.old_logps[mask],
        ref_logps=None,
        scorer_logps=[_sampled(_logps(scorer[mask], setup.temperature), ids) for scorer in setup.scorers],
        scorer_hidden=[] if setup.objective.divergence.sampled else [scorer[mask] for scorer in setup.scorers],
    )
    heads = [head] * len(tokens.scorer_hidden)
    loss, facts = token_loss(logits[mask], head, tokens, setup.objective, None, heads)
    (gradient,) = torch.autograd.grad(loss, logits)
    value = (weights * facts["distill/log_ratio"]).sum() if setup.log_ratio_value else loss
    return value.detach(), gradient


PATHS = {"dense": dense, "tiled": tiled}


def _logps(logits: Tensor, temperature: float) -> Tensor:
    return (logits / temperature).log_softmax(-1)


def _sampled(logps: Tensor, ids: Tensor) -> Tensor:
    return logps.gather(-1, ids[..., None]).squeeze(-1)


# The comparison


def compare(blocks: list[Block], tolerance: float = TOLERANCE) -> list[Result]:
    """Every case on every path, in the order of the file."""
    return [_result(block, case, path, tolerance) for block in blocks for case in block.cases for path in PATHS]


def _result(block: Block, case: Case, path: str, tolerance: float) -> Result:
    name, undefined = {"case": case.name, "method": case.method, "path": path}, math.isnan(case.loss)
    try:
        setup = prepare(block, case)
        loss, gradient = PATHS[path](block, setup)
    except UserError as error:
        return Result(**name, undefined=undefined, failure=str(error))
    known = name | {"live": bool(setup.weights.any()), "undefined": undefined}
    if undefined:
        return Result(**known, failure=_empty_failure(setup, loss, gradient, case))
    errors = {"loss_error": _worst(loss - case.loss), "gradient_error": _worst(gradient - case.gradient)}
    wrong = [f"{kind.replace('_', ' ')} {error:.2e}" for kind, error in errors.items() if not error <= tolerance]
    return Result(**known, **errors, failure=" and ".join(wrong) or None)


def _empty_failure(setup: Setup, loss: Tensor, gradient: Tensor, case: Case) -> str | None:
    """A recorded nan says that the denominator is empty; then ours must have no live token, and no gradient."""
    if live := int(setup.weights.count_nonzero()):
        return f"the recorded loss is nan, an empty denominator, but here {live} tokens carry weight"
    if loss != 0 or gradient.any() or case.gradient.nan_to_num(0.0).any():
        return "the recorded loss is nan, an empty denominator, but there is a gradient"
    return None


def _worst(errors: Tensor) -> float:
    """The largest absolute error; nan is infinitely wrong."""
    return errors.abs().nan_to_num(nan=math.inf).max().item()
