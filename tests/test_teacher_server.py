"""A teacher behind a server trains as the same teacher here; what fails is retried, masked and counted, or refused."""

import math

import pytest
import torch

import trl_opd.teacher_server as served
from tests.conftest import assert_same_run, logged, losses, make_model
from tests.distributed.run import GLOBAL_BATCH, fixed_rollouts, make_trainer
from tests.fake_server import serving
from trl_opd.errors import UserError
from trl_opd.teacher_server import Client, Connection, NoAnswer, Scored, ServerTeacher
from trl_opd.testbed.tokenizer import build_tokenizer

K1 = {"estimator": "k1"}


@pytest.fixture(autouse=True)
def short_waits(monkeypatch):
    monkeypatch.setattr(served, "BACKOFF", 0.01)


@pytest.fixture
def server(tokenizer):
    with serving(make_model(tokenizer, seed=3), tokenizer) as fake:
        yield fake


def connection(server, **options):
    settings = {"url": server.url, "model": None, "timeout": 5.0, "retries": 2, "concurrency": 4}
    return Connection(**settings | options)


def train(method, path, server=None, steps=3, **options):
    if server is not None:
        options |= {"teacher_model": None, "teacher_server": server.url, "teacher_server_retries": 2}
    trainer = make_trainer(method, path, max_steps=steps, **options)
    trainer.train()
    return trainer


@pytest.mark.parametrize("estimator", ["k1", "k2", "k3"])
def test_server_equals_local_on_the_sampled_tokens(estimator, server, tmp_path):
    options = {"estimator": estimator, "divergence": "forward_kl" if estimator == "k3" else "reverse_kl"}
    there = train("opd", tmp_path / "there", server, **options)
    here = train("opd", tmp_path / "here", **options)
    assert_same_run(there, here)
    assert logged(there, "teacher/missing_fraction") == [0.0] * 3
    assert logged(there, "teacher_tokens") == logged(here, "teacher_tokens")


@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("divergence", ["forward_kl", "reverse_kl"])
def test_server_equals_local_on_the_teacher_s_likeliest_tokens(divergence, tail, server, tmp_path):
    options = {"estimator": "topk", "support_size": 8, "support_owner": "teacher", "support_tail": tail}
    options |= {"divergence": divergence, "steps": 2}
    there = train("opd", tmp_path / "there", server, **options)
    here = train("opd", tmp_path / "here", **options)
    assert_same_run(there, here)
    for name in ("distill/divergence", "distill/log_ratio", "distill/teacher_mass"):
        assert logged(there, name) == pytest.approx(logged(here, name), rel=1e-4)


@pytest.mark.parametrize("method", ["exopd", "scope"])
def test_server_equals_local_for_every_external_method(method, server, tmp_path):
    options = {"temperature": 1.0}
    assert_same_run(train(method, tmp_path / "there", server, **options), train(method, tmp_path / "here", **options))


def last_tokens(trainer):
    """The last three tokens of some of the first batch's completions, by which a request is recognised."""
    inputs = torch.cat([batch["completion_ids"] for batch in trainer._buffered_inputs])
    mask = torch.cat([batch["completion_mask"] for batch in trainer._buffered_inputs]).bool()
    return [ids[row].tolist()[-3:] for ids, row in zip(inputs, mask, strict=True)]


def nan_in(chosen):
    def tamper(body, entries):
        if body["prompt"][-3:] in chosen:
            entries[-1][str(body["prompt"][-1])]["logprob"] = math.nan

    return tamper


@pytest.mark.parametrize("how", ["status", "nan", "impossible", "foreign"])
def test_rows_without_an_answer_are_masked_counted_and_out_of_the_denominator(how, server, tmp_path):
    whole = train("opd", tmp_path / "whole", server, steps=1, **K1)
    chosen = last_tokens(whole)[:5]
    if how == "status":
        server.fails = lambda body: 500 if body["prompt"][-3:] in chosen else None
    else:
        spoilt = {
            "nan": nan_in(chosen),
            "impossible": lambda body, entries: (
                entries[-1][str(body["prompt"][-1])].update(logprob=-9999.0) if body["prompt"][-3:] in chosen else None
            ),
            "foreign": lambda body, entries: (
                entries[-1].update({"100000": {"logprob": -1.0}}) if body["prompt"][-3:] in chosen else None
            ),
        }
        server.tamper = spoilt[how]
    some = train("opd", tmp_path / "some", server, steps=1, **K1)
    (batch,) = some._buffered_inputs
    missing = torch.tensor([tokens in chosen for tokens in last_tokens(some)])
    assert missing.sum() == 5
    assert torch.equal((batch["kl_weight"] != 0).any(-1), ~missing)
    assert torch.equal(batch["counted"].bool().any(-1), ~missing)
    assert logged(some, "teacher/missing_fraction") == [pytest.approx(5 / GLOBAL_BATCH)]
    # The loss is that of the answered rows alone: their token losses over their own tokens.
    (full,) = whole._buffered_inputs
    order = [last_tokens(whole).index(tokens) for tokens in last_tokens(some)]
    ratio = (full["scorer_logps_0"][order] - batch["scorer_logps_0"])[~missing]
    assert ratio.abs().max() < 1e-6
    assert batch["window_tokens"] == batch["completion_mask"][~missing].sum()
    assert losses(some)[0] != pytest.approx(losses(whole)[0], rel=1e-3)


def test_scope_keeps_rows_without_an_answer_in_its_mean_over_prompts(server, tmp_path):
    options = {"temperature": 1.0, "steps": 1}
    whole = train("scope", tmp_path / "whole", server, **options)
    (full,) = whole._buffered_inputs
    wrong = (full["kl_weight"] != 0).any(-1)
    chosen = [last_tokens(whole)[int(wrong.nonzero()[0])]]
    server.fails = lambda body: 500 if body["prompt"][-3:] in chosen else None
    some = train("scope", tmp_path / "some", server, **options)
    (batch,) = some._buffered_inputs
    assert batch["counted"].bool().any(-1).all()
    assert ((batch["kl_weight"] != 0).any(-1)).sum() == wrong.sum() - 1


def test_a_failure_that_passes_is_retried(server, tmp_path):
    seen = []

    def once(body):
        first = body["prompt"] not in seen
        seen.append(body["prompt"])
        return 503 if first else None

    server.fails = once
    flaky = train("opd", tmp_path / "flaky", server, steps=1, **K1)
    assert logged(flaky, "teacher/missing_fraction") == [0.0]
    assert_same_run(flaky, train("opd", tmp_path / "here", steps=1, **K1))


def test_a_request_that_takes_too_long_is_given_up(server):
    teacher = ServerTeacher(Client(connection(server, timeout=0.2, retries=0)), 1.0, None)
    server.pause = 0.6
    assert list(teacher.score([([7, 8], [9, 10])], 100)) == [None]
    server.pause = 0.0
    assert next(teacher.score([([7, 8], [9, 10])], 100)).logps


def test_a_server_lost_in_mid_run_stops_it_with_its_checkpoint_and_the_run_goes_on(server, tmp_path):
    from trl_opd.state import newest_checkpoint

    sampled = K1 | {"rollout_func": None}  # rollouts that depend on the random state
    undisturbed = train("opd", tmp_path / "undisturbed", server, steps=4, **sampled)
    options = {"teacher_model": None, "teacher_server": server.url, "teacher_server_retries": 2, "max_steps": 4}
    options |= sampled
    trainer = make_trainer("opd", tmp_path / "run", **options)
    step = trainer.training_step

    def killing(*args, **kwargs):
        if trainer.state.global_step == 2:
            server.kill()
        return step(*args, **kwargs)

    trainer.training_step = killing
    with pytest.raises(UserError, match=rf"{server.url} answered for none of the 12 rows after step 2 .*checkpoint-2"):
        trainer.train()
    checkpoint = newest_checkpoint(tmp_path / "run")
    assert checkpoint.name == "checkpoint-2"
    tokenizer = build_tokenizer()
    with serving(make_model(tokenizer, seed=3), tokenizer) as again:
        resumed = make_trainer("opd", tmp_path / "run", **options | {"teacher_server": again.url})
        resumed.train(resume_from_checkpoint=True)
    assert losses(resumed) == pytest.approx(losses(undisturbed), rel=1e-5)


def cut_short(prompts, trainer):
    """Every third completion lacks its end, and so is masked under `mask_truncated_completions`."""
    drawn = fixed_rollouts(prompts, trainer)
    drawn["completion_ids"] = [ids[:-1] if row % 3 == 1 else ids for row, ids in enumerate(drawn["completion_ids"])]
    drawn["logprobs"] = [[0.0] * len(ids) for ids in drawn["completion_ids"]]
    return drawn


def test_completions_that_are_masked_do_not_hide_a_server_that_is_lost(server, tmp_path):
    options = K1 | {"mask_truncated_completions": True, "rollout_func": cut_short}
    options |= {"teacher_model": None, "teacher_server": server.url, "teacher_server_retries": 0}
    trainer = make_trainer("opd", tmp_path, **options)
    server.kill()
    with pytest.raises(UserError, match="answered for none of the 8 rows after step 0"):
        trainer.train()


def test_once_the_server_is_gone_the_other_rows_are_not_tried(server):
    teacher = ServerTeacher(Client(connection(server, concurrency=1, retries=1)), 1.0, None)
    server.kill()
    assert list(teacher.score([([7, 8], [9, 10])] * 50, 100)) == [None] * 50


@pytest.mark.parametrize(
    ("options", "fragment"),
    [
        ({"estimator": "full"}, "estimator: full"),
        ({"estimator": "topk", "support_size": 5}, "support_owner: teacher"),
        (K1 | {"teacher_model": make_model(build_tokenizer(), seed=3)}, "twice"),
        (K1 | {"teacher_cache": "somewhere"}, "twice"),
        (K1 | {"teacher_server_timeout": 0.0}, "teacher_server_timeout is 0.0"),
        (K1 | {"teacher_server_retries": -1}, "teacher_server_retries is -1"),
        (K1 | {"teacher_server_concurrency": 0}, "teacher_server_concurrency is 0"),
        (K1 | {"teacher_server_model": "other"}, "serves teacher"),
        (K1 | {"temperature": 0.7}, "set temperature: 1.0"),
        (K1 | {"use_teacher_template": True}, "use_teacher_template"),
        (K1 | {"teacher_server": None, "teacher_server_retries": 3}, "teacher_server_retries would be ignored"),
    ],
)
def test_what_cannot_work_is_refused_before_training(options, fragment, server, tmp_path):
    arguments = {"teacher_model": None, "teacher_server": server.url} | options
    refused(fragment, tmp_path, **arguments)


def refused(fragment, tmp_path, **arguments):
    with pytest.raises(UserError) as refusal:
        make_trainer("opd", tmp_path, **arguments)
    message = str(refusal.value)
    assert fragment in message
    assert message.count("\n") == 0
    assert message.endswith(".")


def test_a_server_that_is_down_is_refused(server, tmp_path):
    server.kill()
    refused("does not answer", tmp_path, teacher_model=None, teacher_server=server.url, teacher_server_retries=0, **K1)


def test_another_tokenizer_is_refused(tokenizer, tmp_path):
    class Shifted:
        def __call__(self, text, **options):
            return {"input_ids": [i + 1 for i in tokenizer(text, **options)["input_ids"]]}

    with serving(make_model(tokenizer, seed=3), Shifted()) as fake:
        refused("another tokenizer", tmp_path, teacher_model=None, teacher_server=fake.url, **K1)


def test_a_server_that_answers_differently_each_time_is_refused(server, tmp_path):
    calls = []

    def drift(body, entries):
        calls.append(body)
        for entry in entries[1:]:
            for values in entry.values():
                values["logprob"] -= 0.1 * len(calls)

    server.tamper = drift
    refused("differently each time", tmp_path, teacher_model=None, teacher_server=server.url, **K1)


def test_scores_that_are_not_finite_are_refused_before_training(server, tmp_path):
    server.tamper = lambda body, entries: entries[-1][str(body["prompt"][-1])].update(logprob=math.nan)
    refused("no finite log-probability", tmp_path, teacher_model=None, teacher_server=server.url, **K1)


@pytest.mark.parametrize("seed", [3, 4])
def test_a_named_copy_is_compared_with_the_server(seed, server, tokenizer, tmp_path, capsys):
    folder = tmp_path / "copy"
    make_model(tokenizer, seed=seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    arguments = {"teacher_model": None, "teacher_server": server.url, "teacher_model_name_or_path": str(folder)} | K1
    if seed == 3:
        make_trainer("opd", tmp_path / "run", **arguments)
        assert "local" in capsys.readouterr().out
    else:
        refused("not the same model", tmp_path / "run", **arguments)


def test_a_server_that_scales_by_the_temperature_is_used_at_that_temperature(server, tmp_path):
    server.scales = True
    options = {"temperature": 0.7} | K1
    assert_same_run(train("opd", tmp_path / "there", server, **options), train("opd", tmp_path / "here", **options))


def test_the_likeliest_tokens_are_sorted_and_the_sampled_one_is_left_out_where_it_is_none_of_them():
    entries = [{7: -4.0, 1: -0.2, 3: -2.0}, {3: -1.5, 1: -0.3}]
    scored = Scored.of(entries, [7, 3], top=2, vocabulary=10)
    assert scored.logps == [-4.0, -1.5]
    assert scored.support_ids == [[1, 3], [1, 3]]
    assert scored.support_logps == [[-0.2, -2.0], [-0.3, -1.5]]
    with pytest.raises(NoAnswer, match="1 likeliest"):
        Scored.of([{7: -4.0}], [7], top=2, vocabulary=10)
