"""What is forwarded and what is kept: every token once, whatever the order of rows and the place of teacher states."""

import pytest
import torch

from tests.conftest import losses
from tests.distributed.run import GLOBAL_BATCH, make_trainer
from tests.test_methods_end_to_end import REVERSE, buffered, logged, record_reads
from trl_opd.batches import pack, working_rows
from trl_opd.encoding import backbone
from trl_opd.errors import UserError
from trl_opd.teacher_states import compact_states
from trl_opd.teachers import causal_lm

THIRDS = {"per_device_train_batch_size": GLOBAL_BATCH // 3, "gradient_accumulation_steps": 3}


def assert_same_run(first, second, rtol: float = 1e-4) -> None:
    """Equal losses, gradients and parameters after training."""
    assert losses(second) == pytest.approx(losses(first), rel=rtol, abs=1e-6)
    assert logged(second, "grad_norm") == pytest.approx(logged(first, "grad_norm"), rel=10 * rtol)
    for (name, p), q in zip(first.model.named_parameters(), second.model.parameters(), strict=True):
        # Adam turns the rounding errors of a gradient near 0 into steps of the learning rate.
        torch.testing.assert_close(q, p, atol=2e-4, rtol=1e-2, msg=name)


# The order of rows


@pytest.mark.parametrize("method", ["grpo", "opd", "opsd", "sdpo", "srpo", "exopd", "scope"])
def test_packed_rows_give_the_steps_of_rows_in_random_order(method, tmp_path, monkeypatch):
    packed = make_trainer(method, tmp_path / "packed", **THIRDS)
    packed.train()
    widths = [int(batch["completion_mask"].sum(-1).max()) for batch in packed._buffered_inputs]
    assert widths == sorted(widths, reverse=True)
    monkeypatch.setattr("trl_opd.trainer.pack", lambda micro_batches, *_: micro_batches)
    plain = make_trainer(method, tmp_path / "plain", **THIRDS)
    plain.train()
    assert_same_run(plain, packed)
    assert min(logged(packed, "grad_norm")) > 0


def test_packing_leaves_every_row_in_its_optimizer_step(tmp_path, monkeypatch):
    seen = []

    def record(micro_batches, per_step, share):
        seen.append((micro_batches, pack(micro_batches, per_step, share)))
        return seen[-1][1]

    monkeypatch.setattr("trl_opd.trainer.pack", record)
    options = {"per_device_train_batch_size": 3, "gradient_accumulation_steps": 2, "steps_per_generation": 4}
    trainer = make_trainer("sdpo", tmp_path, **options, max_steps=2)
    trainer.train()

    def rows(batches):
        return {
            (tuple(ids[mask.bool()].tolist()), tuple(weights[mask.bool()].tolist()))
            for batch in batches
            for ids, mask, weights in zip(
                batch["completion_ids"], batch["completion_mask"], batch["kl_weight"], strict=True
            )
        }

    ((drawn, packed),) = seen
    assert len(rows(drawn)) == GLOBAL_BATCH
    for step in (slice(0, 2), slice(2, 4)):
        assert rows(drawn[step]) == rows(packed[step])


def test_rows_stay_in_random_order_where_the_loss_depends_on_their_company(tmp_path, monkeypatch):
    monkeypatch.setattr("trl_opd.trainer.pack", lambda *_: 1 / 0)
    make_trainer("opsd", tmp_path, **THIRDS, aggregation="token-micro", max_steps=1).train()


# How often what is read


def count_rows(trainer) -> dict[bool, int]:
    """Rows that the student's layers read from now on, with gradient (True) and without."""
    read = {True: 0, False: 0}

    def note(module, args, kwargs):
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        read[torch.is_grad_enabled()] += len(ids)

    backbone(causal_lm(trainer.model)).register_forward_pre_hook(note, with_kwargs=True)
    return read


@pytest.mark.parametrize("method", ["grpo", "opd", "opsd", "sdpo", "srpo", "exopd", "scope"])
def test_the_student_reads_each_row_once_for_its_loss(method, tmp_path):
    trainer = make_trainer(method, tmp_path, **THIRDS, max_steps=1, shared_prefix=False)
    read = count_rows(trainer)
    trainer.train()
    assert read[True] == sum(len(working_rows(batch)) or 1 for batch in trainer._buffered_inputs)
    assert read[True] == GLOBAL_BATCH or method == "sdpo"
    assert "old_per_token_logps" not in trainer._buffered_inputs[0]
    # Without gradient it reads only as its own averaged teacher, or what perplexities are made of.
    needed = {"sdpo": "kl_weight", "srpo": "kl_weight", "scope": "ce_weight"}
    expected = int((buffered(trainer, needed[method]) != 0).any(-1).sum()) if method in needed else 0
    assert read[False] == expected


@pytest.mark.parametrize("aggregation", ["token-global", "seq-mean", "seq-mean-live", "dr"])
def test_rows_without_weight_are_not_forwarded_and_still_count(aggregation, tmp_path, monkeypatch):
    runs = []
    for folder in ("left out", "forwarded"):
        # The only success of a group has nothing to read.
        trainer = make_trainer("sdpo", tmp_path / folder, **THIRDS, aggregation=aggregation, max_steps=2)
        route = trainer.objective.route

        def all_counted(rollouts, has_context, route=route):
            signals = route(rollouts, has_context)
            signals.counted = torch.ones_like(signals.counted)
            return signals

        trainer.objective.route = all_counted
        read = count_rows(trainer)
        trainer.train()
        runs.append((trainer, read[True]))
        monkeypatch.setattr("trl_opd.trainer.working_rows", lambda batch: list(range(len(batch["prompt_ids"]))))
    assert_same_run(runs[0][0], runs[1][0])
    assert runs[0][1] < runs[1][1] == 2 * GLOBAL_BATCH


@pytest.mark.parametrize(("method", "passes"), [("grpo", 1), ("scope", 1), ("exopd", 1), ("sdpo", 2)])
def test_old_log_probabilities_are_taken_once_and_serve_all_who_need_them(method, passes, tmp_path):
    trainer = make_trainer(method, tmp_path, num_iterations=2, max_steps=2, shared_prefix=False)
    read = count_rows(trainer)
    trainer.train()
    taught = int((buffered(trainer, "kl_weight") != 0).any(-1).sum())
    trained = taught if method == "sdpo" else GLOBAL_BATCH
    assert read == {True: 2 * trained, False: GLOBAL_BATCH + (taught if passes == 2 else 0)}


def test_the_engine_s_log_probabilities_are_not_taken_for_the_student_s(tmp_path):
    trainer = make_trainer("scope", tmp_path, max_steps=1)
    weigh, seen = trainer.objective.weigh, []
    trainer.objective.weigh = lambda rollouts, *rest: seen.append(rollouts.logps) or weigh(rollouts, *rest)
    trainer.train()
    assert (buffered(trainer, "sampling_per_token_logps") == 0).all()  # what the rollout function reported
    right = (buffered(trainer, "ce_weight") != 0).any(-1)
    assert (seen[0].sum(-1) < -1).sum() == right.sum() > 0


@pytest.mark.parametrize("method", ["sdpo", "srpo", "scope"])
def test_teacher_tokens_scored_per_token_with_divergence_weight(method, tmp_path):
    trainer = make_trainer(method, tmp_path, **THIRDS, max_steps=1)
    seen = record_reads(trainer.scorers[0])
    trainer.train()
    weighted = int((buffered(trainer, "kl_weight") != 0).sum())
    assert sum(map(len, seen)) / weighted == 1.0


# Shared prompts


@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
@pytest.mark.parametrize("method", ["grpo", "sdpo", "srpo", "scope"])
def test_shared_prompts_change_nothing_but_the_cost(method, lora, tmp_path):
    runs = []
    for shared in (False, True):
        options = {"gradient_checkpointing": False, "shared_prefix": shared}
        trainer = make_trainer(method, tmp_path / str(shared), lora=lora, **options)
        read = {"tokens": 0}

        def note(module, args, kwargs, read=read):
            read["tokens"] += kwargs["input_ids"].numel() if torch.is_grad_enabled() else 0

        backbone(causal_lm(trainer.model)).register_forward_pre_hook(note, with_kwargs=True)
        trainer.train()
        runs.append((trainer, read["tokens"]))
    (plain, plain_tokens), (shared, shared_tokens) = runs
    assert_same_run(plain, shared)
    assert shared_tokens < 0.8 * plain_tokens
    if method != "grpo":
        assert logged(shared, "teacher_tokens")[-1] < logged(plain, "teacher_tokens")[-1]


# Where teacher states are


@pytest.mark.parametrize("mode", ["offload", "recompute"])
@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("sdpo", {}),
        ("sdpo", {"num_iterations": 2}),
        ("srpo", {}),
        ("opd", {"num_iterations": 2}),
        ("opsd", {"teacher_weights": "live"}),
        ("sdpo", {"teacher_weights": "trust-region"}),
    ],
)
@pytest.mark.parametrize("lora", [False, True], ids=["whole", "lora"])
def test_the_place_of_teacher_states_changes_nothing(method, options, mode, lora, tmp_path):
    runs = []
    for place in ("keep", mode):
        trainer = make_trainer(method, tmp_path / place, lora=lora, **THIRDS, **options, teacher_states=place)
        trainer.train()
        runs.append(trainer)
    assert_same_run(*runs)
    if mode == "recompute":
        assert not any(name.startswith("scorer_states") for name in runs[1]._buffered_inputs[0])
        # The averaged weights' scores enter SRPO's weights: there the rows are read twice; each update reads them anew.
        times = options.get("num_iterations", 1) + (method == "srpo")
        kept, again = (logged(run, "teacher_tokens")[-1] for run in runs)
        assert again >= kept if times == 1 else again > 1.2 * kept


def test_states_are_compact_and_only_of_rows_with_divergence_weight(tmp_path):
    trainer = make_trainer("sdpo", tmp_path, **THIRDS, max_steps=1)
    trainer.train()
    states = [entry for batch in trainer._buffered_inputs for entry in batch["scorer_states_0"]]
    weights = buffered(trainer, "kl_weight") != 0
    assert [0 if entry is None else len(entry) for entry in states] == weights.sum(-1).tolist()
    assert any(entry is None for entry in states)


def test_states_are_released_before_the_next_rollouts(tmp_path):
    trainer = make_trainer("sdpo", tmp_path, **THIRDS)
    generate, held = trainer._generate_and_score_completions, []
    trainer._generate_and_score_completions = lambda inputs: held.append(trainer._buffered_inputs) or generate(inputs)
    trainer.train()
    assert held == [None] * 3


def test_compact_states_leaves_out_tokens_that_the_model_did_not_generate():
    states = torch.arange(8.0).view(4, 2)
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]]).bool()
    found = compact_states([states, None], mask, 2, torch.float32)
    assert torch.equal(found, torch.cat([states[[0, 2, 3]], torch.zeros(2, 2)]))


@pytest.mark.parametrize("mode", ["keep", "recompute"])
def test_an_evaluation_between_two_updates_leaves_the_live_teacher_of_the_rollouts(mode, tmp_path):
    updates = 2 if mode == "keep" else 1
    options = {"teacher_weights": "live", "num_iterations": updates, "max_steps": 4, "teacher_states": mode}
    plain = make_trainer("opsd", tmp_path / "plain", **options)
    plain.train()
    options |= {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": GLOBAL_BATCH}
    evaluated = make_trainer("opsd", tmp_path / "evaluated", eval_dataset=plain.train_dataset, **options)
    evaluated.train()
    assert len(logged(evaluated, "eval_loss")) == 4
    assert_same_run(plain, evaluated)


@pytest.mark.parametrize(
    ("method", "options", "fragment"),
    [
        ("sdpo", {"teacher_states": "host"}, "teacher_states is 'host'"),
        (
            "opd",
            {"teacher_states": "offload", "teacher_model": None, "teacher_server": "http://x"},
            "with teacher_server",
        ),
        ("scope", {"teacher_states": "offload"}, "keeps the sampled tokens' log-probabilities"),
        ("opsd", {"teacher_states": "recompute", "teacher_weights": "live", "num_iterations": 2}, "use keep or"),
        (
            "sdpo",
            REVERSE | {"teacher_states": "recompute", "teacher_weights": "trust-region", "steps_per_generation": 2},
            "use keep or",
        ),
    ],
)
def test_what_cannot_work_is_refused(method, options, fragment, tmp_path):
    with pytest.raises(UserError, match=fragment) as refusal:
        make_trainer(method, tmp_path, **options)
    assert str(refusal.value).endswith(".")
