"""Time and memory of whole optimizer steps on rollouts of ragged lengths, against TRL's SDPO trainer.

    python benchmarks/step_speed.py [--quick] [--json FILE] [--plot FILE]

Four micro-batches of eight rows, completion lengths lognormal with mean 97 and cap 512, a vocabulary of 151,936 and a
hidden size of 64 (--quick: two of eight, lengths a quarter). Both sides read the same completions and end with the same
loss. Ours packs rows of like length, reads what the teacher reads once, and projects no padding. Further rows count
what the teachers of three methods read: a token with divergence weight is scored once, no other is scored.
"""

import tempfile
from pathlib import Path

import torch
from _bench import finish, in_fresh_process, measure, parser, report, row
from _steps import GROUP, PROMPT, TINY, Shape, Step, common, ragged, rollouts, sdpo, shrunk, whole_step
from datasets import Dataset

import trl_opd
from trl_opd.methods import METHODS
from trl_opd.testbed.tokenizer import build_tokenizer

STEP = Step(lengths=ragged(rows=32, mean=97, cap=512, seed=21), micro_batches=4)

#: Methods whose teachers read a part of the rows.
PARTIAL = ("sdpo", "srpo", "scope")

#: Loss of ours against theirs: both in float32, summed in another order.
TOLERANCE = 1e-4


def half_right(completions: list, **_) -> list[float]:
    """1 for every second completion."""
    return [float(index % 2) for index in range(len(completions))]


def scored_tokens(method: str) -> dict[str, int]:
    """Completion tokens that the method's teacher scores in a step, and tokens that carry divergence weight."""
    step, tokenizer = Step(lengths=ragged(rows=4 * GROUP, mean=40, cap=120), micro_batches=4), build_tokenizer()
    shape = Shape(hidden=32, intermediate=64, layers=2, heads=2, kv_heads=1, head_dim=16, vocabulary=len(tokenizer))
    completions, data = step.completions(), Dataset.from_list([{"prompt": PROMPT}] * len(step.lengths))
    names = METHODS[method]
    with tempfile.TemporaryDirectory() as folder:
        support = {} if method == "scope" else {"support_size": 20}
        config = getattr(trl_opd, names.config)(**common(step, folder, "cpu"), **support)
        trainer = getattr(trl_opd, names.trainer)(
            shape.build(), half_right, config, data, processing_class=tokenizer,
            teacher_model=shape.build(seed=1) if method == "scope" else None,
            rollout_func=lambda prompts, trainer: rollouts(trainer, prompts, completions),
        )  # fmt: skip
    scorer, scored = trainer.scorers[0], []
    read = scorer.read

    def count(ids, mask, width, *rest):
        scored.append(int(mask[:, -width:].sum()))
        return read(ids, mask, width, *rest)

    scorer.read = count
    whole_step(trainer, data.to_list(), step)()
    weighted = sum(int((batch["kl_weight"] != 0).sum()) for batch in trainer._buffered_inputs)
    return {"scored": sum(scored), "weighted": weighted}


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    step = shrunk(STEP) if options.quick else STEP
    if options.case:
        side, name = options.case.split("-")
        found = scored_tokens(name) if side == "tokens" else None
        report(found or measure(sdpo(side == "our", TINY, step, options.device), options.device, 1, backward=False))
        return
    here = str(Path(__file__))
    theirs, ours = (in_fresh_process(here, case, options) for case in ("trl-sdpo", "our-sdpo"))
    assert abs(theirs["loss"] - ours["loss"]) <= TOLERANCE * abs(theirs["loss"]), (theirs["loss"], ours["loss"])
    figure = "SDPO top-100 and tail, ragged lengths, against TRL's SDPO trainer"
    clock = "CPU s" if options.device == "cpu" else "s"
    rows = [
        row(f"{figure}: time of a step", ours["seconds"], theirs["seconds"], None if options.quick else 0.25, clock),
        row(f"{figure}: peak memory", ours["peak_gib"], theirs["peak_gib"], unit="GiB"),
    ]
    for method in PARTIAL:
        counts = in_fresh_process(here, f"tokens-{method}", options)
        title = f"{method.upper()}: teacher tokens scored / tokens with divergence weight"
        rows.append(row(title, counts["scored"], counts["weighted"], 1.0, "tokens"))
    work = {"completion_lengths": step.lengths, "micro_batches": step.micro_batches, "loss": ours["loss"]}
    finish(rows, options, work | {"model": str(TINY)})


if __name__ == "__main__":
    main()
