"""Tools and images: what works trains, what does not is refused in one sentence."""

import runpy
from pathlib import Path

import pytest
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from trl.chat_template_utils import qwen3_chat_template

from tests.conftest import digit_reward, make_model, settings
from trl_opd import GRPOConfig, GRPOTrainer, OPDConfig, OPDTrainer, OPSDConfig, OPSDTrainer, SDPOConfig, SDPOTrainer
from trl_opd.errors import UserError

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "tools.py"
SPECIAL = ["<|im_end|>", "<|im_start|>", "<|endoftext|>"]


@pytest.fixture(scope="module")
def bytes_tokenizer():
    """One token for each byte, with Qwen3's chat template, whose tool calls TRL can read."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[2], additional_special_tokens=SPECIAL[1:2]
    )
    fast.chat_template, fast.padding_side = qwen3_chat_template, "left"
    return fast


def scripted(trainer, tokenizer, *turns: str) -> None:
    """Lets every rollout say these turns, which a model of a thousand parameters would not."""
    left = list(turns)

    def generate(prompt_ids, *_, **__):
        ids = tokenizer(left.pop(0), add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        return [list(ids) for _ in prompt_ids], None

    trainer._generate_single_turn = generate


CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 17, "b": 25}}\n</tool_call>'
OPTIONS = {"max_completion_length": 400, "max_steps": 1, "per_device_train_batch_size": 2, "num_generations": 2}


def test_the_teacher_scores_what_the_student_wrote_and_not_what_the_tool_returned(tmp_path, bytes_tokenizer):
    make_trainer = runpy.run_path(str(EXAMPLE))["make_trainer"]
    options = {key: value for key, value in settings(tmp_path, **OPTIONS).items() if key != "max_completion_length"}
    student = make_model(bytes_tokenizer, max_position_embeddings=4096)
    teacher = make_model(bytes_tokenizer, seed=1, max_position_embeddings=4096)
    trainer = make_trainer(
        student, teacher, bytes_tokenizer, **options, log_completions=True, num_completions_to_print=0
    )
    scripted(trainer, bytes_tokenizer, CALL, "It is 42.")
    trainer.train()
    row = trainer.state.log_history[0]
    assert row["tools/call_frequency"] == 1
    assert row["tools/failure_frequency"] == 0
    assert row["distill/divergence"] > 0
    written = len(bytes_tokenizer(CALL)["input_ids"]) + len("It is 42.") + 2  # and the end of each turn
    (first, _) = trainer._strips.gathered()
    assert len(first.known) == len(first.ids) == written
    assert row["generated_tokens"] == 2 * written
    assert trainer._logs["completion"][0][1]["content"] == "42"


def test_grpo_trains_with_tools(tmp_path, bytes_tokenizer):
    add = runpy.run_path(str(EXAMPLE))["add"]
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "17 + 25?"}]}] * 4)
    trainer = GRPOTrainer(
        make_model(bytes_tokenizer, max_position_embeddings=4096), lambda completions, **_: [0.0, 1.0],
        GRPOConfig(**settings(tmp_path, **OPTIONS)), rows, processing_class=bytes_tokenizer, tools=[add],
    )  # fmt: skip
    scripted(trainer, bytes_tokenizer, CALL, "It is 42.")
    trainer.train()
    assert trainer.state.log_history[0]["tools/call_frequency"] == 1
    assert trainer.state.log_history[0]["grad_norm"] > 0


@pytest.mark.parametrize(("kind", "config"), [(OPSDTrainer, OPSDConfig), (SDPOTrainer, SDPOConfig)])
def test_methods_that_rewrite_the_prompt_refuse_tools(kind, config, tmp_path, bytes_tokenizer):
    add = runpy.run_path(str(EXAMPLE))["add"]
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "17 + 25?"}], "solution": "42"}] * 4)
    with pytest.raises(UserError, match=r"rewrites the teacher's prompt and does not support tools or environments\.$"):
        kind(
            make_model(bytes_tokenizer), digit_reward, config(**settings(tmp_path, **OPTIONS)), rows,
            processing_class=bytes_tokenizer, tools=[add],
        )  # fmt: skip


def test_a_dataset_of_images_is_refused_before_anything_is_loaded(tmp_path):
    rows = Dataset.from_list([{"prompt": [{"role": "user", "content": "What is this?"}], "image": "a.png"}] * 8)
    config = OPDConfig(**settings(tmp_path, teacher_model_name_or_path="no/such-teacher"))
    with pytest.raises(
        UserError, match=r"has a column 'image', and trl_opd trains text models only; remove the column"
    ):
        OPDTrainer("no/such-model", args=config, train_dataset=rows)


def test_a_model_that_takes_images_is_refused(tmp_path, student, tokenizer, dataset):
    trainer = GRPOTrainer(student, digit_reward, GRPOConfig(**settings(tmp_path)), dataset, processing_class=tokenizer)
    trainer._is_vlm = True
    with pytest.raises(UserError, match=r"trl_opd trains text models only; this one takes images\.$"):
        trainer._check_model(None)
