"""The free combination equals the named methods where it is set to them, and refuses options that would do nothing."""

import pytest
import yaml

import trl_opd
from tests.conftest import digit_reward, losses, make_model, settings
from trl_opd.configs import MixConfig
from trl_opd.errors import UserError
from trl_opd.objectives import Mix
from trl_opd.testbed.tasks import REFERENCE_TEMPLATE

SECTIONS = {
    "teacher_template": "{sections}Again:\n{prompt}",
    "demonstration_section": "Example:\n{demonstration}\n",
    "success_threshold": 0.1,
}
SAMPLING = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "chat_template_kwargs": None}

#: Named method -> (its options, the same as a mix).
EQUALS = {
    "opsd": (
        {"reference_template": REFERENCE_TEMPLATE, "num_generations": 1, "teacher_chat_template_kwargs": None},
        {"divergence": "forward_kl", "entry_clip": 0.05, "aggregation": "seq-mean", "max_grad_norm": 0.1},
    ),
    "srpo": (
        SECTIONS,
        {"context": "hindsight", "right": "pg", "wrong": "kl", "without_context": "pg", "weighting": "entropy"}
        | {"divergence": "jsd", "jsd_beta": 0.5, "estimator": "topk", "support_size": 100}
        | {"teacher_weights": "ema", "teacher_update_rate": 0.05},
    ),
    "scope": (
        {"success_threshold": 0.1, "weight_decay": 0.01},
        {"teacher": "external", "context": "prompt", "right": "ce", "wrong": "kl", "weighting": "perplexity"}
        | {"estimator": "k1", "aggregation": "prompt-sum", "importance_cap": None},
    ),
}


def train(name, folder, tokenizer, dataset, options):
    config = getattr(trl_opd, f"{name}Config")(
        **settings(folder, max_steps=3, max_completion_length=24, **SAMPLING) | options
    )
    teacher = (
        {"teacher_model": make_model(tokenizer, seed=3)}
        if getattr(config, "teacher", name) in ("external", "SCOPE")
        else {}
    )
    trainer = getattr(trl_opd, f"{name}Trainer")(
        make_model(tokenizer), digit_reward, config, dataset, processing_class=tokenizer, **teacher
    )
    trainer.train()
    return trainer


@pytest.mark.parametrize("name", EQUALS)
def test_mix_set_to_a_named_method_is_that_method(name, tmp_path, tokenizer, dataset):
    named, mixed = EQUALS[name]
    public = {"opsd": "OPSD", "srpo": "SRPO", "scope": "SCOPE"}[name]
    theirs = train(public, tmp_path / "named", tokenizer, dataset, named)
    schedule = {key: getattr(theirs.args, key) for key in ("lr_scheduler_type", "warmup_steps", "weight_decay")}
    ours = train("Mix", tmp_path / "mix", tokenizer, dataset, named | mixed | schedule)
    assert any(abs(loss) > 1e-4 for loss in losses(theirs))
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"context": "prompt", "reference_template": "{prompt}{solution}!"}, "reference_template acts with context"),
        ({"context": "reference", "use_feedback": True}, "use_feedback acts with context: hindsight"),
        ({"entropy_beta": 2.0}, "entropy_beta acts with weighting: entropy"),
        ({"teacher": "external", "context": "prompt", "teacher_weights": "live"}, "teacher_weights acts with teacher"),
        ({"right": "ce", "wrong": "pg"}, "no teacher"),
        ({"right": "all"}, "right is 'all'"),
    ],
)
def test_mix_refuses_what_would_be_ignored(options, fragment, tmp_path):
    with pytest.raises(UserError, match=fragment):
        Mix(MixConfig(**settings(tmp_path) | options))


def test_mix_is_written_in_yaml_alone(tmp_path):
    text = """
        context: hindsight
        use_feedback: true
        right: ce
        wrong: kl
        divergence: jsd
        jsd_beta: 0.3
        teacher_weights: ema
        teacher_update_rate: 0.1
    """
    objective = Mix(MixConfig(**settings(tmp_path), **yaml.safe_load(text)))
    assert objective.needs_groups
    assert objective.needs_rewards
    assert not objective.uses_policy_gradient
