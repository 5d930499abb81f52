"""`board verify` finds every change of a number, a file or a page; parquet and Hub files hold the results."""

import json
import shutil
from copy import deepcopy

import pytest
import yaml

from tests.boards.conftest import spec_in
from tests.boards.results_example import make_results
from trl_opd.boards import exports, figures
from trl_opd.boards.archive import records_folder
from trl_opd.boards.report import write_report
from trl_opd.boards.runner import run_board
from trl_opd.boards.spec import load_spec
from trl_opd.boards.verify import differences, verify_board
from trl_opd.cli.board import main
from trl_opd.errors import UserError


@pytest.fixture(scope="module")
def published(tmp_path_factory, launcher):
    folder = tmp_path_factory.mktemp("published")
    spec = load_spec(spec_in(folder))
    assert run_board(spec, launcher) == 0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "DPI", 20)
        write_report(spec)
    return folder


@pytest.fixture
def clone(published, tmp_path):
    """The board as a clone has it: without the runs."""
    shutil.copytree(published, tmp_path, dirs_exist_ok=True, ignore=shutil.ignore_patterns("runs"))
    return load_spec(tmp_path / "boards" / "small.yaml")


def test_a_clone_verifies_without_weights(clone):
    assert not clone.runs_folder.exists()
    assert verify_board(clone) == []


def test_data_are_needed_to_run_and_not_to_verify(clone, launcher):
    raw = yaml.safe_load(clone.path.read_text())
    raw["evaluation"][0]["data_dir"] = "nowhere"
    clone.path.write_text(yaml.safe_dump(raw))
    assert verify_board(load_spec(clone.path)) == []
    with pytest.raises(UserError, match="evaluation: there is no folder nowhere, neither beside the spec in "):
        main(["plan", str(clone.path)], launcher)


def test_the_command_says_what_is_wrong(clone, capsys):
    assert main(["verify", str(clone.path)]) == 0
    assert "every hash and every number is right" in capsys.readouterr().out
    (clone.folder / "table.md").unlink()
    assert main(["verify", str(clone.path)]) == 1
    assert "table.md is missing." in capsys.readouterr().out


def test_a_changed_number_is_found(clone):
    path = clone.folder / "results.json"
    results = json.loads(path.read_text())
    results["rows"][2]["scores"]["arithmetic"]["accuracy"]["mean"] += 0.001
    path.write_text(json.dumps(results))
    wrong = verify_board(clone)
    assert wrong[0].startswith("results.json: rows[2].scores.arithmetic.accuracy.mean is 0.")
    assert any(text.startswith("table.md is not") for text in wrong) or any("board.html" in text for text in wrong)


def test_a_lost_key_is_a_sentence(clone):
    path = clone.folder / "results.json"
    results = json.loads(path.read_text())
    del results["runs"], results["made"]
    path.write_text(json.dumps(results))
    assert [text.split(":")[0] for text in verify_board(clone)] == ["results.json has no made, runs"]


def test_an_added_hub_file_is_found(clone):
    (clone.folder / "hub").mkdir(exist_ok=True)
    (clone.folder / "hub" / "gsm8k.yaml").write_text("- value: 99.9\n")
    assert verify_board(clone) == ["hub/ is not what results.json gives."]


def test_a_changed_verdict_is_found_by_hash_and_by_number(clone):
    other = records_folder(clone) / "grpo-seed1" / "arithmetic-last.jsonl.gz"
    shutil.copyfile(records_folder(clone) / "opd-seed1" / "arithmetic-last.jsonl.gz", other)
    wrong = verify_board(clone)
    assert wrong[0] == "records/grpo-seed1/arithmetic-last.jsonl.gz has another SHA-256."
    assert "results.json: runs[4].accuracy is 0.5, but the records give 0.625." in wrong


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("records/opd-seed0/log.jsonl.gz", "records/opd-seed0/log.jsonl.gz is missing."),
        ("records/opd-seed0/arithmetic-last.jsonl.gz", "records/opd-seed0/arithmetic-last.jsonl.gz is missing."),
        ("table.md", "table.md is missing."),
        ("board.html", "board.html is missing."),
        ("results.parquet", "results.parquet is missing."),
    ],
)
def test_a_missing_file_is_found(clone, path, words):
    (clone.folder / path).unlink()
    assert words in verify_board(clone)


def test_what_cannot_be_read_is_found_too(clone):
    (clone.folder / "board.html").write_bytes(b"\xff\xfe")
    (clone.folder / "results.parquet").write_bytes(b"PAR1")
    wrong = verify_board(clone)
    assert wrong == ["board.html is not what results.json gives.", "results.parquet is not what results.json gives."]


@pytest.mark.parametrize("change", [lambda record: record.pop("evaluations"), lambda record: record.update(more=1)])
def test_a_record_of_another_shape_is_a_sentence(clone, change):
    path = records_folder(clone) / "grpo-seed0" / "record.json"
    record = json.loads(path.read_text())
    change(record)
    path.write_text(json.dumps(record))
    wrong = verify_board(clone)
    assert wrong[0] == "records/grpo-seed0/record.json has another SHA-256."
    assert wrong[1] == f"The record {path} is damaged: get it back from version control, or run the board."


def test_an_added_file_and_an_edited_page_are_found(clone):
    (records_folder(clone) / "base" / "more.txt").write_text("x")
    page = clone.folder / "board.html"
    page.write_text(page.read_text().replace("</body>", "<p>More.</p></body>"))
    wrong = verify_board(clone)
    assert "records/base/more.txt is not in results.json." in wrong
    assert "board.html is not what results.json gives." in wrong


def test_without_results_there_is_nothing_to_verify(clone):
    (clone.folder / "results.json").unlink()
    with pytest.raises(UserError, match="board report"):
        verify_board(clone)


def test_differences_tell_where():
    assert differences({"a": [1.0, {"b": None}]}, {"a": [1.0 + 1e-13, {"b": None}]}) == []
    assert differences({"a": 4096000001.0}, {"a": 4096000000}) == [
        "a is 4096000001.0, but the records give 4096000000."
    ]
    assert differences({"a": [1.0, True]}, {"a": [1.0, 1.5]}) == ["a[1] is True, but the records give 1.5."]
    assert differences({"a": {"b": 1}}, {"a": {}}) == ["a.b is not in what the records give."]


def test_parquet_holds_a_row_for_each_line_benchmark_and_seed(clone):
    results = json.loads((clone.folder / "results.json").read_text())
    rows = exports.read_parquet(clone.folder / "results.parquet")
    assert rows == exports.score_rows(results)
    assert len(rows) == 7
    opd = [row for row in rows if row["line"] == "opd"]
    assert {row["seed"] for row in opd} == {0, 1}
    assert opd[0]["line_mean"] == pytest.approx(sum(row["accuracy"] for row in opd) / 2)
    assert len(exports.read_parquet(clone.folder / "problems.parquet")) == 4 * 12


def test_hub_files_follow_the_hubs_format(tmp_path):
    """https://huggingface.co/docs/hub/eval-results; a benchmark without a data set on the Hub has no file."""
    results = deepcopy(make_results())
    results["suite"][2] |= {"benchmark": "gsm8k"}
    written = exports.write_hub(results, tmp_path / "hub")
    assert {path.name for path in written} == {"quick.yaml"}
    assert {path.parent.name for path in written if "opd-" in str(path)} == {"opd-seed0", "opd-seed1", "opd-seed2"}
    assert exports.read_hub(tmp_path / "hub") == exports.hub_texts(results)
    [entry] = yaml.safe_load((tmp_path / "hub" / "opd-seed0" / "quick.yaml").read_text())
    assert entry["dataset"] == {"id": "openai/gsm8k", "task_id": "main"}
    assert (entry["value"], entry["date"]) == (50.0, "2026-01-02")
    assert entry["notes"].startswith("40 of 1319 problems x 1 answers")
