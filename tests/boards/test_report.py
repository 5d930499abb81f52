"""From the folders of runs to records, and from records alone to results, table and page."""

import gzip
import json
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from tests.boards.conftest import spec_in
from tests.boards.results_example import shape_errors
from trl_opd.boards import archive, figures
from trl_opd.boards.archive import read_record, records_folder, scrubbed
from trl_opd.boards.collect import collect, publish
from trl_opd.boards.page import render_page
from trl_opd.boards.report import write_report
from trl_opd.boards.results import build_results
from trl_opd.boards.runner import run_board
from trl_opd.boards.schema import Results
from trl_opd.boards.spec import CheckpointSpec, EvaluationSpec, ValidationSpec, load_spec
from trl_opd.boards.table import render_table
from trl_opd.boards.verify import verify_board
from trl_opd.cli.board import main
from trl_opd.errors import UserError
from trl_opd.evals.metrics import pass_at_k

SUITE = [
    {"benchmark": "arithmetic", "n": 2, "limit": 12},
    {"benchmark": "arithmetic", "n": 8, "limit": 6, "purpose": "pass_at_k"},
    {"benchmark": "arithmetic_reading", "n": 1, "limit": 12, "purpose": "forgetting"},
]


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    monkeypatch.setattr(figures, "DPI", 20)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, launcher):
    """A finished board; the tests work on copies of it."""
    folder = tmp_path_factory.mktemp("finished")
    assert run_board(load_spec(spec_in(folder, evaluation=SUITE)), launcher) == 0
    return folder


@pytest.fixture
def spec(finished, tmp_path):
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    return load_spec(tmp_path / "boards" / "small.yaml")


def results_of(spec) -> Results:
    publish(spec)
    return build_results(spec, collect(spec))


def rows_of(spec) -> dict:
    return {row["name"]: row for row in results_of(spec)["rows"]}


def edit_log(spec, run: str, edit) -> None:
    path = spec.runs_folder / run / "train" / "log.jsonl"
    rows = [edit(json.loads(line)) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_results_have_the_shape_and_every_line(spec):
    results = results_of(spec)
    assert shape_errors(Results, json.loads(json.dumps(results, allow_nan=False))) == []
    rows = {row["name"]: row for row in results["rows"]}
    assert list(rows) == ["base", "grpo", "opd", "opsd"]
    score = rows["opd"]["scores"]["arithmetic"]
    assert rows["grpo"]["scores"]["arithmetic"]["difference"] is None
    assert score["difference"]["value"] == pytest.approx(
        score["accuracy"]["mean"] - rows["grpo"]["scores"]["arithmetic"]["accuracy"]["mean"]
    )
    assert rows["base"]["scores"]["arithmetic"]["difference"]["p_holm"] is None
    assert score["difference"]["p_holm"] >= score["difference"]["p_tail"] >= score["difference"]["p"]
    assert rows["opd"]["training"]["generated_tokens"] == 30 * 4096
    assert rows["opd"]["training"]["gpu_hours"] is None


def test_pass_at_k_majority_and_forgetting_are_of_their_benchmarks(spec):
    results = results_of(spec)
    assert [entry["key"] for entry in results["suite"]] == ["arithmetic", "arithmetic/pass_at_k", "arithmetic_reading"]
    assert results["suite"][1]["ks"] == [1, 2, 4, 8]
    row = next(row for row in results["rows"] if row["name"] == "opd")
    stored = [read_record(spec, f"opd-seed{seed}").evaluation("arithmetic/pass_at_k", "last") for seed in (0, 1)]
    expected = [pass_at_k(one.correct.sum(axis=1), 8, 4) for one in stored]
    assert row["scores"]["arithmetic/pass_at_k"]["pass_at_k"]["4"] == pytest.approx(sum(expected) / 2)
    assert row["scores"]["arithmetic"]["majority"]["k"] == 2
    base = next(row for row in results["rows"] if row["kind"] == "base")
    assert row["scores"]["arithmetic_reading"]["to_base"]["value"] == pytest.approx(
        row["scores"]["arithmetic_reading"]["accuracy"]["mean"]
        - base["scores"]["arithmetic_reading"]["accuracy"]["mean"]
    )
    table = render_table(results)
    assert "arithmetic, pass@8, %" in table
    assert "Forgetting: arithmetic\\_reading against the base, points" in table


def test_gpu_hours_count_every_gpu(spec):
    for seed in (0, 1):
        path = spec.runs_folder / f"opd-seed{seed}" / "train" / "run.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"gpus": 4, "seconds": 1800.0}))
    assert rows_of(spec)["opd"]["training"]["gpu_hours"] == pytest.approx(2.0)


def test_signs_of_trouble_are_sentences_of_the_row(spec):
    for seed in (0, 1):
        edit_log(
            spec,
            f"grpo-seed{seed}",
            lambda row: row | {"frac_reward_zero_std": 0.4, "signal/pg_fraction": 1.0, "signal/active_fraction": 0.01},
        )
    rows = rows_of(spec)
    assert any("40% of the groups" in warning for warning in rows["grpo"]["warnings"])
    assert any(warning.startswith("2 of 2 runs: At the end only 1.0%") for warning in rows["grpo"]["warnings"])
    assert rows["grpo"]["training"]["zero_variance"] == pytest.approx(0.4)
    assert rows["opd"]["warnings"] != rows["grpo"]["warnings"]


def test_groups_without_variance_are_a_matter_of_the_policy_gradient(spec):
    for seed in (0, 1):
        edit_log(spec, f"grpo-seed{seed}", lambda row: row | {"frac_reward_zero_std": 1.0, "signal/pg_fraction": 0.0})
    assert rows_of(spec)["grpo"]["training"]["zero_variance"] is None


def test_report_stands_alone_and_shows_what_is_missing(spec, capsys):
    for name in ("opd-seed1", "opsd-seed0", "opsd-seed1"):
        shutil.rmtree(spec.runs_folder / name)
    assert main(["report", str(spec.path)]) == 0
    results = json.loads((spec.folder / "results.json").read_text())
    rows = {row["name"]: row for row in results["rows"]}
    assert (rows["opd"]["finished"], rows["opd"]["planned"]) == (1, 2)
    assert rows["opd"]["scores"]["arithmetic"]["accuracy"]["scope"] == "runs"
    assert rows["opsd"]["scores"] == {}
    table = (spec.folder / "table.md").read_text()
    assert "| opd |" in table
    assert "in these runs" in table
    assert "Lines with one finished seed: over problems alone" in table
    assert "- opsd-seed1: missing" in table
    page = (spec.folder / "board.html").read_text()
    assert "3 of 7 runs are not in the numbers" in page
    assert str(spec.folder / "board.html") in capsys.readouterr().out


def test_a_board_that_was_never_run_is_not_written_over_an_old_one(write_spec):
    spec = load_spec(write_spec())
    with pytest.raises(UserError, match="nothing to report"):
        write_report(spec)
    assert not (spec.folder / "table.md").exists()


def test_failed_run_is_a_row_of_the_page(write_spec, launcher):
    methods = [
        {"name": "grpo", "method": "grpo", "recipe": "recipes/fake.yaml"},
        {"name": "opd", "method": "opd", "recipe": "recipes/fake.yaml", "overrides": {"fail_at": 7}},
    ]
    spec = load_spec(write_spec(methods=methods))
    assert main(["run", str(spec.path)], launcher) == 1
    page = (spec.folder / "board.html").read_text()
    assert "RuntimeError: the loss is &lt;nan&gt; at step 7" in page
    assert (
        "- opd-seed0: failed in train: RuntimeError: the loss is \\<nan\\> at step 7"
        in (spec.folder / "table.md").read_text()
    )


def test_records_alone_give_the_same_report(spec):
    """`runs/` may be gone, and the working folder another: the same bytes, but for the time."""
    first = write_report(spec)
    results = json.loads(first["results"].read_text())
    before = {path: path.read_bytes() for path in spec.folder.rglob("*") if path.is_file()}
    shutil.rmtree(spec.runs_folder)
    write_report(load_spec(spec.path))
    again = json.loads(first["results"].read_text())
    assert again | {"made": ""} == results | {"made": ""}
    for path, content in before.items():
        if not path.is_relative_to(spec.runs_folder) and path.name not in ("results.json", "board.html"):
            assert path.read_bytes() == content, path
    assert render_page(again) == first["page"].read_text()


def test_records_name_no_machine_and_hold_no_weights(spec, tmp_path):
    publish(spec)
    for path in records_folder(spec).rglob("*"):
        if path.is_file():
            content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
            assert str(tmp_path).encode() not in content, path
            assert path.stat().st_size < 20_000


def test_paths_and_hosts_are_taken_out():
    told = {
        "error": f"No space left: {Path.cwd()}/out/a.bin on node-17",
        "last": "/usr/lib/a.c:/usr/lib/b.c: see file:///usr/share/doc/x",
        "command": ["/usr/lib/python3/site/x.py", "--template", "{sections}Again:\n{prompt}"],
        "source": "https://huggingface.co/papers/2402.03300",
        "ratio": 1 / 2,
    }
    assert scrubbed(told, "node-17") == {
        "error": "No space left: out/a.bin on <host>",
        "last": "<path>/a.c:<path>/b.c: see file://<path>/x",
        "command": ["<path>/x.py", "--template", "{sections}Again:\n{prompt}"],
        "source": "https://huggingface.co/papers/2402.03300",
        "ratio": 0.5,
    }


def test_a_finished_record_stands_until_a_finished_run_takes_its_place(spec):
    publish(spec)
    folder = spec.runs_folder / "opd-seed0"
    shutil.rmtree(folder)
    (folder / "train").mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps({"status": "failed", "stage": "train", "error": "again"}))
    assert rows_of(spec)["opd"]["finished"] == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"budget": {"unit": "steps", "value": 31}}, "made with other settings (budget): it is kept apart"),
        ({"methods": "recipe"}, "made with other settings (overrides): it is kept apart"),
    ],
)
def test_records_of_another_spec_are_kept_apart(spec, changes, words):
    publish(spec)
    shutil.rmtree(spec.runs_folder)
    raw = yaml.safe_load(spec.path.read_text())
    if changes.get("methods"):
        changes = {"methods": [one | {"overrides": {"learning_rate": 0.5}} for one in raw["methods"]]}
    spec.path.write_text(yaml.safe_dump(raw | changes))
    changed = load_spec(spec.path)
    results = build_results(changed, collect(changed))
    assert [row["finished"] for row in results["rows"]] == [1, 0, 0, 0]
    assert {run["status"] for run in results["runs"] if run["role"] == "final"} == {"missing"}
    assert any(words in warning for warning in results["warnings"])
    assert (records_folder(spec) / "grpo-seed0").is_dir()


def test_evaluations_with_other_settings_are_no_part_of_the_board(spec):
    publish(spec)
    shutil.rmtree(spec.runs_folder)
    changed = replace(spec, evaluation=[replace(spec.evaluation[0], limit=10), *spec.evaluation[1:]])
    results = build_results(changed, collect(changed))
    assert {run["status"] for run in results["runs"]} == {"unfinished"}
    assert all("arithmetic" not in row["scores"] for row in results["rows"])


def test_runs_on_other_rows_are_kept_apart(spec):
    publish(spec)
    shutil.rmtree(spec.runs_folder)
    path = records_folder(spec) / "opd-seed1" / "record.json"
    stored = json.loads(path.read_text())
    stored["identity"]["rows"]["sha256"] = "of other rows"
    path.write_text(json.dumps(stored))
    results = build_results(spec, collect(spec))
    assert next(row for row in results["rows"] if row["name"] == "opd")["finished"] == 1
    assert any("opd-seed1 was made with other settings (rows)" in warning for warning in results["warnings"])


def test_the_last_checkpoint_does_not_stand_for_the_best(spec):
    publish(spec)
    shutil.rmtree(spec.runs_folder)
    for seed, validation in ((0, [[10, 0.9], [30, 0.1]]), (1, [[10, 0.1], [30, 0.9]])):
        path = records_folder(spec) / f"opd-seed{seed}" / "record.json"
        stored = json.loads(path.read_text())
        stored["training"]["validation"] = validation
        path.write_text(json.dumps(stored))
    last = build_results(replace(spec, validation=ValidationSpec("arithmetic_validation")), collect(spec))
    row = next(row for row in last["rows"] if row["name"] == "opd")
    assert row["finished"] == 2
    assert row["checkpoint"]["best"] is None
    assert "1 of 7 runs lack an evaluation: their others are in the numbers." in last["warnings"]
    best = replace(spec, checkpoint=CheckpointSpec(rule="best"))
    results = build_results(best, collect(best))
    assert {run["name"] for run in results["runs"] if run["status"] != "finished"} == {"opd-seed0"}
    assert [row["finished"] for row in results["rows"]] == [1, 2, 1, 2]


def test_a_failure_after_the_suite_has_grown_is_shown(spec):
    publish(spec)
    more = [*spec.evaluation, EvaluationSpec("arithmetic_reading", n=2, limit=5, purpose="secondary")]
    grown = replace(spec, evaluation=more)
    state = {"status": "failed", "stage": "eval", "error": "the new one broke", "attempts": []}
    (spec.runs_folder / "opd-seed0" / "state.json").write_text(json.dumps(state))
    runs = {run["name"]: run for run in results_of(grown)["runs"]}
    assert (runs["opd-seed0"]["status"], runs["opd-seed0"]["error"]) == ("failed", "the new one broke")
    assert runs["opd-seed0"]["accuracy"] is not None


def test_a_choice_that_the_trials_do_not_give_is_kept_apart(write_spec, launcher):
    trials = {"trials": {"learning_rates": [0.0001, 0.0003]}, "checkpoint": {"every": 10}, "seeds": [0]}
    methods = [{"name": "grpo", "method": "grpo", "recipe": "recipes/fake.yaml"}]
    spec = load_spec(write_spec(**trials, methods=methods, validation={"benchmark": "arithmetic_validation", "n": 1}))
    assert run_board(spec, launcher) == 0
    row = rows_of(spec)["grpo"]
    assert [trial["chosen"] for trial in row["trials"]] == [True, False]
    assert any("0.0001, is the smallest that was tried" in warning for warning in row["warnings"])
    assert not any("kept apart" in warning for warning in results_of(spec)["warnings"])
    path = records_folder(spec) / "trials.json"
    shutil.rmtree(spec.runs_folder)
    path.write_text(
        path.read_text().replace('"learning_rate": 0.0001,\n  "trials"', '"learning_rate": 0.0003,\n  "trials"')
    )
    found = collect(spec)
    assert found.trials == {}
    assert found.apart == ["What the trials of grpo chose is not what their records give: it is kept apart."]


def test_damaged_verdicts_are_an_error_not_a_smaller_board(spec):
    verdicts = next((spec.runs_folder / "grpo-seed0").rglob("verdicts/*/*.jsonl"))
    verdicts.write_text("".join(verdicts.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="do not fill"):
        publish(spec)


def test_evaluation_on_other_data_is_kept_out_of_the_statistics(spec):
    manifest = next((spec.runs_folder / "opd-seed1").glob("evaluations/arithmetic-*/*/manifest.json"))
    stored = json.loads(manifest.read_text())
    stored["settings"]["data"] = "other"
    manifest.write_text(json.dumps(stored))
    results = results_of(spec)
    run = next(run for run in results["runs"] if run["name"] == "opd-seed1")
    assert "evaluated with another data than most runs" in run["not_comparable"]
    assert "evaluated with another data" in render_table(results)


def test_steps_logged_again_after_a_resume_count_once(spec):
    log = spec.runs_folder / "grpo-seed0" / "train" / "log.jsonl"
    again = json.dumps({"step": 30, "generated_tokens": 1, "seconds": 1.0, "reward": float("nan"), "loss": 0.0})
    log.write_text(log.read_text() + again + "\n" + '{"step": 31, "gen')
    results = results_of(spec)
    curve = next(one for one in results["curves"]["grpo"] if one["seed"] == 0)
    assert curve["step"] == list(range(1, 31))
    assert curve["reward"][-1] is None


def test_one_seed_says_so(spec):
    one = replace(spec, seeds=[0])
    results = results_of(one)
    row = next(row for row in results["rows"] if row["name"] == "opd")
    difference = row["scores"]["arithmetic"]["difference"]
    assert difference["scope"] == "runs"
    assert difference["verdict"].endswith("in these runs")
    assert results["design"]["smallest_detectable"] is None
    assert "about these runs" in render_table(results)
    assert any("opd-seed1" in warning and "kept apart" in warning for warning in collect_twice(one, spec))


def collect_twice(one, spec) -> list[str]:
    """What a board of one seed says of the records that the full board made."""
    publish(spec)
    return collect(one).apart


def test_half_a_character_in_an_answer_breaks_no_report(spec):
    """A program that a model wrote may raise an error whose text has no UTF-8."""
    for verdicts in (spec.runs_folder / "grpo-seed0").rglob("verdicts/*/*.jsonl"):
        rows = [json.loads(line) for line in verdicts.read_text().splitlines()]
        rows[0] |= {"reason": "error: \ud800", "extracted": "\udfff"}
        verdicts.write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_report(spec)
    stored = read_record(spec, "grpo-seed0").evaluation("arithmetic", "last")
    assert "error: \ud800" in {reason for problem in stored.problems for reason in problem["reason"]}
    assert verify_board(spec) == []


def test_a_run_that_diverged_is_a_warning_though_json_has_no_nan(spec):
    edit_log(spec, "grpo-seed0", lambda row: row | ({"loss": float("nan")} if row["step"] > 5 else {}))
    assert any("not finite in 25 logged step(s), first at step 6" in one for one in rows_of(spec)["grpo"]["warnings"])


def test_a_finished_run_mends_its_damaged_record(spec):
    publish(spec)
    folder = records_folder(spec) / "opd-seed0"
    (folder / "log.jsonl.gz").write_bytes(b"x")
    (folder / "arithmetic-last.jsonl.gz").unlink()
    assert rows_of(spec)["opd"]["finished"] == 2


def test_prompts_are_those_of_the_runs_at_hand(spec):
    publish(spec)
    archive.write_prompts(spec, {"arithmetic": {"sum-0": "an older text"}})
    shown = results_of(spec)["problems"]["arithmetic"]
    assert set(shown["questions"]) == set(shown["answers"])
    assert "an older text" not in shown["questions"].values()


def test_a_board_is_the_same_wherever_its_model_lies(spec, monkeypatch):
    """Made where the model was below the working folder, verified elsewhere, on a host that is called as the model."""
    monkeypatch.setattr(socket, "gethostname", lambda: "testbed")
    here = replace(spec, base_model=str(Path.cwd() / "models" / "testbed"))
    for folder in spec.runs_folder.iterdir():
        if (folder / "identity.json").exists():
            stored = json.loads((folder / "identity.json").read_text())
            (folder / "identity.json").write_text(json.dumps(stored | {"base_model": here.base_model}))
    publish(here)
    made = build_results(here, collect(here), "now")
    shutil.rmtree(spec.runs_folder)
    assert made["base_model"] == "models/testbed"
    assert build_results(replace(spec, base_model="/elsewhere/models/testbed"), collect(here), "now") == made
