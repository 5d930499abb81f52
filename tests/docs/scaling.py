"""The memory table of docs/scaling.md by the estimate of `trl-opd check`; `python -m tests.docs.scaling` rewrites it.

The models' sizes are public, those of Qwen3-1.7B, 4B and 8B; no weight is loaded.
"""

import re
from functools import cache
from pathlib import Path

import torch
from peft import LoraConfig
from transformers import Qwen3Config

from trl_opd.memory import GIB, Run, Shape, estimate

PAGE = Path(__file__).parents[2] / "docs" / "scaling.md"
BEGIN, END = "<!-- memory:begin -->", "<!-- memory:end -->"

SIZES = {
    "1.7B": {"hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 28, "num_attention_heads": 16},
    "4B": {"hidden_size": 2560, "intermediate_size": 9728, "num_hidden_layers": 36, "num_attention_heads": 32},
    "8B": {"hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 36, "num_attention_heads": 32},
}

#: Columns of the table: strategy and devices.
PLACES = (("single", 1), ("ddp", 8), ("fsdp2", 8), ("fsdp2", 16), ("zero2", 8), ("zero3", 8))

#: Micro-batch, rollouts of a device and lengths of all rows of the table.
COMMON = {"rows": 4, "rollouts": 16, "prompt": 512, "completion": 2048, "teacher_prompt": 512}


@cache
def shape(size: str, dtype: torch.dtype, adapter: bool = False) -> Shape:
    """The shape of a Qwen3 model, with rank-64 LoRA on all linear layers or whole."""
    config = Qwen3Config(
        vocab_size=151_936, num_key_value_heads=8, head_dim=128, tie_word_embeddings=size != "8B", **SIZES[size]
    )
    lora = LoraConfig(r=64, target_modules="all-linear", task_type="CAUSAL_LM") if adapter else None
    return Shape.of(config, dtype, lora)


def settings(size: str) -> dict[str, Run]:
    """Four ways to train a student of a size; trained weights are float32 and frozen ones bf16."""
    whole, low = shape(size, torch.float32), torch.bfloat16
    reading = COMMON | {"teacher_prompt": COMMON["prompt"] + COMMON["completion"]}
    return {
        "GRPO": Run(whole, **COMMON),
        "OPSD, LoRA": Run(shape(size, low, adapter=True), states=1, **reading),
        "SDPO, moving average": Run(whole, average=True, states=1, **reading),
        "OPD, teacher of 8B": Run(whole, scorers=[shape("8B", low)], states=1, **COMMON),
    }


def peak(run: Run, strategy: str, devices: int) -> float | None:
    """GiB on each device, None where it is refused; DeepSpeed trains bf16 weights with a float32 copy beside them."""
    if strategy == "zero3" and run.average:
        return None
    values = {**vars(run), "strategy": strategy, "devices": devices}
    if strategy.startswith("zero") and run.student.trainable == run.student.parameters:
        values["master_copy"] = True
    return estimate(Run(**values)).peak / GIB


def table() -> str:
    """The table in Markdown."""
    head = ["Student", "Method", *(f"{devices} x {strategy}" for strategy, devices in PLACES)]
    lines = [head, ["---", "---", *["---:"] * len(PLACES)]]
    for size in SIZES:
        for method, run in settings(size).items():
            lines.append([size, method, *(_shown(peak(run, *place)) for place in PLACES)])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def _shown(gib: float | None) -> str:
    if gib is None:
        return "-"
    return f"{gib:.0f}" if gib < 72 else f"**{gib:.0f}**"


def with_table(page: str) -> str:
    """The page with its table made anew."""
    return re.sub(f"(?<={BEGIN}\n).*?(?={END})", lambda _: table(), page, flags=re.DOTALL)


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text()))
