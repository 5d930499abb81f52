"""The record and the log that a trainer keeps by itself, with no command line around it."""

import json
from types import SimpleNamespace

import pytest
from transformers import TrainerCallback

from tests.conftest import digit_reward, make_model, settings
from trl_opd import GRPOConfig, GRPOTrainer
from trl_opd.errors import UserError
from trl_opd.health import ADVICE
from trl_opd.run_log import RunBooks, _has_another_end, _progress_line, command, differences


def trainer(tmp_path, tokenizer, dataset, reward=digit_reward, eval_dataset=None, callbacks=None, **options):
    config = GRPOConfig(**settings(tmp_path, **{"max_steps": 2} | options))
    return GRPOTrainer(
        make_model(tokenizer), reward, config, dataset, eval_dataset, processing_class=tokenizer, callbacks=callbacks
    )


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_a_script_leaves_a_record_and_a_log(tmp_path, tokenizer, dataset, capsys):
    made = trainer(tmp_path, tokenizer, dataset)
    made.train()
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["method"], record["status"], record["steps"]) == ("grpo", "finished", 2)
    assert record["config"]["max_completion_length"] == 12
    rows = read(tmp_path / "log.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert rows[-1]["reward"] == next(r["reward"] for r in reversed(made.state.log_history) if "reward" in r)
    assert rows[-1]["generated_tokens"] == record["generated_tokens"] > 0
    (sign,) = record["health"]  # random text never ends within 12 tokens
    assert sign["sign"] == "truncated"
    assert f"{ADVICE['truncated'].remedy} See {sign['see']}" in capsys.readouterr().out


def test_a_second_run_leaves_what_the_first_one_wrote(tmp_path, tokenizer, dataset):
    for steps in (1, 2, 3):
        trainer(tmp_path, tokenizer, dataset, max_steps=steps).train()
    assert [len(read(tmp_path / name)) for name in ("log.1.jsonl", "log.2.jsonl", "log.jsonl")] == [1, 2, 3]
    assert json.loads((tmp_path / "run.2.json").read_text())["steps"] == 2


def test_a_resumed_run_goes_on_in_the_same_log(tmp_path, tokenizer, dataset):
    class Stop(TrainerCallback):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == 2:
                raise KeyboardInterrupt

    options = {"max_steps": 3, "save_strategy": "steps", "save_steps": 1}
    with pytest.raises(KeyboardInterrupt):
        trainer(tmp_path, tokenizer, dataset, callbacks=[Stop()], **options).train()
    assert json.loads((tmp_path / "run.json").read_text())["status"] == "failed"
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text() + '{"step": 3, "loss": 1.0}\n{"step": 4, "lo')  # logged, but in no checkpoint
    trainer(tmp_path, tokenizer, dataset, **options).train(resume_from_checkpoint=True)
    assert [row["step"] for row in read(log)] == [1, 2, 3]
    assert read(log)[-1]["loss"] != 1.0
    assert json.loads((tmp_path / "run.json").read_text())["error"] is None
    assert not list(tmp_path.glob("log.*.jsonl"))


def test_evaluations_have_a_log_of_their_own(tmp_path, tokenizer, dataset):
    options = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 4, "num_generations_eval": 4}
    trainer(tmp_path, tokenizer, dataset, eval_dataset=dataset.select(range(2)), **options).train()
    assert [row["step"] for row in read(tmp_path / "log.jsonl")] == [1, 2]
    rows = read(tmp_path / "eval_log.jsonl")
    assert [row["step"] for row in rows] == [1, 2]
    assert all("eval_reward" in row for row in rows)


def test_a_failure_is_recorded(tmp_path, tokenizer, dataset):
    def broken(completions, **_):
        raise ZeroDivisionError("no reward today")

    with pytest.raises(ZeroDivisionError):
        trainer(tmp_path, tokenizer, dataset, reward=broken).train()
    record = json.loads((tmp_path / "run.json").read_text())
    assert (record["status"], record["error"]) == ("failed", "ZeroDivisionError: no reward today")


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(UserError, match=r"The output folder .*file cannot be written \(File exists\); choose another"):
        RunBooks(tmp_path / "file", "grpo", {}).start(0)


class Tracker(TrainerCallback):
    """Stands where `report_to` puts the callbacks of trackio, wandb and the others."""

    rows: list[dict]

    def __init__(self):
        self.rows = []

    def on_log(self, args, state, control, logs=None, **_):
        self.rows.append(dict(logs))


def test_a_tracker_gets_what_the_log_has(tmp_path, tokenizer, dataset):
    tracker = Tracker()
    trainer(tmp_path, tokenizer, dataset, callbacks=[tracker]).train()
    steps = [row for row in tracker.rows if "loss" in row]
    for own, reported in zip(read(tmp_path / "log.jsonl"), steps, strict=True):
        assert {name: own[name] for name in reported if name not in ("generated_tokens", "teacher_tokens")} == {
            name: value for name, value in reported.items() if name not in ("generated_tokens", "teacher_tokens")
        }
        assert {"reward", "completions/mean_length", "entropy", "signal/active_fraction"} <= set(reported)


def test_tensorboard_gets_the_metrics_through_report_to(tmp_path, tokenizer, dataset, monkeypatch):
    pytest.importorskip("tensorboardX")
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    trainer(tmp_path / "run", tokenizer, dataset, report_to="tensorboard").train()
    events = b"".join(file.read_bytes() for file in (tmp_path / "board").rglob("events*"))
    for name in (b"train/reward", b"train/signal/active_fraction", b"train/completions/mean_length"):
        assert name in events


def test_secrets_stay_out_of_the_record(tmp_path, monkeypatch):
    config = GRPOConfig(**settings(tmp_path, hub_token="hf_secret"))
    assert "hub_token" not in differences(config)
    monkeypatch.setattr("sys.argv", ["train.py", "--hub_token", "hf_secret", "--hub_token=hf_secret", "--seed", "1"])
    assert command() == ["train.py", "--hub_token", "...", "--hub_token=...", "--seed", "1"]


def test_a_full_disk_leaves_the_log(tmp_path, monkeypatch):
    books = RunBooks(tmp_path, "grpo", {})
    rows = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in range(1, 31))
    (tmp_path / "log.jsonl").write_text(rows)

    def full(self, text):
        self.touch()
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(type(tmp_path), "write_text", full)
    with pytest.raises(OSError, match="No space"):
        books.start(20)
    assert (tmp_path / "log.jsonl").read_text() == rows


def test_what_is_left_is_told_where_steps_end_the_run():
    state = SimpleNamespace(global_step=10, max_steps=10 + 30)
    spent = {"generated_tokens": 1234}
    told = _progress_line(state, {"loss": 0.5}, spent, 3600.0)
    assert told == "step 10/40  loss 0.5000  1,234 tokens  1 day, 6:00:00 left"
    assert _progress_line(state, {"loss": 0.5}, spent, None) == "step 10  loss 0.5000  1,234 tokens"
    assert _has_another_end(SimpleNamespace(max_train_seconds=9.0))
    assert not _has_another_end(SimpleNamespace(max_train_seconds=None))
