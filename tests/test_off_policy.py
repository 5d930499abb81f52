"""SFT and rejection fine-tuning: the examples are what they say, the loss is the likelihood, and runs resume."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset

import trl_opd.rollout_drawing as drawing_module
from tests.conftest import losses, settings
from trl_opd import RFTConfig, RFTTrainer, SFTConfig, SFTTrainer
from trl_opd.cli import check
from trl_opd.cli.main import main
from trl_opd.errors import UserError
from trl_opd.rft import score, select
from trl_opd.rollout_drawing import DRAWN
from trl_opd.testbed import model_path
from trl_opd.testbed.rewards import testbed_reward as graded_reward
from trl_opd.testbed.tasks import rows
from trl_opd.verify.rewards import math_reward

BASE = str(model_path("base"))


def config(kind, folder, **options):
    common = settings(folder, per_device_train_batch_size=8, learning_rate=1e-4, max_steps=3)
    del common["num_generations"], common["max_completion_length"]
    return kind(**common | {"model_init_kwargs": {"dtype": "float32"}} | options)


def drawing(folder, **options):
    return config(RFTConfig, folder, **{"draws": 12, "num_generations": 8, "max_completion_length": 40} | options)


def test_an_example_is_the_rendered_prompt_and_the_solution_with_its_end(tmp_path, dataset, tokenizer):
    trainer = SFTTrainer(BASE, args=config(SFTConfig, tmp_path), train_dataset=dataset)
    example, row = trainer.train_dataset[5], dataset[5]
    prompt = tokenizer.apply_chat_template(row["prompt"], add_generation_prompt=True)["input_ids"]
    solution = [*tokenizer(row["solution"])["input_ids"], tokenizer.eos_token_id]
    assert example["input_ids"] == prompt + solution
    assert example["labels"] == [-100] * len(prompt) + solution
    assert trainer.data_facts == {"examples": 64, "too_long": 0}


def test_the_loss_is_the_mean_negative_log_likelihood_of_completion_tokens(tmp_path, dataset):
    trainer = SFTTrainer(BASE, args=config(SFTConfig, tmp_path, max_steps=1), train_dataset=dataset)
    seen = []
    step = trainer.compute_loss

    def recording(model, inputs, *rest, **named):
        if not seen:
            with torch.no_grad():
                logps = model(inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits.log_softmax(-1)
            labels = inputs["labels"][:, 1:]
            chosen = logps[:, :-1].gather(-1, labels.clamp(min=0)[..., None]).squeeze(-1)
            seen.append(-chosen[labels >= 0].mean().item())
        return step(model, inputs, *rest, **named)

    trainer.compute_loss = recording
    trainer.train()
    assert losses(trainer) == pytest.approx(seen, rel=1e-4)
    assert trainer.spent()["generated_tokens"] == 0


def test_accumulation_gives_the_steps_of_one_batch(tmp_path, dataset):
    runs = []
    for parts in (1, 4):
        options = {"per_device_train_batch_size": 16 // parts, "gradient_accumulation_steps": parts}
        trainer = SFTTrainer(BASE, args=config(SFTConfig, tmp_path / str(parts), **options), train_dataset=dataset)
        trainer.train()
        runs.append(losses(trainer))
    assert runs[1] == pytest.approx(runs[0], rel=1e-3)


def test_a_long_example_is_left_out_and_counted(tmp_path, dataset, capsys):
    trainer = SFTTrainer(BASE, args=config(SFTConfig, tmp_path, max_length=40), train_dataset=dataset)
    kept, lost = trainer.data_facts["examples"], trainer.data_facts["too_long"]
    assert kept + lost == 64
    assert lost > 0
    assert len(trainer.train_dataset) == kept
    assert max(map(len, trainer.train_dataset["input_ids"])) <= 40
    assert f"{lost} of 64 examples are longer than max_length=40" in capsys.readouterr().out


def test_selection_keeps_right_whole_completions_once_a_row_and_counts_the_rest(tmp_path):
    end, nan = 9, float("nan")
    completions = [[[1, 9], [1, 9], [2, 9], [3, 9]], [[1, 9], [1, 2, 3], [4, 5, 9], [6, 9]], [[7, 9]]]
    rewards = [[1.0, 1.0, 0.4, 0.5], [nan, 1.0, 1.0, 0.0], [0.0]]
    kept, facts = select(completions, rewards, drawing(tmp_path, max_completion_length=3), end)
    assert kept == [(0, [1, 9]), (0, [3, 9]), (1, [4, 5, 9])]
    assert facts == {"rows": 3, "drawn": 9, "wrong": 4, "cut": 1, "duplicates": 1, "kept": 3, "rows_without": 1}


def test_rewards_are_called_as_trl_calls_them_and_summed(tokenizer):
    data = Dataset.from_list(rows("train", 3))
    right = [tokenizer(row["solution"])["input_ids"] + [tokenizer.eos_token_id] for row in data]
    drawn = data.add_column("completion_ids", [[ids, ids[:3]] for ids in right])

    def silent(completions, **_):
        return [None] * len(completions)

    assert score([math_reward, graded_reward], drawn, tokenizer) == [[2.0, 0.0]] * 3
    assert torch.tensor(score([silent], drawn, tokenizer)).isnan().all()
    with pytest.raises(UserError, match="returned 1 rewards for 6 completions"):
        score([lambda **_: [1.0]], drawn, tokenizer)


def test_rft_trains_on_right_completions_of_the_start_model_and_counts_what_it_drew(tmp_path, dataset, tokenizer):
    args = drawing(tmp_path, max_steps=2)
    trainer = RFTTrainer(BASE, math_reward, args, train_dataset=dataset)
    answers = {row["problem"]: row["answer"] for row in rows("train", 64)}
    for example in trainer.train_dataset:
        text = tokenizer.decode(example["input_ids"])
        problem = next(problem for problem in answers if problem in text)
        assert f"boxed{{{answers[problem]}}}" in text
    stored = json.loads((tmp_path / "drawing" / DRAWN.format(0)).read_text())["completions"]
    facts = trainer.data_facts
    assert facts["drawn"] == 96 == sum(map(len, stored))
    assert facts["drawn"] == facts["wrong"] + facts["cut"] + facts["duplicates"] + facts["kept"]
    assert len(trainer.train_dataset) == facts["examples"] == facts["kept"]
    trainer.train()
    assert trainer.spent()["generated_tokens"] == sum(len(ids) for row in stored for ids in row)
    assert trainer.spent()["seconds"] > json.loads((tmp_path / "drawing" / DRAWN.format(0)).read_text())["seconds"]


def recipe(folder: Path, **values) -> str:
    common = {"model_name_or_path": BASE, "dtype": "float32", "dataset_name": "testbed", "dataset_limit": 256}
    common |= {"per_device_train_batch_size": 16, "max_steps": 6, "save_steps": 2, "save_strategy": "steps"}
    common |= {"use_cpu": True, "bf16": False, "logging_steps": 1, "report_to": "none"}
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(common | values))
    return str(path)


def log_rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


class Stop(Exception):
    """Ends a drawing in the middle."""


def test_a_drawing_that_was_stopped_goes_on_to_the_undisturbed_run(tmp_path, dataset, monkeypatch):
    draw, files = drawing_module._draw, []

    def stopping(*arguments):
        files.append(len(files))
        if len(files) == 3:
            raise Stop
        return draw(*arguments)

    monkeypatch.setattr(drawing_module, "ROWS_PER_FILE", 4)
    monkeypatch.setattr(drawing_module, "_draw", stopping)
    stopped = drawing(tmp_path / "stopped", draws=16, max_steps=2)
    with pytest.raises(Stop):
        RFTTrainer(BASE, math_reward, stopped, train_dataset=dataset)
    runs = [RFTTrainer(BASE, math_reward, stopped, train_dataset=dataset)]
    assert len(files) == 5  # two files, the one that failed, and the two that were left
    whole = drawing(tmp_path / "whole", draws=16, max_steps=2)
    runs.append(RFTTrainer(BASE, math_reward, whole, train_dataset=dataset))
    for trainer in runs:
        trainer.train()
    assert losses(runs[0]) == losses(runs[1])
    tokens = [trainer.spent()["generated_tokens"] for trainer in runs]
    assert tokens[0] == tokens[1] > 0


@pytest.mark.slow
def test_a_run_that_is_killed_while_it_draws_goes_on_to_the_undisturbed_one(tmp_path):
    options = {"reward_funcs": ["math_reward"], "draws": 256, "num_generations": 4, "max_completion_length": 40}
    path = recipe(tmp_path, **options)
    command = [sys.executable, "-m", "trl_opd", "train", "rft", "--config", path, "--output_dir"]
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen([*command, str(killed)], env=os.environ | {"OMP_NUM_THREADS": "1"}, **silent) as run:
        deadline = time.monotonic() + 90
        while not (killed / "drawing" / DRAWN.format(0)).exists():
            assert time.monotonic() < deadline
            assert run.poll() is None
            time.sleep(0.01)
        run.send_signal(signal.SIGKILL)
    left = sorted(file.name for file in (killed / "drawing").glob("drawn-*.json"))
    assert 1 <= len(left) < 4
    before = (killed / "drawing" / left[0]).stat().st_mtime_ns
    assert main([*command[3:], str(killed)]) == 0
    assert main([*command[3:], str(whole)]) == 0
    assert (killed / "drawing" / left[0]).stat().st_mtime_ns == before
    resumed, undisturbed = log_rows(killed), log_rows(whole)
    assert [row["step"] for row in resumed] == [1, 2, 3, 4, 5, 6]
    for key in ("loss", "grad_norm", "generated_tokens"):
        assert [row[key] for row in resumed] == pytest.approx([row[key] for row in undisturbed], abs=1e-6), key
    record = json.loads((killed / "run.json").read_text())
    assert record["data"]["drawn"] == 1024
    assert record["status"] == "finished"
    assert (killed / "model" / "model.safetensors").exists()


def test_a_resumed_sft_run_is_the_undisturbed_one(tmp_path):
    path = recipe(tmp_path)
    command = ["train", "sft", "--config", path, "--output_dir"]
    assert main([*command, str(tmp_path / "whole")]) == 0
    part = tmp_path / "part"
    assert main([*command, str(part)]) == 0
    # As if it had been killed after step 4: its last checkpoint is gone, and its record says that it runs.
    for file in sorted((part / "checkpoint-6").iterdir()):
        file.unlink()
    record = json.loads((part / "run.json").read_text())
    (part / "run.json").write_text(json.dumps(record | {"status": "running"}))
    assert main([*command, str(part)]) == 0
    resumed, undisturbed = log_rows(part), log_rows(tmp_path / "whole")
    assert [row["loss"] for row in resumed] == pytest.approx([row["loss"] for row in undisturbed], abs=1e-6)
    spent = json.loads((part / "run.json").read_text())
    assert (spent["generated_tokens"], spent["teacher_tokens"], spent["steps"]) == (0, 0, 6)
    assert spent["peak_memory_bytes"] > 1e8


REFUSED = {
    "rewards of sft": ("sft", {"reward_funcs": ["math_reward"]}, "would ignore reward_funcs"),
    "no solutions": ("sft", {"solution_column": "proof"}, "no column 'proof'"),
    "ignored option": ("sft", {"eos_token": "<x>"}, "eos_token acts on texts"),
    "no rewards": ("rft", {}, "no reward function"),
    "too many draws": ("rft", {"reward_funcs": ["math_reward"], "draws": 300}, "there are 256 rows"),
    "no draws": ("rft", {"reward_funcs": ["math_reward"], "draws": 0}, "draws is 0"),
    "too few rows": ("sft", {"dataset_limit": 8}, "8 examples, but one step takes 16"),
    "a teacher": ("sft", {"teacher_update_rate": 0.1}, "no option of sft"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_work_is_one_sentence(case, tmp_path, capsys):
    method, options, fragment = REFUSED[case]
    command = ["train", method, "--config", recipe(tmp_path, **options), "--output_dir", str(tmp_path / "run")]
    assert main(command) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert fragment in line


def nothing_right(completions, **_):
    return [0.0] * len(completions)


def test_a_drawing_without_a_right_completion_is_refused(tmp_path, dataset):
    with pytest.raises(UserError, match="None of the 4 completions is right"):
        RFTTrainer(BASE, nothing_right, drawing(tmp_path, draws=2, num_generations=2), train_dataset=dataset)


def test_check_knows_methods_without_an_objective(tmp_path, capsys):
    assert check.main(["sft", "--config", recipe(tmp_path)]) == 0
    assert "not estimated for sft" in capsys.readouterr().out


def test_check_says_what_a_method_without_an_objective_is_refused_for(tmp_path, capsys):
    assert check.main(["rft", "--config", recipe(tmp_path)]) == 2
    assert "rft keeps what rewards call right" in " ".join(capsys.readouterr().out.split())


def test_a_cache_has_no_use_for_them(tmp_path, capsys):
    command = ["cache", "sft", "--config", recipe(tmp_path), "--output", str(tmp_path / "cache")]
    assert main(command) == 2
    assert "sft has no external teacher" in capsys.readouterr().err
