"""What grows with the context and with the completions: shared prompts, and steps of larger models on a GPU.

    python benchmarks/scaling.py [--quick] [--json FILE] [--plot FILE]

A group of eight rollouts whose teacher reads one context of 1,000 tokens (--quick: 250), scored and trained with the
context encoded once and with a forward that repeats it: same model, same ids, equal scores and losses. The model has
the proportions of a 0.6B Qwen3, its head included. On a GPU, steps of models of 0.5B and 1.5B parameters with
completions of 1k and 4k tokens follow, in bf16 with gradient checkpointing, against TRL's SDPO trainer.
"""

from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from _bench import finish, in_fresh_process, measure, parser, report, row
from _steps import GROUP, Shape, Step, sdpo

from trl_opd.encoding import completion_hidden, find_prefixes
from trl_opd.scoring import Reading, score
from trl_opd.teachers import Scorer

SMALL = Shape(hidden=256, intermediate=768, layers=8, heads=8, kv_heads=4, head_dim=32, vocabulary=8_192)
CONTEXT, COMPLETION = 1000, 128

#: Models of a GPU run, after Qwen2.5's sizes: name -> shape.
LARGE = {
    "0.5B": Shape(896, 4864, 24, 14, 2, 64, dtype=torch.bfloat16),
    "1.5B": Shape(1536, 8960, 28, 12, 2, 128, dtype=torch.bfloat16),
}

#: Rows of a GPU run -> length of their completions; TRL's side takes several [rows, T, vocabulary] tensors.
LARGE_STEPS = {"1k": Step((1024,) * 8), "4k": Step((4096,) * 2)}


def inputs(quick: bool) -> tuple[list[list[int]], torch.Tensor]:
    """One context for all rows, and their completions."""
    generator = torch.Generator().manual_seed(1)
    context = torch.randint(2, SMALL.vocabulary, (CONTEXT // 4 if quick else CONTEXT,), generator=generator).tolist()
    width = COMPLETION // 4 if quick else COMPLETION
    return [context] * GROUP, torch.randint(2, SMALL.vocabulary, (GROUP, width), generator=generator)


def scoring(shared: bool, options: Any) -> dict[str, Any]:
    """The teacher reads the group."""
    prompts, completions = inputs(options.quick)
    scorer = Scorer(SMALL.build().to(options.device), 1.0)
    completions = completions.to(options.device)
    reading = Reading(
        completion_ids=completions, completion_mask=torch.ones_like(completions), prompts=prompts,
        rows=list(range(GROUP)), examples=[{}] * GROUP, vocabulary=SMALL.vocabulary, pad_token_id=0, batch_size=GROUP,
        share_prompts=shared, autocast=nullcontext,
    )  # fmt: skip
    tokens = []

    def step() -> torch.Tensor:
        scores = score([scorer], reading)
        tokens.append(scores.tokens)
        return scores.logps[0].sum()

    return measure(step, options.device, backward=False) | {"tokens": tokens[-1]}


def training(shared: bool, options: Any) -> dict[str, Any]:
    """The student's forward and backward of the group, up to its hidden states."""
    model, (prompts, completions) = SMALL.build().to(options.device), inputs(options.quick)
    prompt = torch.tensor(prompts, device=options.device)
    ids = torch.cat([prompt, completions.to(options.device)], 1)
    mask, width = torch.ones_like(ids), completions.shape[1]
    weights = torch.randn(SMALL.hidden, generator=torch.Generator().manual_seed(2)).to(options.device)

    def step() -> torch.Tensor:
        prefixes = find_prefixes(model, prompt, torch.ones_like(prompt), width, training=True) if shared else None
        return (completion_hidden(model, ids, mask, width, prefixes) @ weights).mean()

    return measure(step, options.device)


def shared_prefix_rows(options: Any) -> list[dict[str, Any]]:
    rows, target = [], None if options.quick else 0.5
    for name, what in (("scoring", "teacher scoring"), ("training", "student forward and backward")):
        plain, shared = (in_fresh_process(str(Path(__file__)), f"{name}-{how}", options) for how in ("plain", "shared"))
        assert abs(plain["loss"] - shared["loss"]) <= 1e-4 * max(abs(plain["loss"]), 1e-2), (plain, shared)
        figure = f"shared prefix, G = {GROUP}, context of {len(inputs(options.quick)[0][0])}: {what}"
        clock = "CPU s" if options.device == "cpu" else "s"
        rows.append(row(f"{figure}, time", shared["seconds"], plain["seconds"], target, clock))
        rows.append(row(f"{figure}, peak memory", shared["peak_gib"], plain["peak_gib"], unit="GiB"))
        if name == "scoring":
            rows.append(row(f"{figure}, tokens read", shared["tokens"], plain["tokens"], unit="tokens"))
        target = None
    return rows


def large_rows(options: Any) -> list[dict[str, Any]]:
    rows = []
    for model in LARGE:
        for length, step in LARGE_STEPS.items():
            try:
                theirs, ours = (
                    in_fresh_process(str(Path(__file__)), f"{side}-{model}-{length}", options)
                    for side in ("trl", "our")
                )
            except RuntimeError as error:  # one side may not fit where the other does
                print(f"{model}, T = {length}: {str(error).strip().splitlines()[-1]}")
                continue
            figure = f"SDPO top-100 and tail, {model}, {len(step.lengths)} x {length}"
            rows.append(row(f"{figure}: peak memory", ours["peak_gib"], theirs["peak_gib"], 1.0, "GiB"))
            speed = [step.tokens / side["seconds"] for side in (ours, theirs)]
            print(f"{figure}: {speed[0]:.0f} tokens/s, TRL {speed[1]:.0f}")
            per_token = [1e6 * side["seconds"] / step.tokens for side in (ours, theirs)]
            rows.append(row(f"{figure}: time a token", *per_token, 1.0, "us"))
    return rows


def main() -> None:
    options = parser(__doc__).parse_args()
    torch.set_num_threads(1)
    if options.case:
        name, how, *rest = options.case.split("-")
        if name in ("trl", "our"):
            step = sdpo(name == "our", LARGE[how], LARGE_STEPS[rest[0]], options.device)
            report(measure(step, options.device, backward=False))
        else:
            report({"scoring": scoring, "training": training}[name](how == "shared", options))
        return
    rows = shared_prefix_rows(options)
    if options.device == "cuda" and not options.quick:
        rows += large_rows(options)
    else:
        print("Steps of 0.5B and 1.5B models with T = 1k and 4k: not run here, they need a GPU and no --quick.")
    finish(rows, options, {"model": str(SMALL), "group": GROUP, "context": CONTEXT, "completion": COMPLETION})


if __name__ == "__main__":
    main()
