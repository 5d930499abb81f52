import json

import pytest

from trl_opd.errors import UserError
from trl_opd.evals.store import JsonLines, RunStore, differences

SETTINGS = {"n": 4, "engine": {"model": "a" * 64, "dtype": "float32"}, "sampling": {"temperature": 1.0}}


def open_store(folder, settings=SETTINGS):
    return RunStore(folder, settings, {"command": "test"})


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 15, 16])
def test_a_cut_last_line_is_dropped_and_whole_lines_stay(tmp_path, cut):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'{"a":1}\n{"a":2}\n'[:cut])
    rows = JsonLines(path)
    assert rows.rows == [{"a": 1}, {"a": 2}][: cut // 8]
    rows.append({"a": 3})
    rows.close()
    assert [json.loads(line)["a"] for line in path.read_text().splitlines()] == [*[1, 2][: cut // 8], 3]


def test_a_damaged_line_is_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(b'{"a":\n{"a":2}\n')
    with pytest.raises(UserError, match=r"Line 1 of .* is damaged"):
        JsonLines(tmp_path / "rows.jsonl")


def test_odd_line_ends_inside_a_string_do_not_split_a_row(tmp_path):
    rows = JsonLines(tmp_path / "rows.jsonl")
    rows.append({"a": "x\u2028y\x85z\ud800"})
    rows.close()
    assert JsonLines(tmp_path / "rows.jsonl").rows == [{"a": "x\u2028y\x85z\ud800"}]


def test_other_settings_are_refused_by_name(tmp_path):
    with open_store(tmp_path / "run"):
        pass
    other = {"n": 8, "engine": {"model": "b" * 64, "dtype": "float32"}, "sampling": {"temperature": 1.0}}
    message = r"engine\.model is \"aaaaaaaaaaa\.\.\. there and \"bbbbbbbbbbb\.\.\. here; n is 4 there and 8 here"
    with pytest.raises(UserError, match=message):
        open_store(tmp_path / "run", other)
    with open_store(tmp_path / "run"):  # the refusal left no lock behind
        pass


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


def test_one_process_at_a_time(tmp_path):
    with open_store(tmp_path / "run"), pytest.raises(UserError, match="Another process"):
        open_store(tmp_path / "run")


def test_the_manifest_lists_sessions_until_the_run_is_finished(tmp_path):
    for _ in range(2):
        with open_store(tmp_path / "run"):
            pass
    with open_store(tmp_path / "run") as store:
        store.finish({"accuracy": 1})
    with open_store(tmp_path / "run") as store:
        assert store.summary == {"accuracy": 1}
        assert len(store.manifest["sessions"]) == 3
        assert store.manifest["sessions"][0]["versions"]["math-verify"]
        assert store.manifest["finished"] >= store.manifest["started"]
