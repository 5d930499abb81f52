"""The pipeline end to end, through the real TRL, transformers and PEFT, on a tiny model."""

import inspect

import pytest
import torch
from datasets import Dataset
from trl import GRPOTrainer as TRLTrainer
from trl.generation.vllm_generation import VLLMGeneration

from tests.conftest import digit_reward, losses, make_model, settings
from trl_opd import GRPOConfig, GRPOTrainer, OPDConfig, OPDTrainer, OPSDConfig, OPSDTrainer
from trl_opd.compat import CONTRACTS, ENGINE_CONTRACTS
from trl_opd.contexts import Context
from trl_opd.errors import UserError
from trl_opd.rollouts import Prompt, Rollouts
from trl_opd.testbed.tasks import REFERENCE_TEMPLATE

GREEDY = {"generation_kwargs": {"do_sample": False}, "top_p": 1.0, "top_k": 0, "temperature": 1.0}


def opsd(tmp_path, student, tokenizer, dataset, peft_config=None, **overrides):
    options = settings(tmp_path, num_generations=1, reference_template=REFERENCE_TEMPLATE) | overrides
    return OPSDTrainer(
        student, args=OPSDConfig(**options), train_dataset=dataset, processing_class=tokenizer, peft_config=peft_config
    )


def metric(trainer, name):
    return [row[name] for row in trainer.state.log_history if name in row]


class SamePrompt(Context):
    """The teacher reads what the student read."""

    def prompts(self, rollouts: Rollouts) -> list[Prompt | None]:
        return list(rollouts.prompts)


@pytest.mark.parametrize(
    ("owner", "name", "parameters"),
    [
        *((TRLTrainer, *contract) for contract in CONTRACTS.items()),
        *((VLLMGeneration, *contract) for contract in ENGINE_CONTRACTS.items()),
    ],
)
def test_contract_with_trl(owner, name, parameters):
    assert tuple(inspect.signature(getattr(owner, name)).parameters) == parameters


def test_opsd_trains_without_rewards_and_keeps_its_teacher(tmp_path, student, tokenizer, dataset):
    before = [p.detach().clone() for p in student.parameters()]
    trainer = opsd(tmp_path, student, tokenizer, dataset)
    trainer.train()
    assert len(losses(trainer)) == 5
    assert any(not torch.equal(p, q) for p, q in zip(before, trainer.model.parameters(), strict=True))
    teacher = trainer.scorers[0].model
    assert all(torch.equal(p, q) for p, q in zip(before, teacher.parameters(), strict=True))
    assert not metric(trainer, "reward")
    assert metric(trainer, "context/dropped_fraction") == [0.0] * 5
    assert metric(trainer, "teacher_tokens")[-1] > metric(trainer, "generated_tokens")[-1] > 0


@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_o4_teacher_equal_to_the_student_in_context_gives_no_loss_and_no_gradient(
    divergence, tmp_path, student, tokenizer, dataset
):
    before = [p.detach().clone() for p in student.parameters()]
    trainer = opsd(tmp_path, student, tokenizer, dataset, divergence=divergence, entry_clip=None, max_steps=1)
    trainer.objective.context = SamePrompt()
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.0, abs=1e-6)
    assert metric(trainer, "grad_norm")[0] == pytest.approx(0.0, abs=1e-5)
    for p, q in zip(before, trainer.model.parameters(), strict=True):
        torch.testing.assert_close(
            p, q, atol=2e-3, rtol=0
        )  # Adam turns a gradient of rounding errors into lr-sized steps


def test_o5_adapter_off_teacher_equals_the_copied_teacher_without_a_second_copy(tmp_path, tokenizer, dataset):
    from peft import LoraConfig

    lora = LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM")
    plain = opsd(tmp_path / "a", make_model(tokenizer), tokenizer, dataset, max_steps=1, **GREEDY)
    adapted = opsd(tmp_path / "b", make_model(tokenizer), tokenizer, dataset, lora, max_steps=3, **GREEDY)
    plain.train()
    adapted.train()
    assert losses(adapted)[0] == pytest.approx(losses(plain)[0], abs=1e-6)
    assert adapted.scorers[0].model is adapted.model
    assert losses(adapted)[0] > 0
    assert all(p.requires_grad for name, p in adapted.model.named_parameters() if "lora_" in name)


def test_a_trained_adapter_keeps_its_step_0_weights_as_teacher(tmp_path, tokenizer, dataset):
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(make_model(tokenizer), LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"))
    torch.manual_seed(1)
    for name, p in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(p, std=0.3)
    trainer = opsd(tmp_path, model, tokenizer, dataset, max_steps=1, entry_clip=None, learning_rate=1e-2)
    trainer.objective.context = SamePrompt()
    trainer.train()
    assert losses(trainer)[0] == pytest.approx(0.0, abs=1e-6)


def test_opd_pulls_the_student_to_another_model(tmp_path, student, tokenizer, dataset):
    teacher = make_model(tokenizer, seed=3)
    config = OPDConfig(**settings(tmp_path, num_generations=1, max_steps=30, learning_rate=1e-2))
    trainer = OPDTrainer(student, args=config, train_dataset=dataset, processing_class=tokenizer, teacher_model=teacher)
    trainer.train()
    divergence = metric(trainer, "distill/divergence")
    assert sum(divergence[-5:]) < 0.8 * sum(divergence[:5])


def test_sampled_estimator_keeps_no_hidden_states_and_logs_the_log_ratio(tmp_path, student, tokenizer, dataset):
    teacher = make_model(tokenizer, seed=3)
    config = OPDConfig(**settings(tmp_path, num_generations=1, max_steps=2, estimator="k1"))
    trainer = OPDTrainer(student, args=config, train_dataset=dataset, processing_class=tokenizer, teacher_model=teacher)
    trainer.train()
    assert metric(trainer, "distill/log_ratio")[0] > 0
    assert "scorer_states_0" not in trainer._buffered_inputs[0]


def test_teacher_reads_the_same_completion_ids_after_its_own_prompt(tmp_path, student, tokenizer, dataset):
    trainer = opsd(tmp_path, student, tokenizer, dataset, max_steps=1)
    scorer, seen = trainer.scorers[0], []
    read = scorer.read
    scorer.read = lambda ids, mask, width, *shared: seen.append((ids, mask, width)) or read(ids, mask, width, *shared)
    trainer.train()
    batch = trainer._buffered_inputs[0]
    solutions = {tokenizer.apply_chat_template(row["prompt"], tokenize=False): row["solution"] for row in dataset}
    student_rows = {
        tuple(ids[mask.bool()].tolist()): tokenizer.decode(prompt[prompt_mask.bool()])
        for ids, mask, prompt, prompt_mask in zip(
            batch["completion_ids"], batch["completion_mask"], batch["prompt_ids"], batch["prompt_mask"], strict=True
        )
    }
    for ids, mask, width in seen:
        for row, row_mask in zip(ids, mask, strict=True):
            completion = tuple(row[-width:][row_mask[-width:].bool()].tolist())
            context = tokenizer.decode(row[:-width][row_mask[:-width].bool()])
            student_prompt = student_rows.pop(completion)
            assert context.endswith("«assistant»")
            assert solutions[student_prompt.removesuffix("«assistant»")] in context
    assert not student_rows


def test_a_context_over_the_limit_is_dropped_counted_and_not_scored(tmp_path, student, tokenizer):
    from trl_opd.testbed.tasks import rows

    data = rows("train", 4)
    data[0]["solution"] = "1" * 400
    options = {"per_device_train_batch_size": 4, "max_teacher_length": 200, "shuffle_dataset": False, "max_steps": 1}
    trainer = opsd(tmp_path, student, tokenizer, Dataset.from_list(data), **options)
    trainer.train()
    assert metric(trainer, "context/dropped_fraction") == [0.25]
    assert metric(trainer, "context/active_fraction") == [0.75]
    batch = trainer._buffered_inputs[0]
    scored = (batch["scorer_logps_0"] != 0).any(-1)
    assert scored.sum() == 3
    assert torch.equal(scored, batch["counted"].bool().any(-1))


def test_all_contexts_dropped_gives_a_step_without_gradient(tmp_path, student, tokenizer, dataset):
    trainer = opsd(tmp_path, student, tokenizer, dataset, max_teacher_length=5, max_steps=1)
    trainer.train()
    assert losses(trainer) == [0.0]
    assert metric(trainer, "grad_norm") == [0.0]
    assert metric(trainer, "context/dropped_fraction") == [1.0]


@pytest.mark.parametrize("aggregation", ["token-global", "seq-mean", "seq-mean-live", "dr"])
def test_accumulation_gives_the_same_step_as_one_batch(aggregation, tmp_path, tokenizer, dataset):
    runs = []
    for size, steps in ((8, 1), (2, 4)):
        options = {"per_device_train_batch_size": size, "gradient_accumulation_steps": steps, "max_steps": 3}
        trainer = opsd(
            tmp_path / str(size),
            make_model(tokenizer),
            tokenizer,
            dataset,
            aggregation=aggregation,
            **options,
            **GREEDY,
        )
        trainer.train()
        runs.append(trainer)
    assert losses(runs[1]) == pytest.approx(losses(runs[0]), rel=1e-4)
    assert metric(runs[1], "grad_norm") == pytest.approx(metric(runs[0], "grad_norm"), rel=1e-3)


def test_several_steps_per_rollout_batch_have_denominators_of_their_own(tmp_path, student, tokenizer, dataset):
    trainer = opsd(
        tmp_path, student, tokenizer, dataset, aggregation="token-global", steps_per_generation=4, max_steps=4,
        per_device_train_batch_size=2, gradient_accumulation_steps=2,
    )  # fmt: skip
    trainer.train()
    batches = trainer._buffered_inputs
    for first in (0, 2):
        pair = batches[first : first + 2]
        tokens = sum(int(batch["counted"].sum()) for batch in pair)
        assert [int(batch["window_tokens"]) for batch in pair] == [tokens, tokens]


def test_rewards_are_logged_though_the_objective_needs_none(tmp_path, student, tokenizer, dataset):
    config = OPSDConfig(**settings(tmp_path, num_generations=1, reference_template=REFERENCE_TEMPLATE, max_steps=2))
    trainer = OPSDTrainer(student, digit_reward, config, dataset, processing_class=tokenizer)
    trainer.train()
    assert len(metric(trainer, "reward")) == 2


def test_separate_thinking_flags_reach_both_templates(tmp_path, student, tokenizer, dataset):
    import copy

    thinking = copy.deepcopy(tokenizer)
    thinking.chat_template = tokenizer.chat_template.replace(
        "'«assistant»'", "'«assistant»' + ('think:' if enable_thinking else 'plain:')"
    )
    trainer = opsd(tmp_path, student, thinking, dataset, max_steps=1)
    scorer, seen = trainer.scorers[0], []
    read = scorer.read
    scorer.read = lambda ids, mask, width, *shared: seen.append(ids[:, :-width]) or read(ids, mask, width, *shared)
    trainer.train()
    assert all(text.endswith("think:") for ids in seen for text in thinking.batch_decode(ids))
    student_prompts = thinking.batch_decode(trainer._buffered_inputs[0]["prompt_ids"])
    assert all(text.endswith("plain:") for text in student_prompts)


def test_a_run_resumed_from_a_checkpoint_goes_on_as_if_undisturbed(tmp_path, tokenizer, dataset):
    from trl_opd.state import newest_checkpoint

    def run(folder, steps, resume=False):
        options = {"save_strategy": "steps", "save_steps": 2, "max_steps": 5, "lr_scheduler_type": "constant"}
        trainer = opsd(tmp_path / folder, make_model(tokenizer), tokenizer, dataset, **options)
        if steps < 5:
            trainer.args.max_steps = steps
        trainer.train(resume_from_checkpoint=str(newest_checkpoint(tmp_path / folder)) if resume else None)
        return trainer

    whole = run("whole", 5)
    run("cut", 3)
    # The undisturbed run would not have saved step 3: the restart goes back to step 2.
    import shutil

    shutil.rmtree(tmp_path / "cut" / "checkpoint-3")
    resumed = run("cut", 5, resume=True)
    assert losses(resumed) == pytest.approx(losses(whole), abs=1e-6)
    assert metric(resumed, "generated_tokens") == metric(whole, "generated_tokens")
    for p, q in zip(resumed.model.parameters(), whole.model.parameters(), strict=True):
        torch.testing.assert_close(p, q, atol=1e-6, rtol=0)


def test_a_checkpoint_of_another_method_is_refused(tmp_path, tokenizer, dataset):
    trainer = opsd(
        tmp_path, make_model(tokenizer), tokenizer, dataset, save_strategy="steps", save_steps=1, max_steps=1
    )
    trainer.train()
    config = GRPOConfig(**settings(tmp_path))
    other = GRPOTrainer(make_model(tokenizer), digit_reward, config, dataset, processing_class=tokenizer)
    with pytest.raises(UserError, match="checkpoint of opsd"):
        other.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_a_checkpoint_that_was_cut_short_is_not_resumed_from(tmp_path, tokenizer, dataset):
    from trl_opd.state import STATE_FILE, newest_checkpoint

    trainer = opsd(
        tmp_path, make_model(tokenizer), tokenizer, dataset, save_strategy="steps", save_steps=1, max_steps=2
    )
    trainer.train()
    assert newest_checkpoint(tmp_path).name == "checkpoint-2"
    (tmp_path / "checkpoint-2" / STATE_FILE).unlink()
    assert newest_checkpoint(tmp_path).name == "checkpoint-1"


def test_a_teacher_of_another_vocabulary_is_refused_before_the_model_is_loaded(tmp_path, student_path, dataset):
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    other = Tokenizer(models.BPE(vocab={"a": 0, "b": 1, "«end»": 2}, merges=[]))
    PreTrainedTokenizerFast(tokenizer_object=other, eos_token="«end»").save_pretrained(tmp_path / "teacher")
    config = OPDConfig(**settings(tmp_path, num_generations=1, teacher_model_name_or_path=str(tmp_path / "teacher")))
    with pytest.raises(UserError, match="another vocabulary"):
        OPDTrainer(student_path, args=config, train_dataset=dataset)


def test_fsdp1_is_refused_before_anything_is_loaded(tmp_path, dataset, monkeypatch):
    config = GRPOConfig(**settings(tmp_path))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "1")
    with pytest.raises(UserError, match="fsdp_version: 2"):
        GRPOTrainer("nowhere", digit_reward, config, dataset)
