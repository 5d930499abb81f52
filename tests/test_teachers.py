"""Whose weights score: what a self teacher is made of, how it moves, and that it leaves the student alone."""

import copy

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from tests.conftest import losses, make_model, settings
from trl_opd import ExOPDConfig, ExOPDTrainer, OPDConfig, OPDTrainer, OPSDConfig, OPSDTrainer
from trl_opd.errors import UserError
from trl_opd.state import newest_checkpoint
from trl_opd.teachers import (
    ByDomain,
    MovingAverage,
    Scorer,
    check_same_vocabulary,
    evaluation_mode,
    external,
    frozen_self,
    self_teachers,
    swapped_in,
)
from trl_opd.testbed.tasks import REFERENCE_TEMPLATE, rows
from trl_opd.testbed.tokenizer import build_tokenizer
from trl_opd.tiled import sampled_logps_and_entropy

LORA = {"r": 4, "target_modules": "all-linear", "task_type": "CAUSAL_LM"}
SELF_WEIGHTS = {
    "frozen": {},
    "live": {},
    "ema": {"teacher_update_rate": 0.3},
    "trust-region": {"teacher_update_rate": 0.3},
}
IDS = torch.tensor([[7, 9, 12, 20, 31, 8], [5, 5, 40, 11, 60, 33]])


def adapted(tokenizer, seed: int | None = None, **overrides):
    """A student with a fresh LoRA adapter, or with one that has been trained, if a seed is given."""
    model = get_peft_model(make_model(tokenizer), LoraConfig(**LORA, **overrides))
    if seed is not None:
        move(model, seed)
    return model


def move(model, seed: int) -> None:
    """Gives every trainable parameter another value, as some optimizer steps would."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in model.parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))


def logps(scorer: Scorer):
    """What a scorer says of the last four tokens, exactly as the pipeline asks it, `[B, 4]`."""
    states = scorer.read(IDS, torch.ones_like(IDS), 4)
    found, _ = sampled_logps_and_entropy(states.flatten(0, 1), scorer.head, IDS[:, -4:].flatten())
    return found.view(2, 4)


@torch.no_grad()
def reference_logps(model):
    """The same by the model's own forward."""
    was_training = model.training
    model.eval()
    logits = model(input_ids=IDS).logits[:, -5:-1]
    model.train(was_training)
    return logits.log_softmax(-1).gather(-1, IDS[:, -4:, None]).squeeze(-1)


def merged(model):
    """A plain model with the adapter merged into its weights."""
    return copy.deepcopy(model).merge_and_unload()


def interpolated(start, end, share: float):
    """A model whose weights are (1 - share) start + share end."""
    mixed = copy.deepcopy(start)
    with torch.no_grad():
        for p, q in zip(mixed.parameters(), end.parameters(), strict=True):
            p.lerp_(q, share)
    return mixed


def assert_equal(actual, expected):
    torch.testing.assert_close(actual, expected, atol=2e-5, rtol=2e-5)


def opsd(tmp_path, student, tokenizer, dataset, **overrides):
    options = settings(tmp_path, num_generations=1, reference_template=REFERENCE_TEMPLATE) | overrides
    return OPSDTrainer(student, args=OPSDConfig(**options), train_dataset=dataset, processing_class=tokenizer)


# Made of the student's own weights


@pytest.mark.parametrize("weights", SELF_WEIGHTS)
def test_the_teacher_is_the_loaded_student_and_not_its_path(weights, student_path, tokenizer):
    from transformers import AutoModelForCausalLM

    student = AutoModelForCausalLM.from_pretrained(student_path)
    untouched = reference_logps(student)
    move(student, seed=1)
    for scorer in self_teachers(student, 1.0, weights, 0.3):
        assert_equal(logps(scorer), reference_logps(student))
        assert not torch.allclose(logps(scorer), untouched, atol=1e-2)


@pytest.mark.parametrize("weights", SELF_WEIGHTS)
def test_a_model_without_a_path_has_a_teacher(weights, tokenizer):
    student = make_model(tokenizer)
    assert not student.config.name_or_path
    for scorer in self_teachers(student, 1.0, weights, 0.3):
        assert_equal(logps(scorer), reference_logps(student))


@pytest.mark.parametrize("kind", ["plain", "fresh adapter", "trained adapter"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_frozen_teacher_stays_while_the_student_moves(kind, tied, tokenizer):
    student = make_model(tokenizer, tie_word_embeddings=tied)
    if kind != "plain":
        student = get_peft_model(student, LoraConfig(**LORA))
    if kind == "trained adapter":
        move(student, seed=1)
    before = reference_logps(student)
    teacher = frozen_self(student, 1.0)
    move(student, seed=2)
    after = reference_logps(student)
    assert not torch.allclose(before, after, atol=1e-2)
    assert_equal(logps(teacher), before)
    assert_equal(reference_logps(student), after)


def assert_starts_at_the_student_and_stays(tmp_path, student, tokenizer, dataset, **options):
    """A teacher made from the student scores as the student did, unless the trainer refuses such a student."""
    before = reference_logps(student)
    try:
        trainer = opsd(tmp_path, student, tokenizer, dataset, max_steps=1, temperature=1.0, **options)
    except UserError:
        return
    move(student, seed=2)
    assert_equal(logps(trainer.scorers[0]), before)


def test_a_head_trained_beside_the_adapter_is_not_the_frozen_teacher_s(tmp_path, tokenizer, dataset):
    base = make_model(tokenizer, tie_word_embeddings=False)
    student = get_peft_model(base, LoraConfig(**LORA, modules_to_save=["lm_head"]))
    assert_starts_at_the_student_and_stays(tmp_path, student, tokenizer, dataset)


def test_the_average_of_a_dora_student_starts_at_it(tmp_path, tokenizer, dataset):
    student = adapted(tokenizer, seed=1, use_dora=True)
    options = {"teacher_weights": "ema", "teacher_update_rate": 0.05}
    assert_starts_at_the_student_and_stays(tmp_path, student, tokenizer, dataset, **options)


def test_an_adapter_on_the_head_is_refused(tmp_path, tokenizer, dataset):
    base = make_model(tokenizer, tie_word_embeddings=False)
    student = get_peft_model(base, LoraConfig(**LORA | {"target_modules": ["q_proj", "lm_head"]}))
    with pytest.raises(ValueError, match="lm_head"):
        opsd(tmp_path, student, tokenizer, dataset)


@pytest.mark.parametrize("temperature", [0.5, 1.1])
def test_the_temperature_divides_the_teacher_s_logits(temperature, tokenizer):
    student = make_model(tokenizer)
    with torch.no_grad():
        scaled = student.eval()(input_ids=IDS).logits[:, -5:-1] / temperature
    expected = scaled.log_softmax(-1).gather(-1, IDS[:, -4:, None]).squeeze(-1)
    assert_equal(logps(frozen_self(student, temperature)), expected)


# The moving average


@pytest.mark.parametrize("kind", ["plain", "fresh adapter", "trained adapter"])
def test_the_average_starts_at_the_student(kind, tokenizer):
    seed = {"fresh adapter": None, "trained adapter": 1}
    student = make_model(tokenizer) if kind == "plain" else adapted(tokenizer, seed[kind])
    assert_equal(logps(MovingAverage(student, 1.0, 0.05)), reference_logps(student))


@pytest.mark.parametrize("rate", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("kind", ["plain", "fresh adapter", "trained adapter"])
def test_s5_the_average_is_that_of_the_weights_themselves(kind, rate, tokenizer):
    """Two updates with a student that stays: its weight is 1 - (1 - a)^2, also where only an adapter is trained."""
    if kind == "plain":
        student, weights = make_model(tokenizer), copy.deepcopy
    else:
        student, weights = adapted(tokenizer, seed=1 if kind == "trained adapter" else None), merged
    teacher = MovingAverage(student, 1.0, rate)
    start = weights(student)
    move(student, seed=2)
    end = weights(student)
    teacher.update(1)
    assert_equal(logps(teacher), reference_logps(interpolated(start, end, rate)))
    teacher.update(2)
    assert_equal(logps(teacher), reference_logps(interpolated(start, end, 1 - (1 - rate) ** 2)))
    assert_equal(reference_logps(student), reference_logps(end))


def test_s5_rate_1_is_the_student_and_rate_0_never_moves(tokenizer):
    student = make_model(tokenizer)
    before = reference_logps(student)
    still, follower = MovingAverage(student, 1.0, 0.0), MovingAverage(student, 1.0, 1.0)
    move(student, seed=1)
    for teacher in (still, follower):
        teacher.update(1)
    assert_equal(logps(still), before)
    assert_equal(logps(follower), reference_logps(student))


def test_a_step_that_was_seen_already_moves_nothing(tokenizer):
    student = make_model(tokenizer)
    teacher = MovingAverage(student, 1.0, 0.5)
    move(student, seed=1)
    teacher.update(0)  # before the first optimizer step
    start = {name: value.clone() for name, value in teacher.average.items()}
    teacher.update(3)
    moved = {name: value.clone() for name, value in teacher.average.items()}
    teacher.update(3)
    assert all(torch.equal(moved[name], value) for name, value in teacher.average.items())
    assert any(not torch.equal(moved[name], value) for name, value in start.items())


@pytest.mark.parametrize("with_adapter", [False, True])
def test_the_average_of_a_bf16_student_is_kept_in_float32(with_adapter, tokenizer):
    student = (adapted(tokenizer, seed=1) if with_adapter else make_model(tokenizer)).to(torch.bfloat16)
    teacher = MovingAverage(student, 1.0, 1e-3)
    assert {value.dtype for value in teacher.average.values()} == {torch.float32}
    start = {name: value.clone() for name, value in teacher.average.items()}
    move(student, seed=2)
    for step in range(1, 201):
        teacher.update(step)
    current = dict(teacher._current())
    for name, value in teacher.average.items():
        expected = start[name] + (1 - 0.999**200) * (current[name] - start[name])
        torch.testing.assert_close(value, expected, atol=1e-5, rtol=1e-4)
    logps(teacher)
    assert {p.dtype for p in student.parameters()} == {torch.bfloat16}


# It leaves the student alone


def snapshot(model):
    return {name: (p.requires_grad, p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}


@pytest.mark.parametrize("kind", ["plain", "fresh adapter", "trained adapter"])
@pytest.mark.parametrize("weights", SELF_WEIGHTS)
def test_scoring_leaves_the_student_as_it_was(weights, kind, tokenizer):
    seed = {"fresh adapter": None, "trained adapter": 1}
    student = make_model(tokenizer) if kind == "plain" else adapted(tokenizer, seed[kind])
    scorers = self_teachers(student, 1.0, weights, 0.3)
    move(student, seed=2)
    for scorer in scorers:
        scorer.update(1)
    student.train()
    before = snapshot(student)
    for scorer in scorers:
        logps(scorer)
    for name, (requires_grad, pointer, value) in snapshot(student).items():
        assert (requires_grad, pointer) == before[name][:2], name
        assert torch.equal(value, before[name][2]), name
    assert student.training
    assert all(p.grad is None for p in student.parameters())


def test_swapped_in_restores_after_an_exception(tokenizer):
    student = make_model(tokenizer)
    before = snapshot(student)
    other = {name: torch.zeros_like(p) for name, p in student.named_parameters()}

    def interrupted():
        with swapped_in(student, other):
            assert all((p == 0).all() for p in student.parameters())
            raise RuntimeError("in the middle")

    with pytest.raises(RuntimeError, match="in the middle"):
        interrupted()
    assert all(torch.equal(value[2], before[name][2]) for name, value in snapshot(student).items())


@pytest.mark.parametrize("weights", ["frozen", "ema"])
def test_a_forward_that_fails_leaves_the_student_its_weights(weights, tokenizer, monkeypatch):
    student = adapted(tokenizer, seed=1)
    (scorer,) = self_teachers(student, 1.0, weights, 0.3)
    move(student, seed=2)
    student.train()
    expected = reference_logps(student)
    monkeypatch.setattr("trl_opd.teachers.completion_hidden", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        logps(scorer)
    monkeypatch.undo()
    assert_equal(reference_logps(student), expected)
    assert student.training
    assert all(p.requires_grad == ("lora_" in name) for name, p in student.named_parameters())


def test_swapped_in_restores_where_a_tensor_does_not_fit(tokenizer):
    student = make_model(tokenizer)
    before = snapshot(student)
    names = [name for name, _ in student.named_parameters()]
    broken = {names[0]: torch.zeros_like(dict(student.named_parameters())[names[0]]), names[1]: None}
    with pytest.raises(AttributeError), swapped_in(student, broken):
        pass
    assert all(torch.equal(value[2], before[name][2]) for name, value in snapshot(student).items())


@pytest.mark.parametrize("training", [True, False])
def test_evaluation_mode_restores(training, tokenizer):
    student = make_model(tokenizer).train(training)
    with evaluation_mode(student):
        assert not any(module.training for module in student.modules())
    assert all(module.training == training for module in student.modules())
    with pytest.raises(RuntimeError), evaluation_mode(student):
        raise RuntimeError
    assert student.training == training


def test_evaluation_mode_restores_every_module_as_it_was(tokenizer):
    student = make_model(tokenizer).train()
    student.model.layers[0].eval()
    with evaluation_mode(student):
        pass
    assert student.training
    assert not student.model.layers[0].training


def test_a_teacher_scores_without_dropout(tokenizer):
    student = make_model(tokenizer, attention_dropout=0.5).train()
    teacher = frozen_self(student, 1.0)
    teacher.model.train()
    assert torch.equal(logps(teacher), logps(teacher))


def test_external_and_copied_teachers_are_frozen(tokenizer):
    model, student = make_model(tokenizer, seed=3), make_model(tokenizer)
    assert not any(p.requires_grad for p in external(model, 1.0).model.parameters())
    assert not any(p.requires_grad for p in frozen_self(student, 1.0).model.parameters())
    assert all(p.requires_grad for p in student.parameters())


@pytest.mark.parametrize("weights", SELF_WEIGHTS)
@pytest.mark.parametrize("with_adapter", [False, True])
def test_c10_no_teacher_parameter_gets_a_gradient(with_adapter, weights, tmp_path, tokenizer, dataset):
    student = adapted(tokenizer, seed=1) if with_adapter else make_model(tokenizer)
    trainable = {name for name, p in student.named_parameters() if p.requires_grad}
    options = {"teacher_weights": weights, "max_steps": 2} | SELF_WEIGHTS[weights]
    trainer = opsd(tmp_path, student, tokenizer, dataset, **options)
    trainer.train()
    assert {name for name, p in trainer.model.named_parameters() if p.requires_grad} == trainable
    for scorer in trainer.scorers:
        assert not any(value.requires_grad for value in scorer.state().values())
        if scorer.model is not trainer.model:
            assert all(p.grad is None and not p.requires_grad for p in scorer.model.parameters())


# In training: when it moves, and that a checkpoint remembers it


def test_the_average_moves_once_per_rollout_batch(tmp_path, tokenizer, dataset):
    options = {
        "teacher_weights": "ema", "teacher_update_rate": 0.5, "max_steps": 6, "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2, "steps_per_generation": 4, "num_generations": 1,
    }  # fmt: skip
    config = OPSDConfig(**settings(tmp_path, reference_template=REFERENCE_TEMPLATE, **options))
    trainer = OPSDTrainer(
        make_model(tokenizer), None, config, dataset, dataset.select(range(2)), processing_class=tokenizer
    )
    scorer, moved, measured = trainer.scorers[0], [], []
    update, current = scorer.update, scorer._current

    def recording(step):
        before = scorer.updated_at
        update(step)
        moved.append((step, scorer.updated_at != before))

    scorer.update = recording
    scorer._current = lambda: measured.append(1) or current()
    trainer.train()
    # Two optimizer steps a rollout batch: batches begin at steps 0, 2 and 4, and nothing has moved before the first.
    assert moved == [(0, False), (2, True), (4, True)]
    assert len(measured) == 2
    trainer.evaluate()
    assert len(measured) == 2


@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_rate_of_0_is_the_frozen_teacher_and_1_the_live_one(with_adapter, tmp_path, tokenizer, dataset):
    def run(name, **options):
        student = adapted(tokenizer, seed=1) if with_adapter else make_model(tokenizer)
        trainer = opsd(tmp_path / name, student, tokenizer, dataset, max_steps=3, learning_rate=1e-2, **options)
        trainer.train()
        return losses(trainer)

    frozen, live = run("frozen", teacher_weights="frozen"), run("live", teacher_weights="live")
    assert frozen != pytest.approx(live, rel=1e-3)
    assert run("still", teacher_weights="ema", teacher_update_rate=0.0) == pytest.approx(frozen, abs=2e-5)
    assert run("moved", teacher_weights="ema", teacher_update_rate=1.0) == pytest.approx(live, abs=2e-5)


@pytest.mark.parametrize("weights", SELF_WEIGHTS)
@pytest.mark.parametrize("with_adapter", [False, True])
def test_a_resumed_run_has_the_teacher_that_it_had(with_adapter, weights, tmp_path, tokenizer, dataset):
    def run(folder, steps, resume=False):
        student = adapted(tokenizer, seed=1) if with_adapter else make_model(tokenizer)
        options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 3, "lr_scheduler_type": "constant"}
        options |= {"teacher_weights": weights, "learning_rate": 1e-2} | SELF_WEIGHTS[weights]
        trainer = opsd(tmp_path / folder, student, tokenizer, dataset, **options)
        trainer.args.max_steps = steps
        trainer.train(resume_from_checkpoint=str(newest_checkpoint(tmp_path / folder)) if resume else None)
        return trainer

    whole = run("whole", 3)
    run("cut", 2)
    resumed = run("cut", 3, resume=True)
    assert losses(resumed) == losses(whole)
    for ours, theirs in zip(resumed.scorers, whole.scorers, strict=True):
        kept, expected = ours.state(), theirs.state()
        assert kept.keys() == expected.keys()
        assert all(torch.equal(kept[name], expected[name]) for name in kept)
        assert torch.equal(logps(ours), logps(theirs))
    assert bool(whole.scorers[0].state()) == (weights == "ema")


# External teachers


def spoken_by(scorer: ByDomain, domains: list[str]) -> dict[str, list[int]]:
    examples = [{"domain": domain} for domain in domains]
    names = {id(teacher): name for name, teacher in scorer.teachers.items()}
    return {names[id(teacher)]: chosen for teacher, chosen in scorer.assign(list(range(len(domains))), examples)}


def test_by_domain_every_row_is_read_by_its_own_teacher(tokenizer):
    teachers = {name: external(make_model(tokenizer, seed=seed), 1.0) for name, seed in (("maths", 3), ("code", 4))}
    found = spoken_by(ByDomain(teachers, "domain"), ["code", "maths", "code", "code"])
    assert found == {"maths": [1], "code": [0, 2, 3]}
    assert spoken_by(ByDomain(teachers, "domain"), ["code"]) == {"maths": [], "code": [0]}


@pytest.fixture(scope="module")
def teacher_paths(tokenizer, tmp_path_factory):
    paths = {}
    for name, seed in (("first", 3), ("second", 4)):
        paths[name] = str(tmp_path_factory.mktemp(name))
        make_model(tokenizer, seed=seed).save_pretrained(paths[name])
        build_tokenizer().save_pretrained(paths[name])
    return paths


def exopd(tmp_path, tokenizer, domains: list[str] | None = None, **overrides):
    data = rows("train", 8)
    if domains is not None:
        data = [row | {"domain": domains[index % len(domains)]} for index, row in enumerate(data)]
    options = {"num_generations": 1, "max_steps": 2, "shuffle_dataset": False, "extrapolation": 1.25} | overrides
    config = ExOPDConfig(**settings(tmp_path, **options))
    trainer = ExOPDTrainer(
        make_model(tokenizer), args=config, train_dataset=Dataset.from_list(data), processing_class=tokenizer
    )
    trainer.train()
    return trainer


def test_x8_two_teachers_of_the_same_weights_are_one(tmp_path, tokenizer, teacher_paths):
    first = teacher_paths["first"]
    single = exopd(tmp_path / "single", tokenizer, teacher_model_name_or_path=first)
    twice = exopd(tmp_path / "twice", tokenizer, ["maths", "code"], teacher_models={"maths": first, "code": first})
    assert losses(twice) == pytest.approx(losses(single), rel=1e-5)


def test_x8_the_order_of_domains_changes_nothing_and_their_assignment_does(tmp_path, tokenizer, teacher_paths):
    first, second = teacher_paths["first"], teacher_paths["second"]
    domains = ["maths", "code", "code", "maths"]
    found = [
        losses(exopd(tmp_path / str(index), tokenizer, domains, teacher_models=teachers))
        for index, teachers in enumerate(
            ({"maths": first, "code": second}, {"code": second, "maths": first}, {"maths": second, "code": first})
        )
    ]
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] != pytest.approx(found[0], rel=1e-2)


def test_an_unknown_domain_is_refused_at_launch(tmp_path, tokenizer, teacher_paths):
    teachers = {"maths": teacher_paths["first"]}
    with pytest.raises(UserError, match="No teacher is named for the domain 'code'"):
        exopd(tmp_path, tokenizer, ["maths", "code"], teacher_models=teachers)
    with pytest.raises(UserError, match="no column 'domain'"):
        exopd(tmp_path, tokenizer, teacher_models=teachers)


def test_vocabularies_are_compared_and_names_are_not(tokenizer):
    other = build_tokenizer()
    other.name_or_path = "somebody/else"
    check_same_vocabulary(tokenizer, other, "somebody/else")
    other.add_tokens(["«new»"])
    with pytest.raises(UserError, match=r"another vocabulary.*'«new»'"):
        check_same_vocabulary(tokenizer, other, tokenizer.name_or_path)


def test_another_end_of_turn_is_refused(tokenizer):
    other = build_tokenizer()
    other.eos_token = "«user»"
    with pytest.raises(UserError, match="ends its turns with token '«user»'"):
        check_same_vocabulary(tokenizer, other, "teacher")


@pytest.mark.parametrize("estimator", ["full", "k1"])
def test_rows_of_the_teacher_s_head_beyond_the_tokenizer_change_nothing(estimator, tmp_path, tokenizer):
    """They belong to no token: whatever they hold, the target is a distribution over the tokens that both have."""
    found = []
    for seed in (None, 1, 2):
        teacher = make_model(tokenizer, seed=3)
        if seed is not None:
            size = len(tokenizer)
            teacher.resize_token_embeddings(size + 13, mean_resizing=False)
            noise = torch.randn(13, 32, generator=torch.Generator().manual_seed(seed))
            teacher.get_output_embeddings().weight.data[size:] = noise
        options = {"num_generations": 1, "max_steps": 1, "estimator": estimator}
        config = OPDConfig(**settings(tmp_path / str(seed), **options))
        data = Dataset.from_list(rows("train", 4))
        student = make_model(tokenizer)
        trainer = OPDTrainer(
            student, args=config, train_dataset=data, processing_class=tokenizer, teacher_model=teacher
        )
        trainer.train()
        found.append(losses(trainer)[0])
    assert found[1:] == pytest.approx([found[0]] * 2, rel=1e-4)
