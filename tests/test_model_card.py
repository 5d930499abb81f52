"""The card beside the weights, the push to the hub, and that what is saved loads without this package."""

import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, replace
from importlib.util import find_spec

import pytest
import torch
import yaml
from huggingface_hub import ModelCard
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.conftest import digit_reward, make_model, settings
from trl_opd import GRPOConfig, GRPOTrainer, OPSDConfig, OPSDTrainer, testbed
from trl_opd.evals.metrics import Metrics
from trl_opd.evals.runner import Summary
from trl_opd.health import Finding
from trl_opd.model_card import Card, _evaluations, code, escaped, render

METRICS = Metrics(
    problems=30, n=4, accuracy=0.25, decoding_interval=(0.2, 0.3), problem_interval=None, pass_at_k={"1": 0.25},
    pass_hat_k={"1": 0.25}, majority_at_k={"1": 0.25}, truncated_rate=0.125, no_answer_rate=0.0, timeout_rate=0.0,
    timeouts=0, errors=0, mean_tokens=20.0,
)  # fmt: skip
CARD = Card(
    name="small",
    model_id="me/small",
    method="opsd",
    summary="the model itself",
    paper="2601.18734",
    base_model="Qwen/Qwen3-1.7B",
    is_hub_model=True,
    is_adapter=False,
    data="openai/gsm8k, 7,473 rows",
    dataset_id="openai/gsm8k",
    settings={"learning_rate": (1e-4, 5e-6), "reference_template": ("a\nb", None)},
    record={"steps": 20, "generated_tokens": 12345, "command": ["/usr/bin/trl-opd", "train", "opsd", "--seed", "1"]},
    step=20,
    evaluations=[Summary("gsm8k", "0" * 64, METRICS)],
    signs=[Finding("truncated", "50% of the completions were cut at the limit.")],
    tags=("trl", "opsd"),
)
HOSTILE = "<img src=x onerror=alert(1)> [x](http://evil) | `a` **b** _c_\n# Title\n---\n```"


def test_a_card_tells_how_the_model_was_made():
    text = render(CARD)
    for part in (
        "[Qwen/Qwen3-1.7B](https://huggingface.co/Qwen/Qwen3-1.7B), trained with **opsd** "
        "([paper](https://huggingface.co/papers/2601.18734)): the model itself.",
        "name = 'me/small'",
        "at step 20; one training seed",
        "| gsm8k | 30 x 4 | 25.0 | - | 20.0 to 30.0 | 12.5 |",
        "| Data | `openai/gsm8k, 7,473 rows` |",
        "| Generated tokens | `12,345` |",
        "```bash\ntrl-opd train opsd --seed 1\n```",
        "- 50% of the completions were cut at the limit.",
        "| `learning_rate` | `0.0001` | `5e-06` |",
        "| `reference_template` | a&#10;b | - |",
        "| `trl` | `1.16",
    ):
        assert part in text


def test_the_front_matter_is_the_hubs(tmp_path):
    (tmp_path / "README.md").write_text(render(CARD))
    data = ModelCard.load(tmp_path / "README.md").data
    assert (data.base_model, data.datasets, data.library_name) == ("Qwen/Qwen3-1.7B", "openai/gsm8k", "transformers")
    (result,) = data.eval_results
    assert (result.dataset_name, result.metric_name, result.metric_value) == ("gsm8k", "avg@4", 0.25)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": HOSTILE},
        {"method": HOSTILE, "summary": HOSTILE},
        {"data": HOSTILE},
        {"base_model": HOSTILE, "is_hub_model": False},
        {"settings": {"system_prompt": (HOSTILE, HOSTILE)}},
        {"signs": [Finding("truncated", HOSTILE)]},
        {"record": {"hardware": HOSTILE}},
    ],
)
def test_text_from_outside_means_nothing_but_itself(changes):
    front, text = re.fullmatch(r"---\n(.*?)\n---\n(.*)", render(replace(CARD, **changes)), re.DOTALL).groups()
    assert yaml.safe_load(front)["tags"] == ["trl", "opsd"]
    for meaningful in ("<img", "](http://evil", "**b**", "\n# Title", "\n---\n", " | `a`"):
        assert meaningful not in text
    assert text.count("```") == 4


def test_a_command_with_a_fence_in_it_stays_in_its_fence():
    text = render(replace(CARD, record={"command": ["train.py", "a\n```\n<b>"]}))
    assert "````bash\npython train.py 'a\n```\n<b>'\n````" in text


def test_absolute_paths_are_cut_to_their_last_part():
    settings = {
        "teacher_models": ({"maths": "/home/me/teacher", "code": "org/teacher"}, None),
        "a": ("/home/me/b", None),
    }
    record = {"command": ["/home/me/venv/bin/trl-opd", "train", "opd", "--output_dir", "/home/me/runs/1"]}
    text = render(replace(CARD, settings=settings, record=record))
    assert "/home" not in text
    assert "| `{'maths': '.../teacher', 'code': 'org/teacher'}` |" in text
    assert "\ntrl-opd train opd --output_dir .../1\n" in text


def test_escaping_keeps_what_is_plain():
    assert escaped("Qwen3-1.7B, 3 % of 4/5") == "Qwen3-1.7B, 3 % of 4/5"
    assert code("per_device <x>") == "`per_device <x>`"
    assert code("a|b") == "a&#124;b"
    assert code("") == ""


def opsd(folder, model, tokenizer, dataset, peft_config=None, **options):
    reads = {"reference_template": testbed.REFERENCE_TEMPLATE, "num_generations": 1, "max_steps": 1}
    config = OPSDConfig(**settings(folder, **reads | options))
    return OPSDTrainer(model, args=config, train_dataset=dataset, processing_class=tokenizer, peft_config=peft_config)


def answer(model, tokenizer) -> torch.Tensor:
    prompt = [{"role": "user", "content": "12+34=?"}]
    inputs = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    return model.generate(**inputs, max_new_tokens=8, do_sample=False)


def test_a_saved_model_loads_in_transformers_as_its_card_says(tmp_path, student, tokenizer, dataset):
    trainer = opsd(tmp_path / "run", student, tokenizer, dataset, save_strategy="steps", save_steps=1)
    trainer.train()
    trainer.save_model(tmp_path / "model")
    expected = answer(trainer.model.eval(), tokenizer)
    for folder in (tmp_path / "model", tmp_path / "run" / "checkpoint-1"):
        model, own = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
        assert torch.equal(answer(model, own), expected)
        text = (folder / "README.md").read_text()
        assert "trained with **opsd** ([paper](https://huggingface.co/papers/2601.18734))" in text
        assert "| `max_completion_length` | `12` | `1024` |" in text
        assert "| Data | `64 rows, columns id, prompt, problem, solution, answer` |" in text
        assert "completions were cut at the limit" in text
    assert "| Optimizer steps | `1` |" in (tmp_path / "model" / "README.md").read_text()


def test_a_saved_adapter_loads_in_peft_as_its_card_says(tmp_path, student_path, tokenizer, dataset):
    from peft import AutoPeftModelForCausalLM, LoraConfig

    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    trainer = opsd(tmp_path / "run", student_path, tokenizer, dataset, lora, learning_rate=0.1, warmup_steps=0)
    trainer.train()
    trainer.save_model(tmp_path / "model")
    text = (tmp_path / "model" / "README.md").read_text()
    assert "AutoPeftModelForCausalLM.from_pretrained(name)" in text
    assert "A PEFT adapter for student" in text  # the last part of its folder's name, and no path of this machine
    assert str(tmp_path) not in text
    loaded = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "model")
    assert torch.equal(answer(loaded, tokenizer), answer(trainer.model.eval(), tokenizer))


class FakeHub:
    """Takes down what would be uploaded."""

    def __init__(self):
        self.files: dict[str, str] = {}
        self.repo = None

    def create_repo(self, repo_id, **_):
        self.repo = repo_id
        return type("Url", (), {"repo_id": repo_id})()

    def upload_folder(self, repo_id, folder_path, **_):
        from pathlib import Path

        assert repo_id == self.repo
        self.files = {
            str(file.relative_to(folder_path)): file.read_text()
            for file in Path(folder_path).rglob("*")
            if file.suffix in (".md", ".json", ".jsonl")
        }


def test_a_push_takes_the_card_along_and_no_secret(tmp_path, tokenizer, dataset, monkeypatch):
    hub = FakeHub()
    monkeypatch.setattr("transformers.trainer.hf_api", lambda: hub)
    config = GRPOConfig(**settings(tmp_path, max_steps=1, hub_model_id="me/digits", hub_token="hf_secret"))
    trainer = GRPOTrainer(make_model(tokenizer), digit_reward, config, dataset, processing_class=tokenizer)
    trainer.train()
    trainer.push_to_hub(dataset_name="me/sums", tags="mine")
    assert hub.repo == "me/digits"
    card = ModelCard(hub.files["README.md"])
    assert card.data.datasets == "me/sums"
    assert {"grpo", "trl", "trl-opd", "mine"} <= set(card.data.tags)
    assert "name = 'me/digits'" in card.text
    assert {"config.json", "log.jsonl", "run.json"} <= set(hub.files)
    assert not any("hf_secret" in text for text in hub.files.values())


@pytest.mark.vllm
@pytest.mark.timeout(1000)  # an engine starts in a minute on an idle machine
@pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed in this environment")
def test_vllm_answers_as_transformers_does(tmp_path):
    from datasets import Dataset

    config = OPSDConfig(
        **settings(
            tmp_path / "run", max_steps=4, num_generations=1, reference_template=testbed.REFERENCE_TEMPLATE,
            per_device_train_batch_size=8, max_completion_length=32, learning_rate=1e-4,
        )
    )  # fmt: skip
    rows = Dataset.from_list(testbed.rows("train", 64))
    trainer = OPSDTrainer(str(testbed.model_path("base")), args=config, train_dataset=rows)
    trainer.train()
    trainer.save_model(tmp_path / "model")
    model, tokenizer = (kind.from_pretrained(tmp_path / "model") for kind in (AutoModelForCausalLM, AutoTokenizer))
    prompts = [row["prompt"] for row in testbed.rows("test", 8)]
    ids = [tokenizer.apply_chat_template(p, add_generation_prompt=True, return_dict=False) for p in prompts]
    here = [
        model.generate(torch.tensor([row]), max_new_tokens=32, do_sample=False)[0, len(row) :].tolist() for row in ids
    ]
    # In a process of its own: an engine leaves threads and groups behind.
    done = subprocess.run(
        [sys.executable, "-c", VLLM, str(tmp_path / "model"), repr(ids)], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert eval(done.stdout.strip().splitlines()[-1]) == here


VLLM = """
import sys
from vllm import LLM, SamplingParams
if __name__ == "__main__":
    engine = LLM(sys.argv[1], dtype="float32", max_model_len=128, enforce_eager=True, gpu_memory_utilization=0.05)
    prompts = [{"prompt_token_ids": ids} for ids in eval(sys.argv[2])]
    drawn = engine.generate(prompts, SamplingParams(temperature=0.0, max_tokens=32))
    print([list(answer.outputs[0].token_ids) for answer in drawn])
"""


def test_a_command_stays_in_its_block():
    text = render(replace(CARD, record={"command": ["trl-opd", "train", "opd", "--x", "a`b <img src=x>"]}))
    assert "\n```bash\ntrl-opd train opd --x 'a`b <img src=x>'\n```\n" in text


def test_evaluations_are_of_the_model_that_is_saved(tmp_path):
    """One killed after step 40 and resumed before it has made the evaluation twice, and may be saved at step 20."""
    for number, (folder, accuracy) in enumerate([("step-20-a", 0.1), ("step-40-b", 0.2), ("step-40-a", 0.3)]):
        file = tmp_path / "evaluations" / folder / "gsm8k" / "summary.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(asdict(Summary("gsm8k", "0" * 64, replace(METRICS, accuracy=accuracy)))))
        os.utime(file, (number, number))
    for now, expected in ((19, (None, [])), (39, (20, [0.1])), (40, (40, [0.3]))):
        step, found = _evaluations(tmp_path, now)
        assert (step, [summary.metrics.accuracy for summary in found]) == expected
