import json
import subprocess
import sys

import pytest

from trl_opd.errors import UserError
from trl_opd.evals.store import RunStore, differences

SETTINGS = {"n": 4, "engine": {"model": "a" * 64, "dtype": "float32"}, "sampling": {"temperature": 1.0}}


def open_store(folder, settings=SETTINGS):
    return RunStore(folder, settings, {"command": "test"})


def test_other_settings_are_refused_by_name(tmp_path):
    with open_store(tmp_path / "run") as store:
        store.add_generation({"problem_id": "p", "index": 0})
    other = {"n": 8, "engine": {"model": "b" * 64, "dtype": "float32"}, "sampling": {"temperature": 1.0}}
    message = r"engine\.model is \"aaaaaaaaaaa\.\.\. there and \"bbbbbbbbbbb\.\.\. here; n is 4 there and 8 here"
    with pytest.raises(UserError, match=message):
        open_store(tmp_path / "run", other)
    with open_store(tmp_path / "run"):  # the refusal left no lock behind
        pass


def test_a_run_that_drew_nothing_binds_nobody_to_its_settings(tmp_path):
    other = {**SETTINGS, "n": 8}
    with open_store(tmp_path / "run"):
        script = "import sys; from tests.evals.test_store import *; open_store(Path(sys.argv[1]), {'n': 8})"
        command = [sys.executable, "-c", f"from pathlib import Path; {script}", str(tmp_path / "run")]
        found = subprocess.run(command, capture_output=True, text=True, check=False)
        assert "other settings" in found.stderr, "a process at work holds the folder"
    with open_store(tmp_path / "run", other) as store:
        store.add_generation({"problem_id": "p", "index": 0})
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["settings"] == other
    with pytest.raises(UserError, match="n is 8 there and 4 here"):
        open_store(tmp_path / "run")


def test_differences_name_added_and_lost_settings():
    assert differences({"a": 1, "b": {"c": 1}}, {"b": {"c": 1, "d": 2}}) == [
        "a is 1 there and null here",
        "b.d is null there and 2 here",
    ]


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        open_store(tmp_path)
    with pytest.raises(UserError, match="is a file"):
        open_store(tmp_path / "thesis.tex")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["thesis.tex"]


def test_a_process_opens_a_folder_once_and_another_gets_files_of_its_own(tmp_path):
    with open_store(tmp_path / "run") as store:
        with pytest.raises(UserError, match="already working on"):
            open_store(tmp_path / "run")
        script = "import sys; from tests.evals.test_store import open_store; from pathlib import Path\n"
        script += "with open_store(Path(sys.argv[1])) as store: print(store.writer, store.claim(3), store.claim(4))"
        assert store.claim(3)
        output = subprocess.check_output([sys.executable, "-c", script, str(tmp_path / "run")], text=True)
    assert output.split() == ["1", "False", "True"]
    with open_store(tmp_path / "run") as store:
        assert store.writer == 0


def test_the_files_of_a_dead_writer_are_adopted_with_what_was_not_scored(tmp_path):
    with open_store(tmp_path / "run") as store:
        for index in range(3):
            store.add_generation({"problem_id": "p", "index": index})
        store.add_verdict({"problem_id": "p", "index": 1}, store.writer)
    (tmp_path / "run" / "generations" / "000.jsonl").rename(tmp_path / "run" / "generations" / "001.jsonl")
    (verdicts,) = (tmp_path / "run" / "verdicts").rglob("*.jsonl")
    verdicts.rename(verdicts.with_name("001.jsonl"))
    with open_store(tmp_path / "run") as store:
        assert store.drawn == {("p", 0), ("p", 1), ("p", 2)}
        assert store.scored == {("p", 1)}
        assert list(store.unscored()) == []
        store.adopt()
        assert list(store.unscored()) == [(1, {"problem_id": "p", "index": 0}), (1, {"problem_id": "p", "index": 2})]


def test_verdicts_whose_completions_were_lost_are_dropped(tmp_path):
    with open_store(tmp_path / "run") as store:
        for index in range(3):
            store.add_generation({"problem_id": "p", "index": index})
            store.add_verdict({"problem_id": "p", "index": 2 - index}, store.writer)
    file = tmp_path / "run" / "generations" / "000.jsonl"
    file.write_bytes(file.read_bytes()[:-3])
    with open_store(tmp_path / "run") as store:
        assert store.drawn == store.scored == {("p", 0), ("p", 1)}
        store.add_verdict({"problem_id": "p", "index": 2}, store.writer)
    (verdicts,) = (tmp_path / "run" / "verdicts").rglob("*.jsonl")
    assert [json.loads(line)["index"] for line in verdicts.read_text().splitlines()] == [1, 0, 2]


def test_another_scorer_is_refused_with_the_way_out_and_taken_to_rescore(tmp_path):
    settings = SETTINGS | {"data": "d", "scorer": {"version": "1"}}
    newer = settings | {"scorer": {"version": "2"}}
    with open_store(tmp_path / "run", settings) as store:
        store.finish({"accuracy": 1})
    with pytest.raises(UserError, match=r"scorer\.version is .*: `trl-opd eval rescore "):
        open_store(tmp_path / "run", newer)
    with pytest.raises(UserError, match="n is 4 there and 5 here"):
        RunStore(tmp_path / "run", newer | {"n": 5}, {}, rescore=True)
    with RunStore(tmp_path / "run", newer, {}, rescore=True) as store:
        assert store.summary is None
        store.finish({"accuracy": 0})
    with open_store(tmp_path / "run", newer) as store:
        assert store.summary["accuracy"] == 0
    accuracies = [json.loads(path.read_text())["accuracy"] for path in (tmp_path / "run").rglob("metrics.json")]
    assert sorted(accuracies) == [0, 1]


def test_a_run_of_an_older_format_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "manifest.json").write_text(json.dumps({"format": 1, "settings": SETTINGS}))
    with pytest.raises(UserError, match="format 1, and this version writes format 2: use another output folder"):
        open_store(tmp_path)


def test_the_manifest_lists_sessions_until_the_run_is_finished(tmp_path):
    for _ in range(2):
        with open_store(tmp_path / "run"):
            pass
    with open_store(tmp_path / "run") as store:
        store.finish({"accuracy": 1})
    with open_store(tmp_path / "run") as store:
        assert store.summary["accuracy"] == 1
        assert len(store.manifest["sessions"]) == 3
        assert store.manifest["sessions"][0]["versions"]["math-verify"]
        assert store.manifest["finished"] >= store.manifest["started"]
