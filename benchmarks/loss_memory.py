"""Peak memory and time of loss and backward: our trainers against TRL's, and against dense losses.

    python benchmarks/loss_memory.py [--quick] [--json FILE] [--plot FILE] [--device cuda]

Both sides run their real trainer's loss on the same model, batch and completions, each in a fresh process: a tiny
Qwen3 with a vocabulary of 151,936, 8 rows of 256 completion tokens (--quick: 2 rows of 64), float32 on the CPU with
one thread, bfloat16 on a GPU. Sampling is replaced by fixed random tokens. What the teacher costs is part of the time
and of the memory: TRL scores inside its loss, ours once per rollout batch, and here that is measured with the loss.

"dense" computes the objective of a whole micro-batch from whole logits by autograd. "slope" is the growth of
the peak with the number of tokens, against that of the student's backbone alone. Where both sides compute one
objective, equal losses and gradient norms are asserted.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from _bench import GIB, REPEATS, finish, in_fresh_process, measure, parser, report, row
from torch import Tensor, nn

VOCABULARY, HIDDEN, TEACHER_HIDDEN = 151_936, 64, 96
BATCH, QUICK_BATCH, DENSE_BATCH = (8, 256), (2, 64), (8, 256)
SLOPE_ROWS, SLOPE_LENGTHS = 2, (256, 1024, 4096)
SUPPORT = 100

#: Options of our trainers for a divergence.
DIVERGENCES = {
    "reverse": {"divergence": "reverse_kl", "jsd_beta": None, "estimator": "full", "support_size": None},
    "jsd": {"divergence": "jsd", "jsd_beta": 0.5, "estimator": "full", "support_size": None},
    "topk": {"divergence": "jsd", "jsd_beta": 0.5, "estimator": "topk", "support_size": SUPPORT},
}


@dataclass(frozen=True)
class Figure:
    """Two cases and what their ratios should be at most.

    Attributes:
        name: What is compared.
        theirs, ours: Names of the cases, see `make_step`.
        memory, time: Targets; None for none.
        equal: Whether both sides compute one objective.
        quick: Whether it is part of a quick run.
    """

    name: str
    theirs: str
    ours: str
    memory: float | None = None
    time: float | None = None
    equal: bool = True
    quick: bool = False


FIGURES = [
    Figure("GRPO against TRL GRPOTrainer", "trl-grpo", "our-grpo", 0.35, 0.9, quick=True),
    Figure("SDPO top-100 and tail against TRL SDPO topk_logits", "trl-sdpo-topk", "our-sdpo-topk", 0.08, 0.9, quick=True),  # noqa: E501
    Figure("OPD reverse KL against TRL DistillationTrainer", "trl-opd-reverse", "our-opd-reverse", 0.25),
    Figure("OPD JSD against TRL DistillationTrainer", "trl-opd-jsd", "our-opd-jsd", 0.25, 0.5, quick=True),
    Figure("SDPO JSD, whole vocabulary, against TRL SDPO full_logits", "trl-sdpo-jsd", "our-sdpo-jsd", 0.04),
    Figure("OPSD forward KL against TRL SDPO full_logits", "trl-sdpo-jsd", "our-opsd", 0.04, equal=False),
    Figure("reverse KL against a dense loss", "dense-reverse", "tiled-reverse", 0.1, 1.0),
    Figure("JSD against a dense loss", "dense-jsd", "tiled-jsd", 0.1, 1.0),
    Figure("top-100 and tail against a dense loss", "dense-topk", "tiled-topk", 0.1, 1.0),
]  # fmt: skip


#: A model, and what makes its loss.
Step = tuple[nn.Module, Callable[[], Tensor]]


# Models and trainers


def make_model(seed: int, device: str, hidden: int = HIDDEN):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": hidden, "intermediate_size": 2 * hidden, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    # Far from uniform, so that losses which differ would show.
    config = Qwen3Config(
        vocab_size=VOCABULARY, eos_token_id=1, pad_token_id=0, initializer_range=0.2, **sizes, **heads
    )  # fmt: skip
    return Qwen3ForCausalLM(config).to(device, torch.bfloat16 if device == "cuda" else torch.float32)


def completions(rows: int, tokens: int, tokenizer) -> list[list[int]]:
    """Fixed random tokens of the tokenizer, and an end, so that each row can be another's demonstration."""
    generator = torch.Generator().manual_seed(1)
    special = len(tokenizer.all_special_ids)
    drawn = torch.randint(special, len(tokenizer), (rows, tokens - 1), generator=generator).tolist()
    return [[*row, tokenizer.eos_token_id] for row in drawn]


def options(rows: int, tokens: int, folder: str, device: str) -> dict[str, Any]:
    return {
        "output_dir": folder, "use_cpu": device == "cpu", "bf16": device == "cuda", "report_to": "none",
        "per_device_train_batch_size": rows, "num_generations": rows, "max_completion_length": tokens,
        "gradient_accumulation_steps": 1, "gradient_checkpointing": False, "temperature": 1.0,
    }  # fmt: skip


def rewards(completions, **_) -> list[float]:
    """Successes all, so that every row has a teacher; unequal, so that every row has an advantage."""
    return [1.0 + 0.1 * index for index in range(len(completions))]


def build(trainer_class, config_class, settings: dict[str, Any], device: str, teacher: bool, needs_rewards: bool):
    from datasets import Dataset

    from trl_opd.testbed.tasks import rows as tasks
    from trl_opd.testbed.tokenizer import build_tokenizer

    example = tasks("train", 1)[0]
    size = settings["per_device_train_batch_size"]
    config = config_class(**settings)
    models = {"teacher_model": make_model(1, device, TEACHER_HIDDEN)} if teacher else {}
    student = make_model(0, device)
    student.save_pretrained(config.output_dir)
    student.config._name_or_path = config.output_dir  # TRL's SDPO loads its teacher anew from there
    trainer = trainer_class(
        model=student,
        args=config,
        train_dataset=Dataset.from_list([example] * size),
        processing_class=build_tokenizer(),
        **({"reward_funcs": rewards} if needs_rewards else {}),
        **models,
    )
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    return trainer, [example] * size


def trl_step(name: str, rows: int, tokens: int, device: str, folder: str) -> Step:
    """The loss of one of TRL's trainers."""
    import trl
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    from trl_opd.configs import DEMONSTRATION_SECTION, TEACHER_TEMPLATE

    settings = options(rows, tokens, folder, device)
    if name.startswith("opd"):
        settings.pop("num_generations")
        settings["beta"] = {"reverse": 1.0, "jsd": 0.5}[name.split("-")[1]]
        trainer, examples = build(trl.DistillationTrainer, trl.DistillationConfig, settings, device, True, False)
        fixed = completions(rows, tokens, trainer.processing_class)
        trainer._generate_single_turn = lambda *_, **__: fixed
    elif name.startswith("sdpo"):
        mode = {"topk": "topk_logits", "jsd": "full_logits"}[name.split("-")[1]]
        support = {"distillation_topk": SUPPORT, "distillation_add_tail": True} if mode == "topk_logits" else {}
        settings |= {"distillation_mode": mode, "distillation_alpha": 0.5} | support
        settings |= {
            "reprompt_template": TEACHER_TEMPLATE.replace("{sections}", "{solution}{feedback}"),
            "solution_template": DEMONSTRATION_SECTION.replace("{demonstration}", "{successful_previous_attempt}"),
        }
        trainer, examples = build(SDPOTrainer, SDPOConfig, settings, device, False, True)
        fixed = completions(rows, tokens, trainer.processing_class)
        trainer._generate_transformers = lambda prompt_ids: (prompt_ids, fixed)
    else:
        trainer, examples = build(trl.GRPOTrainer, trl.GRPOConfig, settings, device, False, True)
        fixed = completions(rows, tokens, trainer.processing_class)
        trainer._generate_single_turn = lambda *_, **__: (fixed, None)
    batch = trainer._prepare_inputs(examples)
    return trainer.model, lambda: trainer.compute_loss(trainer.model, batch)


def our_step(name: str, rows: int, tokens: int, device: str, folder: str) -> Step:
    """The loss of one of our trainers, with what scoring the same rows costs."""
    import trl_opd
    from trl_opd.methods import METHODS

    method, _, divergence = name.partition("-")
    settings = options(rows, tokens, folder, device) | (DIVERGENCES[divergence] if divergence else {})
    if method in ("opd", "opsd"):
        settings["num_generations"] = 1
    config_class, trainer_class = (getattr(trl_opd, getattr(METHODS[method], kind)) for kind in ("config", "trainer"))
    needs_rewards = method in ("grpo", "sdpo")
    trainer, examples = build(trainer_class, config_class, settings, device, method == "opd", needs_rewards)
    fixed = completions(rows, tokens, trainer.processing_class)
    trainer._generate_single_turn = lambda *_, **__: (fixed, None)
    asked: list[tuple] = []
    score = trainer._score
    trainer._score = lambda *arguments: asked.append(arguments) or score(*arguments)
    batch = trainer._prepare_inputs(examples)

    def step() -> Tensor:
        score(*asked[0])
        return trainer._compute_loss(trainer.model, batch)

    return trainer.model, step


# The dense reference, and the slope


def kernel_step(side: str, name: str, rows: int, tokens: int, device: str) -> Step:
    """Student forward and mean divergence from given states of the teacher: tiled, dense, or the backbone alone."""
    from trl_opd.loss import Tokens, token_loss
    from trl_opd.objectives import Divergence, Objective
    from trl_opd.tiled import Head

    student, teacher = make_model(0, device), make_model(1, device, TEACHER_HIDDEN).requires_grad_(False)
    count = rows * tokens
    ids = torch.randint(2, VOCABULARY, (rows, tokens + 1), generator=torch.Generator().manual_seed(1)).to(device)
    with torch.no_grad():
        read = teacher.model(ids).last_hidden_state[:, :-1].flatten(0, 1)
    objective = Objective()
    named = dict(DIVERGENCES[name])
    objective.divergence = Divergence(kind=named.pop("divergence"), **named)
    zero, weight = torch.zeros(count, device=device), torch.full((count,), 1.0 / count, device=device)
    packed = Tokens(ids[:, 1:].flatten(), zero, weight, zero, zero, zero, None, None, [zero], [read])

    def step() -> Tensor:
        states = student.model(ids).last_hidden_state[:, :-1].flatten(0, 1)
        if side == "backbone":
            return states.sum()
        if side == "tiled":
            heads = [Head.of(teacher, 1.0)]
            return token_loss(states, Head.of(student, 1.0), packed, objective, None, heads)[0]
        sides = (
            head(hidden).float().log_softmax(-1)
            for head, hidden in ((student.lm_head, states), (teacher.lm_head, read))
        )
        return objective.divergence.over_vocabulary(*sides).mean()

    return student, step


def measured(case: str, quick: bool, device: str) -> dict[str, float]:
    """Measures one case in this process: `trl-...`, `our-...`, `dense-NAME`, `tiled-NAME`, `SIDE-NAME-TOKENS`."""
    side, name = case.split("-", 1)
    rows, tokens = QUICK_BATCH if quick else BATCH
    if side in ("trl", "our"):
        make = trl_step if side == "trl" else our_step
        with tempfile.TemporaryDirectory() as folder:
            return with_gradient(*make(name, rows, tokens, device, folder), device, REPEATS)
    name, _, length = name.partition("-")
    rows, tokens = (SLOPE_ROWS, int(length)) if length else DENSE_BATCH
    return with_gradient(*kernel_step(side, name, rows, tokens, device), device, 1 if length else REPEATS)


def with_gradient(model: nn.Module, step: Callable[[], Tensor], device: str, repeats: int) -> dict[str, float]:
    """The measurement, and the norm of the model's gradient after all repeats."""
    result = measure(step, device, repeats)
    norms = [parameter.grad.norm() for parameter in model.parameters() if parameter.grad is not None]
    return result | {"gradient_norm": torch.stack(norms).norm().item()}


# The table


def compare(figure: Figure, results: Callable[[str], dict[str, float]]) -> list[dict[str, Any]]:
    """Both rows of a figure."""
    theirs, ours = results(figure.theirs), results(figure.ours)
    if figure.equal:
        for name, tolerance in (("loss", 1e-5), ("gradient_norm", 0.0)):
            assert abs(theirs[name] - ours[name]) <= tolerance + 1e-3 * abs(theirs[name]), (name, figure, theirs, ours)
    return [
        row(f"{figure.name}: peak memory", ours["peak_gib"], theirs["peak_gib"], figure.memory, "GiB"),
        row(f"{figure.name}: time", ours["seconds"], theirs["seconds"], figure.time, "s"),
    ]


def slope(results: Callable[[str], dict[str, float]]) -> dict[str, Any]:
    """Bytes of peak memory that a token more costs, with the loss and without."""

    def bytes_per_token(side: str) -> float:
        short, long = (results(f"{side}-topk-{length}")["peak_gib"] for length in SLOPE_LENGTHS[::2])
        return (long - short) * GIB / SLOPE_ROWS / (SLOPE_LENGTHS[-1] - SLOPE_LENGTHS[0])

    name = f"slope, T {SLOPE_LENGTHS[0]} to {SLOPE_LENGTHS[-1]}, against the backbone alone"
    return row(name, bytes_per_token("tiled"), bytes_per_token("backbone"), 1.25, "B/token")


def main() -> None:
    chosen = parser(__doc__).parse_args()
    if chosen.case:
        report(measured(chosen.case, chosen.quick, chosen.device))
        return
    known: dict[str, dict[str, float]] = {}

    def results(case: str) -> dict[str, float]:
        if case not in known:
            known[case] = in_fresh_process(__file__, case, chosen)
            print(f"{case}: {known[case]}", flush=True)
        return known[case]

    figures = [figure for figure in FIGURES if figure.quick or not chosen.quick]
    rows = [entry for figure in figures for entry in compare(figure, results)]
    if not chosen.quick:
        rows.append(slope(results))
    finish(
        rows,
        chosen,
        {
            "rows and tokens": QUICK_BATCH if chosen.quick else BATCH,
            "vocabulary": VOCABULARY,
            "hidden": HIDDEN,
            "teacher hidden": TEACHER_HIDDEN,
            "dense": DENSE_BATCH,
            "cases": known,
        },
    )


if __name__ == "__main__":
    main()
