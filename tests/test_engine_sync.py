"""The check after each weight sync, with a copy of the model in the place of vLLM; for vLLM: test_vllm_training.py."""

import copy
from types import SimpleNamespace
from typing import ClassVar

import pytest
import torch
from peft import LoraConfig, get_peft_model

from tests.conftest import digit_reward, settings
from trl_opd import GRPOConfig, GRPOTrainer, engine_sync
from trl_opd.compat import synced_engine
from trl_opd.engine_sync import METRIC, SyncCheck
from trl_opd.errors import UserError

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], lora_alpha=32)


class Engine:
    """What the pipeline uses of TRL's `VLLMGeneration`; it draws the same tokens whatever its weights."""

    mode = "server"
    enable_sleep_mode = False
    temperature, top_p, top_k, min_p, repetition_penalty = 0.7, 0.9, 5, 0.1, 1.1
    max_completion_length, logprobs, structured_outputs_regex = 99, 5, None
    generation_kwargs: ClassVar = {"seed": 3}
    noise = 0.0

    def __init__(self, model, held) -> None:
        self.model = model
        self.held = held
        self.asked = []

    def sync_weights(self) -> None:
        self.held.load_state_dict(self.model.state_dict())

    @torch.no_grad()
    def generate(self, prompts, images, num_generations, profiler=None):
        self.asked.append((self.temperature, self.top_p, self.top_k, self.min_p, self.repetition_penalty))
        completions = [
            [(7 * k + 3) % 60 for k in range(self.max_completion_length - row)] for row in range(len(prompts))
        ]
        self.held.eval()
        logprobs = []
        for prompt, completion in zip(prompts, completions, strict=True):
            logits = self.held(torch.tensor([prompt + completion])).logits[0, len(prompt) - 1 : -1]
            chosen = logits.log_softmax(-1)[range(len(completion)), completion]
            logprobs.append([[value + self.noise] for value in chosen.tolist()])
        return prompts, completions, logprobs, None


class StandsStill(Engine):
    def sync_weights(self) -> None:
        """Nothing is copied."""


class WithoutAdapter(Engine):
    def sync_weights(self) -> None:
        own = {name: value for name, value in self.model.state_dict().items() if "lora_" not in name}
        self.held.load_state_dict(own, strict=False)


class Other(Engine):
    def sync_weights(self) -> None:
        torch.manual_seed(3)
        for parameter in self.held.parameters():
            parameter.data = torch.randn_like(parameter) * 0.3


class Noisy(Engine):
    noise = 0.05


class Broken(Engine):
    noise = float("nan")


@pytest.fixture
def train(tmp_path, student, tokenizer, dataset):
    """Trains with GRPO that syncs before every rollout batch, as TRL does with vLLM, but draws its rollouts itself."""

    def train(engine=Engine, peft_config=None, tolerance=None, **options):
        config = GRPOConfig(**settings(tmp_path, max_steps=4, **options))
        held = copy.deepcopy(student)  # before TRL wraps the student's forward, which a copy would call as well
        if peft_config is not None:
            held = get_peft_model(held, peft_config)
        trainer = GRPOTrainer(student, [digit_reward], config, dataset, None, tokenizer, peft_config=peft_config)
        trainer.args.vllm_sync_tolerance = tolerance  # refused at launch where there is no use_vllm
        trainer.vllm_generation = engine(trainer.model, held)
        engine_sync.watch(trainer)
        generate = trainer._generate

        def synced(prompts):
            trainer.vllm_generation.sync_weights()
            return generate(prompts)

        trainer._generate = synced
        trainer.train()
        return trainer

    return train


def differences(trainer) -> list[float]:
    return [row[METRIC] for row in trainer.state.log_history if METRIC in row]


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_weights_that_arrive_pass_and_the_difference_is_logged(train, peft_config):
    trainer = train(peft_config=peft_config)
    assert len(differences(trainer)) == 4
    assert all(difference < 1e-5 for difference in differences(trainer))


def test_dropout_of_the_adapter_is_no_difference(train):
    dropped = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.5)
    trainer = train(peft_config=dropped)
    assert max(differences(trainer)) < 1e-5
    assert trainer.model.training


def test_the_probe_leaves_the_settings_of_the_rollouts_alone(train):
    engine = train().vllm_generation
    assert engine.asked == [(1.0, 1.0, 0, 0.0, 1.0)] * 4
    assert (engine.temperature, engine.top_p, engine.max_completion_length) == (0.7, 0.9, 99)
    assert engine.generation_kwargs == {"seed": 3}


def test_other_weights_stop_the_run_before_the_first_step(train):
    with pytest.raises(UserError, match=r"sync at step 0, vLLM's log-probabilities of 23 tokens differ .* by \d.*0\.1"):
        train(Other)


@pytest.mark.parametrize(("engine", "peft_config"), [(StandsStill, None), (WithoutAdapter, LORA)])
def test_a_stale_engine_stops_the_run_while_it_is_still_within_the_tolerance(train, engine, peft_config):
    with pytest.raises(UserError, match=r"at step [123], vLLM gives bit for bit what it gave before.*moved by 0\.0"):
        train(engine, peft_config, learning_rate=3e-4)


def test_a_trainer_that_does_not_move_is_not_blamed_on_the_engine(train):
    assert len(differences(train(StandsStill, learning_rate=0.0))) == 4


def test_the_tolerance_is_an_option(train):
    with pytest.raises(UserError, match=r"differ from the trainer's by 0\.05 on average.*explains 0\.01"):
        train(Noisy, tolerance=0.01)
    assert differences(train(Noisy)) == pytest.approx([0.05] * 4, abs=1e-4)
    assert len(differences(train(Other, tolerance=float("inf")))) == 4


def test_an_engine_without_log_probabilities_never_passes(train):
    with pytest.raises(UserError, match="by nan on average"):
        train(Broken)


def test_the_drift_of_a_stale_engine_adds_up():
    """Each step is too small to be told from rounding, their sum is not."""
    moved = iter([0.0, 0.0004, 0.0008, 0.0012])
    check = SyncCheck(0.1, lambda: ([[5, 6]], [[-1.0, -2.0]]), lambda _: torch.tensor([[-1.0, -2.0]]) + next(moved))
    assert [round(check(step), 5) for step in range(3)] == [0.0, 0.0004, 0.0008]
    with pytest.raises(UserError, match=r"have moved by 0\.0012"):
        check(3)


def test_one_stale_engine_of_several_stops_all_processes():
    def of_all(values):
        return torch.maximum(values, torch.tensor([0.0, 0.5]))

    check = SyncCheck(0.1, lambda: ([[5]], [[-1.0]]), lambda _: torch.tensor([[-1.0]]), of_all)
    with pytest.raises(UserError, match=r"moved by 0\.5"):
        check(0)


def launch(student_path, tmp_path, dataset, **options):
    return GRPOTrainer(student_path, [digit_reward], GRPOConfig(**settings(tmp_path, **options)), dataset)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"vllm_sync_tolerance": 0.1}, "would be ignored without use_vllm"),
        ({"use_vllm": True, "vllm_sync_tolerance": -0.1}, "vllm_sync_tolerance is -0.1"),
        ({"use_vllm": True, "vllm_mode": "server"}, "this run is on a CPU; use vllm_mode: colocate"),
        ({"use_vllm": True, "vllm_enable_sleep_mode": True}, "vllm_enable_sleep_mode frees GPU memory"),
    ],
)
def test_what_cannot_work_is_refused_before_the_model_is_loaded(
    options, message, student_path, tmp_path, dataset, monkeypatch
):
    monkeypatch.setattr(engine_sync, "find_spec", lambda _: object())
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    with pytest.raises(UserError, match=message):
        launch(student_path, tmp_path, dataset, **options)


def test_vllm_that_is_missing_and_a_model_without_a_folder_are_sentences(
    student_path, student, tmp_path, dataset, monkeypatch
):
    monkeypatch.setattr(engine_sync, "find_spec", lambda _: None)
    with pytest.raises(UserError, match="needs vLLM, which is not installed here"):
        launch(student_path, tmp_path, dataset, use_vllm=True)
    monkeypatch.setattr(engine_sync, "find_spec", lambda _: object())
    with pytest.raises(UserError, match="pass the model by its path"):
        launch(student, tmp_path, dataset, use_vllm=True)


@pytest.mark.parametrize("sleeps", [False, True])
def test_between_rollouts_the_engine_is_lent_with_the_weights_of_the_step(sleeps):
    calls = []
    llm = SimpleNamespace(
        wake_up=lambda tags: calls.append(f"wake {tags[0]}"),
        sleep=lambda level: calls.append(f"sleep {level}"),
        reset_prefix_cache=lambda: calls.append("reset"),
    )
    generation = SimpleNamespace(
        llm=llm, enable_sleep_mode=sleeps, _llm_weights_sleeping=sleeps, sync_weights=lambda: calls.append("sync")
    )
    trainer = SimpleNamespace(vllm_generation=generation, state=SimpleNamespace(global_step=4), _last_loaded_step=3)
    with synced_engine(trainer):
        calls.append("draw")
    asleep = ["sync", "wake kv_cache", "draw", "reset", "sleep 2"]
    assert calls == (asleep if sleeps else ["sync", "draw", "reset"])
    assert trainer._last_loaded_step == 4
    assert generation._llm_weights_sleeping == sleeps
    calls.clear()
    with synced_engine(trainer):
        assert calls == (["sync", "wake kv_cache"] if sleeps else [])  # nothing to copy, unless sleep has lost it
