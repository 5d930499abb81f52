"""Test-time SDPO: where a search ends, what it changes, and how it goes on after it was stopped."""

import json

import pytest
import yaml

from trl_opd.cli.discover import main
from trl_opd.discover import DiscoverConfig, discovery
from trl_opd.errors import UserError

ATTEMPTS, ROUNDS = 4, 6

#: What `lucky_reward` was asked to score, in order, and the call from which on it breaks down.
SEEN: list[str] = []
BREAK_AT: list[int] = []


def lucky_reward(completions, log_extra, **_):
    """Accepts a text with a rare property, and tells the others that they lack it."""
    texts = [completion[0]["content"] for completion in completions]
    if BREAK_AT and len(SEEN) >= BREAK_AT[0]:
        raise RuntimeError("the verifier is gone")
    SEEN.extend(texts)
    log_extra("feedback", [None if accepted(text) else "Not divisible." for text in texts])
    return [float(accepted(text)) for text in texts]


def accepted(text: str) -> bool:
    return sum(map(ord, text)) % 11 == 0


def hopeless_reward(completions, log_extra, **_):
    SEEN.extend(completion[0]["content"] for completion in completions)
    log_extra("feedback", ["No."] * len(completions))
    return [0.0] * len(completions)


@pytest.fixture(autouse=True)
def clean():
    SEEN.clear()
    BREAK_AT.clear()


@pytest.fixture
def questions(tmp_path):
    """The first of them asked twice."""
    path = tmp_path / "questions.jsonl"
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in ("23+45=?", "61+[b]12=?", "23+45=?")]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def command(tmp_path, student_path, questions):
    settings = {
        "model_name_or_path": student_path,
        "dtype": "float32",
        "dataset_name": str(questions),
        "reward_funcs": ["tests.test_discover.lucky_reward"],
        "use_cpu": True,
        "bf16": False,
        "num_generations": ATTEMPTS,
        "per_device_train_batch_size": ATTEMPTS,
        "gradient_accumulation_steps": 1,
        "max_completion_length": 8,
        "max_steps": ROUNDS,
        "learning_rate": 1.0e-2,
        "report_to": "none",
        "output_dir": str(tmp_path / "out"),
    }
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(settings))
    return ["--config", str(recipe)]


def record(tmp_path) -> dict:
    return json.loads((tmp_path / "out" / "run.json").read_text())


def arms(question: dict) -> tuple[dict, dict]:
    """The two searches without their times."""
    return tuple({k: v for k, v in question[arm].items() if k != "seconds"} for arm in ("sdpo", "best_of_k"))


def test_every_search_ends_at_its_first_success(tmp_path, command, capsys):
    assert main(command) == 0
    found = record(tmp_path)
    assert found["status"] == "finished"
    assert len(found["questions"]) == 3
    seen = list(SEEN)
    for question in found["questions"]:
        for arm in ("sdpo", "best_of_k"):
            search = question[arm]
            texts, seen = seen[: search["attempts"]], seen[search["attempts"] :]
            successes = [number for number, text in enumerate(texts, start=1) if accepted(text)]
            assert search["first_success"] == (successes[0] if successes else None)
            if successes:
                assert successes[0] > search["attempts"] - ATTEMPTS  # nothing after the round of the first success
                assert search["solution"] == texts[successes[0] - 1]
            else:
                assert search["attempts"] == ATTEMPTS * ROUNDS
            assert search["generated_tokens"] > 0
    assert not seen
    firsts = [question[arm]["first_success"] for question in found["questions"] for arm in ("sdpo", "best_of_k")]
    assert any(first and first > ATTEMPTS for first in firsts)  # the inputs have successes in later rounds
    assert len(set(firsts)) > 2
    printed = capsys.readouterr().out
    assert "61+[b]12=?" in printed
    assert "question 3/3" in printed


def test_the_arms_make_the_same_attempts_until_the_first_update_and_then_differ(tmp_path, command):
    options = ["--reward_funcs", "tests.test_discover.hopeless_reward", "--max_steps", "3", "--dataset_limit", "1"]
    assert main([*command, *options]) == 0
    sdpo, frozen = SEEN[: 3 * ATTEMPTS], SEEN[3 * ATTEMPTS :]
    assert len(frozen) == len(sdpo)
    assert sdpo[:ATTEMPTS] == frozen[:ATTEMPTS]
    assert sdpo[ATTEMPTS:] != frozen[ATTEMPTS:]
    (question,) = record(tmp_path)["questions"]
    assert question["sdpo"]["first_success"] is question["best_of_k"]["first_success"] is None
    assert question["sdpo"]["teacher_tokens"] > 0
    assert record(tmp_path)["discovery"] == [{"k": k, "sdpo": 0.0, "best_of_k": 0.0} for k in (4, 8, 12)]


def test_a_question_asked_twice_gets_attempts_of_its_own_from_the_same_weights(tmp_path, command):
    options = ["--reward_funcs", "tests.test_discover.hopeless_reward", "--max_steps", "1"]
    assert main([*command, *options]) == 0
    assert SEEN[:ATTEMPTS] != SEEN[4 * ATTEMPTS : 5 * ATTEMPTS]
    assert SEEN[4 * ATTEMPTS : 5 * ATTEMPTS] == SEEN[5 * ATTEMPTS :]  # the second arm has not seen the first's update


def test_without_an_update_there_is_no_difference(tmp_path, command):
    options = ["--reward_funcs", "tests.test_discover.hopeless_reward", "--max_steps", "3", "--dataset_limit", "1"]
    assert main([*command, *options, "--learning_rate", "0"]) == 0
    assert SEEN[: 3 * ATTEMPTS] == SEEN[3 * ATTEMPTS :]


def test_a_stopped_search_goes_on_with_its_question_and_a_finished_one_is_not_repeated(tmp_path, command, capsys):
    assert main([*command, "--dataset_limit", "2", "--output_dir", str(tmp_path / "whole")]) == 0
    whole = json.loads((tmp_path / "whole" / "run.json").read_text())
    first = sum(whole["questions"][0][arm]["attempts"] for arm in ("sdpo", "best_of_k"))
    SEEN.clear()
    BREAK_AT.append(first + 1)
    stopped = [*command, "--dataset_limit", "2"]
    with pytest.raises(RuntimeError, match="the verifier is gone"):
        main(stopped)
    assert record(tmp_path)["status"] == "stopped"
    assert len(record(tmp_path)["questions"]) == 1
    BREAK_AT.clear()
    SEEN.clear()
    assert main(stopped) == 0
    assert len(SEEN) == sum(whole["questions"][1][arm]["attempts"] for arm in ("sdpo", "best_of_k"))
    assert [arms(question) for question in record(tmp_path)["questions"]] == [arms(q) for q in whole["questions"]]
    SEEN.clear()
    capsys.readouterr()
    assert main(stopped) == 0
    assert not SEEN
    assert "discovery@k" in capsys.readouterr().out


def test_results_are_not_taken_over_by_other_settings_or_other_questions(tmp_path, command, questions):
    first = ["--dataset_limit", "2", "--max_steps", "1"]
    assert main([*command, *first]) == 0
    with pytest.raises(UserError, match="temperature"):
        main([*command, *first, "--temperature", "0.5"])
    stopped = record(tmp_path) | {"status": "stopped"}
    stopped["questions"] = stopped["questions"][:1]
    (tmp_path / "out" / "run.json").write_text(json.dumps(stopped))
    questions.write_text(questions.read_text().replace("23+45", "11+11"))
    with pytest.raises(UserError, match="Question 1 is not the one"):
        main([*command, *first])
    assert len(record(tmp_path)["questions"]) == 1


BAD = {
    "no model": (["--model_name_or_path", ""], "model_name_or_path is missing"),
    "no reward": (["--reward_funcs", "trl_opd.trainer.no_reward"], "no reward function reports feedback"),
    "batch of another size": (["--per_device_train_batch_size", "8"], "gives? 8 attempts"),
    "two updates in a round": (["--num_iterations", "2"], "2 updates"),
    "no round": (["--max_steps", "0"], "at least one round"),
    "checkpoints": (["--save_strategy", "steps"], "save_strategy: no"),
    "mistyped": (["--max_stepps", "3"], "did you mean '--max_steps'"),
}


@pytest.mark.parametrize("name", BAD)
def test_what_cannot_work_is_a_user_error(command, questions, name):
    options, fragment = BAD[name]
    questions.write_text(json.dumps({"prompt": "1+1=?", "answer": "2"}) + "\n")
    with pytest.raises(UserError, match=fragment):
        main([*command, *options])


def test_the_defaults_are_those_of_the_paper_at_test_time(tmp_path):
    config = DiscoverConfig(output_dir=str(tmp_path), use_cpu=True, bf16=False)
    assert config.budget == 2752
    assert config.generation_batch_size == config.num_generations == 16
    assert (config.divergence, config.support_size, config.advantage_clip) == ("reverse_kl", 20, 5.0)
    assert (config.learning_rate, config.warmup_steps, config.teacher_update_rate) == (1e-6, 0, 0.01)
    assert config.use_feedback
    assert not config.use_demonstrations


def test_discovery_counts_first_successes_up_to_k():
    records = [
        {"sdpo": {"first_success": sdpo}, "best_of_k": {"first_success": frozen}}
        for sdpo, frozen in ((4, 5), (13, None), (None, 1), (24, None))
    ]
    assert discovery(records, round_size=4, budget=24) == [
        {"k": 4, "sdpo": 0.25, "best_of_k": 0.25},
        {"k": 8, "sdpo": 0.25, "best_of_k": 0.5},
        {"k": 16, "sdpo": 0.5, "best_of_k": 0.5},
        {"k": 24, "sdpo": 0.75, "best_of_k": 0.5},
    ]


def test_help_names_the_defaults(capsys):
    assert main(["--help"]) == 0
    assert "(default: 172)" in capsys.readouterr().out
