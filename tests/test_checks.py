"""Settings that cannot work are refused in one sentence that names the option."""

import pytest
from datasets import Dataset

from tests.conftest import settings
from trl_opd import GRPOConfig, OPDConfig, OPSDConfig
from trl_opd.checks import (
    POLICY_ONLY,
    UNSUPPORTED,
    check_config,
    check_data,
    check_rewards,
    check_teacher,
    resolve_aggregation,
)
from trl_opd.errors import UserError
from trl_opd.objectives import OBJECTIVES
from trl_opd.policy import AGGREGATION_OF_LOSS_TYPE

CONFIGS = {"grpo": GRPOConfig, "opd": OPDConfig, "opsd": OPSDConfig}
NO_CLIP = {"entry_clip": None}

#: A value other than the one that leaves the option off.
UNSUPPORTED_VALUES = {
    "importance_sampling_level": "sequence",
    "top_entropy_quantile": 0.2,
    "entropy_coef": 0.01,
    "use_adaptive_entropy": True,
    "off_policy_mask_threshold": 0.5,
    "cast_lm_head_to_fp32": True,
}
#: A value other than TRL's default.
POLICY_VALUES = {
    "beta": 0.1,
    "epsilon": 0.1,
    "epsilon_high": 0.28,
    "delta": 2.0,
    "loss_type": "grpo",
    "sapo_temperature_neg": 2.0,
    "sapo_temperature_pos": 2.0,
    "scale_rewards": "none",
    "sync_ref_model": True,
    "use_bias_correction_kl": False,
}


def config(method, tmp_path, **options):
    return CONFIGS[method](**settings(tmp_path, **options))


def objective(method, tmp_path, **options):
    return OBJECTIVES[method](config(method, tmp_path, **options))


def launch(method, tmp_path, **options):
    """What the trainer does with a config before it loads a model."""
    made = config(method, tmp_path, **options)
    check_config(made, OBJECTIVES[method](made))


def assert_refused(fragment, function, *args, **kwargs):
    with pytest.raises(UserError) as refusal:
        function(*args, **kwargs)
    message = str(refusal.value)
    assert fragment in message
    assert "\n" not in message
    assert message.endswith(".")
    assert ". " not in message.replace("e.g. ", "")


@pytest.mark.parametrize("method", CONFIGS)
def test_the_defaults_pass(method, tmp_path):
    launch(method, tmp_path)


@pytest.mark.parametrize("loss_type", AGGREGATION_OF_LOSS_TYPE)
def test_every_supported_loss_type_passes(loss_type, tmp_path):
    launch("grpo", tmp_path, loss_type=loss_type)


@pytest.mark.parametrize(("option", "value"), UNSUPPORTED_VALUES.items())
@pytest.mark.parametrize("method", CONFIGS)
def test_unsupported_options_are_refused(method, option, value, tmp_path):
    assert_refused(option, launch, method, tmp_path, **{option: value})


def test_the_tables_of_options_are_tested_whole():
    assert set(UNSUPPORTED_VALUES) == set(UNSUPPORTED)
    assert set(POLICY_VALUES) == set(POLICY_ONLY)


@pytest.mark.parametrize(
    ("method", "options", "fragment"),
    [
        ("grpo", {"loss_type": "luspo"}, "loss_type='luspo'"),
        ("grpo", {"loss_type": "token-mean"}, "loss_type='token-mean'"),
        ("grpo", {"aggregation": "token-mean"}, "aggregation='token-mean'"),
        ("opsd", {"aggregation": "mean"}, "aggregation='mean'"),
        ("opd", {"divergence": "kl"}, "divergence is 'kl'"),
        ("opsd", {"divergence": "forward"}, "divergence is 'forward'"),
        ("opd", {"estimator": "k4"}, "estimator is 'k4'"),
        ("opd", {"estimator": "k1", "divergence": "forward_kl"}, "estimator: k1"),
        ("opsd", {"estimator": "k1"} | NO_CLIP, "estimator: k1"),
        ("opd", {"estimator": "k1", "divergence": "jsd", "jsd_beta": 0.5}, "estimator: k1"),
        ("opd", {"entry_clip": 0.05}, "entry_clip"),
        ("opsd", {"divergence": "reverse_kl"}, "entry_clip"),
        ("opsd", {"divergence": "jsd", "jsd_beta": 0.5}, "entry_clip"),
        ("opsd", {"entry_clip": -0.05}, "entry_clip is -0.05"),
        ("opd", {"divergence": "jsd"}, "jsd_beta"),
        ("opd", {"jsd_beta": 0.5}, "jsd_beta"),
        ("opd", {"divergence": "jsd", "jsd_beta": 1.0}, "jsd_beta is 1.0"),
        ("grpo", {"num_generations": 1}, "num_generations=1"),
        ("opsd", {"reference_template": "{prompt}"}, "reference_template"),
        ("grpo", {"steps_per_generation": 3, "gradient_accumulation_steps": 2}, "steps_per_generation=3"),
        ("opsd", {"steps_per_generation": 1, "gradient_accumulation_steps": 2}, "steps_per_generation=1"),
    ],
)
def test_bad_settings_are_refused(method, options, fragment, tmp_path):
    assert_refused(fragment, launch, method, tmp_path, **options)


@pytest.mark.parametrize(("option", "value"), POLICY_VALUES.items())
def test_policy_options_are_refused_where_there_is_no_policy_gradient(option, value, tmp_path):
    for method in ("opsd", "opd"):
        assert_refused(f"{option}={value!r}", launch, method, tmp_path, **{option: value})
    launch("grpo", tmp_path, **{option: value})


def test_windows_of_whole_optimizer_steps_pass(tmp_path):
    launch("grpo", tmp_path, steps_per_generation=4, gradient_accumulation_steps=2)
    launch("opsd", tmp_path, steps_per_generation=4, gradient_accumulation_steps=2, num_generations=1)


@pytest.mark.parametrize(
    ("aggregation", "loss_type", "resolved"),
    [(None, "grpo", "seq-mean"), (None, "dapo", "token-global"), ("dr", "grpo", "dr")],
)
def test_the_aggregation_is_its_own_option_or_follows_the_loss_type(aggregation, loss_type, resolved, tmp_path):
    made = config("grpo", tmp_path, aggregation=aggregation, loss_type=loss_type)
    assert resolve_aggregation(made) == resolved


def test_opsd_aggregates_by_rows_by_default(tmp_path):
    assert resolve_aggregation(config("opsd", tmp_path)) == "seq-mean"


# Data, rewards, teachers


@pytest.mark.parametrize(
    ("method", "rows", "fragment"),
    [
        ("grpo", [], "train_dataset is empty"),
        ("grpo", [{"question": "a"}], "no column 'prompt'"),
        ("opsd", [{"prompt": "a", "answer": "1"}], "no column 'solution'"),
        ("opsd", [{"solution": "1"}], "no column 'prompt'"),
    ],
)
def test_a_dataset_that_cannot_train_is_refused(method, rows, fragment, tmp_path):
    assert_refused(fragment, check_data, Dataset.from_list(rows), objective(method, tmp_path))


def test_a_missing_dataset_is_refused(tmp_path):
    assert_refused("train_dataset is missing", check_data, None, objective("grpo", tmp_path))


def test_a_column_of_another_name_is_asked_for_by_that_name(tmp_path):
    made = objective("opsd", tmp_path, solution_column="worked")
    check_data(Dataset.from_list([{"prompt": "a", "worked": "b"}]), made)
    with_default_name = Dataset.from_list([{"prompt": "a", "solution": "b"}])
    assert_refused("no column 'worked'", check_data, with_default_name, made)
    assert_refused("solution_column", check_data, with_default_name, made)


def test_datasets_that_can_train_pass(tmp_path, dataset):
    for method in CONFIGS:
        check_data(dataset, objective(method, tmp_path))
    check_data(dataset.to_iterable_dataset(), objective("opsd", tmp_path))
    check_data(Dataset.from_list([{"prompt": "a"}]), objective("opd", tmp_path))


def test_grpo_needs_a_reward_function_and_distillation_none(tmp_path):
    for nothing in (None, []):
        assert_refused("reward_funcs", check_rewards, nothing, objective("grpo", tmp_path))
    check_rewards([len], objective("grpo", tmp_path))
    check_rewards(None, objective("opd", tmp_path))
    check_rewards(None, objective("opsd", tmp_path))


def test_opd_needs_a_teacher(tmp_path):
    made = config("opd", tmp_path)
    assert_refused("teacher_model", check_teacher, None, None, made, OBJECTIVES["opd"](made))
    check_teacher("some/teacher", None, made, OBJECTIVES["opd"](made))
    named = config("opd", tmp_path, teacher_model_name_or_path="some/teacher")
    check_teacher(None, None, named, OBJECTIVES["opd"](named))


@pytest.mark.parametrize("method", ["opsd", "grpo"])
def test_a_teacher_that_would_be_ignored_is_refused(method, tmp_path):
    made = config(method, tmp_path)
    assert_refused("teacher_model", check_teacher, "some/teacher", None, made, OBJECTIVES[method](made))
    check_teacher(None, None, made, OBJECTIVES[method](made))


def test_a_reference_that_would_be_ignored_is_refused(tmp_path):
    made = config("opd", tmp_path, teacher_model_name_or_path="some/teacher")
    assert_refused("reference", check_teacher, None, "some/reference", made, OBJECTIVES["opd"](made))


# One rollout per prompt


@pytest.mark.parametrize("config_class", [OPSDConfig, OPDConfig])
@pytest.mark.parametrize("batch", [1, 3, 4])
@pytest.mark.parametrize("steps", [1, 2])
def test_one_rollout_per_prompt_keeps_every_size(config_class, batch, steps, tmp_path):
    made = config_class(
        **settings(tmp_path, per_device_train_batch_size=batch, num_generations=1, gradient_accumulation_steps=steps)
    )
    assert made.per_device_train_batch_size == batch
    assert made.gradient_accumulation_steps == steps
    assert made.steps_per_generation == steps
    assert made.generation_batch_size == batch * steps
    assert made.num_generations == 1
    assert made.num_generations_eval is None


def test_one_rollout_per_prompt_keeps_a_given_generation_batch(tmp_path):
    made = config("opsd", tmp_path, num_generations=1, per_device_train_batch_size=3, generation_batch_size=9)
    assert (made.generation_batch_size, made.steps_per_generation) == (9, 3)
    made = config("opsd", tmp_path, num_generations=1, per_device_train_batch_size=3, steps_per_generation=5)
    assert (made.generation_batch_size, made.steps_per_generation) == (15, 5)


def test_one_rollout_per_prompt_and_an_odd_evaluation_batch(tmp_path):
    evaluation = {"do_eval": True, "eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 3}
    made = config("opsd", tmp_path, num_generations=1, **evaluation)
    assert made.per_device_eval_batch_size == 3
    with pytest.raises(ValueError, match="eval batch size"):
        config("opsd", tmp_path, num_generations=1, num_generations_eval=2, **evaluation)


@pytest.mark.parametrize("method", CONFIGS)
def test_a_batch_that_is_no_multiple_of_the_group_is_refused(method, tmp_path):
    with pytest.raises(ValueError, match="must be divisible by num_generations"):
        config(method, tmp_path, per_device_train_batch_size=3, num_generations=2)


def test_a_generation_batch_that_is_no_multiple_of_the_batch_is_refused(tmp_path):
    with pytest.raises(ValueError, match="generation_batch_size"):
        config("opsd", tmp_path, num_generations=1, per_device_train_batch_size=2, generation_batch_size=3)
