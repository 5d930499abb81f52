"""Peak memory and time of loss and backward: the pipeline against TRL's GRPOTrainer and against dense losses.

    python benchmarks/loss_memory.py [--quick] [--json FILE]

Both sides do the same work on the same model, batch and completions, each in a fresh process with one thread: a tiny
Qwen3 with a vocabulary of 151,936, 8 rows of 256 completion tokens (--quick: 2 rows of 64), float32 on the CPU. Memory
is the high-water mark of the resident set above what the idle process holds; time is the median of the repeats. "dense"
computes the same objective from whole logits by autograd.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

ROWS, TOKENS, PROMPT = 8, 256, 16
VOCABULARY, HIDDEN = 151_936, 64
REPEATS = 3

#: Figure -> (theirs, ours): names of cases below.
FIGURES = {
    "GRPO, against TRL's GRPOTrainer": ("trl-grpo", "our-grpo"),
    "OPD reverse KL, against a dense loss": ("dense-reverse_kl", "our-reverse_kl"),
    "OPD JSD, against a dense loss": ("dense-jsd", "our-jsd"),
    "SDPO top-100 and tail, against a dense loss": ("dense-topk", "our-topk"),
}
DIVERGENCES = {
    "reverse_kl": {"kind": "reverse_kl"},
    "jsd": {"kind": "jsd", "jsd_beta": 0.5},
    "topk": {"kind": "jsd", "jsd_beta": 0.5, "estimator": "topk", "support_size": 100},
}


def make_model(seed: int):
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    sizes = {"hidden_size": HIDDEN, "intermediate_size": 128, "num_hidden_layers": 2, "head_dim": 32}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "tie_word_embeddings": True}
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=VOCABULARY, eos_token_id=1, pad_token_id=0, **sizes, **heads))


def grpo_step(ours: bool, rows: int, tokens: int):
    """One micro-batch's loss through a real trainer."""
    import torch
    import trl
    from datasets import Dataset

    import trl_opd
    from trl_opd.testbed.tokenizer import build_tokenizer

    library = trl_opd if ours else trl
    with tempfile.TemporaryDirectory() as folder:
        config = library.GRPOConfig(
            output_dir=folder, use_cpu=True, bf16=False, per_device_train_batch_size=rows, num_generations=2,
            max_completion_length=tokens, report_to="none", gradient_checkpointing=False,
        )  # fmt: skip
        dataset = Dataset.from_list([{"prompt": "x"}] * rows)
        trainer = library.GRPOTrainer(
            make_model(0), lambda completions, **_: [0.0] * len(completions), config, dataset,
            processing_class=build_tokenizer(),
        )  # fmt: skip
    generator = torch.Generator().manual_seed(1)

    def draw(width):
        return torch.randint(2, VOCABULARY, (rows, width), generator=generator)

    ones = torch.ones(rows, tokens, dtype=torch.long)
    batch = {
        "prompt_ids": draw(PROMPT), "prompt_mask": torch.ones(rows, PROMPT, dtype=torch.long),
        "completion_ids": draw(tokens), "completion_mask": ones, "advantages": torch.randn(rows, generator=generator),
        "num_items_in_batch": torch.tensor(float(rows * tokens)),
    }  # fmt: skip
    if ours:
        batch |= {"pg_weight": ones.float(), "kl_weight": 0.0 * ones, "ce_weight": 0.0 * ones, "counted": ones}
        trainer._set_windows([batch], per_step=1)
    trainer.current_gradient_accumulation_steps = 1
    trainer.model.train()
    return lambda: trainer._compute_loss(trainer.model, batch)


def divergence_step(ours: bool, name: str, rows: int, tokens: int):
    """Mean divergence of all tokens from a teacher, from hidden states that carry gradient."""
    import torch

    from trl_opd.loss import Tokens, token_loss
    from trl_opd.objectives import Divergence, Objective
    from trl_opd.tiled import Head

    student, teacher = make_model(0), make_model(1).requires_grad_(False)
    count = rows * tokens
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(2, VOCABULARY, (rows, PROMPT + tokens), generator=generator)
    with torch.no_grad():
        read = teacher.model(ids).last_hidden_state[:, PROMPT - 1 : -1].reshape(count, HIDDEN)
    objective = Objective()
    objective.divergence = Divergence(**DIVERGENCES[name])
    target_ids, heads = ids[:, PROMPT:].reshape(-1), [Head.of(teacher, 1.0)]
    zero, weight = torch.zeros(count), torch.full((count,), 1.0 / count)
    packed = Tokens(target_ids, zero, weight, zero, zero, zero, None, None, [zero], [read])

    def tiled():
        states = student.model(ids).last_hidden_state[:, PROMPT - 1 : -1].reshape(count, HIDDEN)
        return token_loss(states, Head.of(student, 1.0), packed, objective, None, heads)[0]

    def dense():
        states = student.model(ids).last_hidden_state[:, PROMPT - 1 : -1].reshape(count, HIDDEN)
        sides = student.lm_head(states).log_softmax(-1), teacher.lm_head(read).log_softmax(-1)
        return objective.divergence.over_vocabulary(*sides).mean()

    return tiled if ours else dense


def measure(case: str, rows: int, tokens: int) -> dict[str, float]:
    """Runs one case in this process."""
    import torch

    torch.set_num_threads(1)
    side, name = case.split("-")
    ours = side == "our"
    step = grpo_step(ours, rows, tokens) if name == "grpo" else divergence_step(ours, name, rows, tokens)
    idle = int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
    seconds = []
    for _ in range(REPEATS):
        start = time.process_time()
        loss = step()
        loss.backward()
        seconds.append(time.process_time() - start)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - idle
    return {"peak_gib": peak / 2**30, "seconds": statistics.median(seconds), "loss": loss.item()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="2 rows of 64 tokens")
    parser.add_argument("--json", type=Path, help="write the rows here")
    parser.add_argument("--case", help=argparse.SUPPRESS)
    options = parser.parse_args()
    rows, tokens = (2, 64) if options.quick else (ROWS, TOKENS)
    if options.case:
        print("RESULT " + json.dumps(measure(options.case, rows, tokens)))
        return
    table = []
    for figure, cases in FIGURES.items():
        theirs, ours = (_in_fresh_process(case, options.quick) for case in cases)
        assert abs(theirs["loss"] - ours["loss"]) < 1e-4 * max(1.0, abs(theirs["loss"])), (figure, theirs, ours)
        for quantity, unit in (("peak_gib", "GiB above idle"), ("seconds", "CPU s")):
            ratio = ours[quantity] / theirs[quantity]
            table.append(
                {"figure": f"{figure}: {unit}", "theirs": theirs[quantity], "ours": ours[quantity], "ratio": ratio}
            )
            print(f"{table[-1]['figure']:<62}{theirs[quantity]:>8.2f}{ours[quantity]:>8.2f}{ratio:>8.2f} x", flush=True)
    if options.json:
        about = {"machine": f"{platform.machine()}, {platform.system()}, one thread", "batch": [rows, tokens]}
        versions = {name: version(name) for name in ("torch", "trl", "transformers")}
        options.json.write_text(json.dumps({"about": about | versions, "rows": table}, indent=1) + "\n")


def _in_fresh_process(case: str, quick: bool) -> dict[str, float]:
    command = [sys.executable, __file__, "--case", case, *(["--quick"] if quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.split("RESULT ")[1])


if __name__ == "__main__":
    main()
