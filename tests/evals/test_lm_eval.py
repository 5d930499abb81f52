"""Our benchmarks inside lm-evaluation-harness and its backends inside ours: through lm-eval itself."""

import json

import pytest

pytest.importorskip("lm_eval")

from trl_opd.cli.eval import main
from trl_opd.errors import UserError
from trl_opd.evals.engines import EngineOptions, Request, Sampling, make_engine
from trl_opd.evals.lm_eval_engine import LmEvalEngine
from trl_opd.evals.lm_eval_run import evaluate_task
from trl_opd.evals.lm_eval_tasks import PREFIX, export, process_results
from trl_opd.evals.models import resolve_model
from trl_opd.evals.scorers import make_scorer
from trl_opd.evals.suites import load_suite

TASK = PREFIX + "arithmetic"


@pytest.fixture(scope="module")
def arithmetic():
    return load_suite("arithmetic")


@pytest.fixture(scope="module")
def results(arithmetic, tmp_path_factory):
    """What lm-eval's own command of five problems, four samples each, leaves behind."""
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    folder = tmp_path_factory.mktemp("tasks")
    assert export(arithmetic, folder, limit=5) == [TASK]
    return simple_evaluate(
        model="hf",
        model_args={"pretrained": str(resolve_model("testbed/base")), "dtype": "float32"},
        tasks=[TASK],
        task_manager=TaskManager(include_path=str(folder), include_defaults=False),
        apply_chat_template=True,
        device="cpu",
        batch_size=4,
    )


def test_lm_eval_gives_our_verdicts_on_the_same_generations(arithmetic, results):
    from trl_opd.evals.benchmark import Problem

    scorer = make_scorer(arithmetic[0])
    samples = results["samples"][TASK]
    assert len(samples) == 5
    assert all(len(sample["resps"][0]) == 4 for sample in samples)
    for sample in samples:
        doc = sample["doc"]
        problem = Problem(doc["id"], doc["problem"], doc["answer"], fields=json.loads(doc["fields"]))
        ours = [scorer.score(text, problem).correct for text in sample["resps"][0]]
        assert sample["accuracy"] == sum(ours) / 4
    scorer.close()
    assert 0 < results["results"][TASK]["accuracy,all"] < 1, "both verdicts must occur, or nothing is compared"


def test_lm_eval_asks_with_our_prompt(arithmetic, results):
    from transformers import AutoTokenizer

    from trl_opd.evals.rows import load_rows

    tokenizer = AutoTokenizer.from_pretrained(resolve_model("testbed/base"))
    problems = {problem.id: problem for problem in load_rows(arithmetic[0], limit=5).problems}
    for sample in results["samples"][TASK]:
        messages = arithmetic[0].messages(problems[sample["doc"]["id"]])
        ours = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert sample["arguments"][0][0] == ours


def test_a_wrong_completion_and_one_without_answer_are_told_apart():
    doc = {"id": "1", "benchmark": "arithmetic", "problem": "1+1=?", "answer": "2", "fields": "{}"}
    completions = [r"\boxed{2}", r"\boxed{3}", "two", "2"]
    assert process_results(doc, [completions]) == {"accuracy": 0.25, "no_answer": 0.5}


def test_a_folder_that_cannot_be_written_is_refused(arithmetic, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        export(arithmetic, tmp_path / "file", limit=1)


@pytest.fixture(scope="module")
def engine():
    return LmEvalEngine(str(resolve_model("testbed/teacher")), EngineOptions(batch_size=4, dtype="float32"))


REQUESTS = [Request(f"p{i}", 0, [{"role": "user", "content": f"{i + 13}+{i + 9}=?"}], seed=i) for i in range(10)]
SAMPLING = Sampling(temperature=1.0, top_p=1.0, max_new_tokens=24)


def test_a_resumed_run_draws_what_the_undisturbed_one_drew(engine):
    whole = {generation.key: generation for generation in engine.generate(engine.batches(REQUESTS, SAMPLING), SAMPLING)}
    assert len({generation.completion for generation in whole.values()}) > 3
    done = {("p0", 0), ("p5", 0), *(request.key for request in REQUESTS[8:])}
    rest = list(engine.generate(engine.batches(REQUESTS, SAMPLING), SAMPLING, done))
    assert {generation.key for generation in rest} == {request.key for request in REQUESTS} - done
    assert all(whole[generation.key] == generation for generation in rest)


def test_a_completion_as_long_as_the_limit_counts_as_cut(engine):
    short = Sampling(temperature=0.0, top_p=1.0, max_new_tokens=3)
    drawn = list(engine.generate([REQUESTS[:4]], short))
    assert [generation.finish_reason for generation in drawn] == ["length"] * 4


def test_an_unknown_backend_is_refused():
    with pytest.raises(UserError, match="no backend 'nope'"):
        make_engine("lm-eval", "model", EngineOptions(backend="nope"))


def test_the_command_runs_a_task_and_our_benchmark_through_a_backend(own_tasks, tmp_path, capsys):
    teacher = str(resolve_model("testbed/teacher"))
    common = ["--model", teacher, "--dtype", "float32", "--output-dir", str(tmp_path / "runs")]
    assert main(["--via", "lm-eval", "own_sums", "--include-path", str(own_tasks), *common]) == 0
    assert "lm-eval/own_sums" in capsys.readouterr().out
    assert main(["--engine", "lm-eval", "--benchmark", "arithmetic", "--n", "1", "--limit", "3", *common]) == 0
    assert len(stored(tmp_path / "runs" / "arithmetic", "verdicts")) == 3
    with pytest.raises(UserError, match="--via takes lm-eval"):
        main(["--via", "lighteval", "gsm8k", *common])


# The last reference is wrong, so that both verdicts occur.
SUMS = [{"q": f"{i + 13}+{i + 9}=?", "a": str(2 * i + (22 if i < 5 else 9))} for i in range(6)]
GENERATING = """
task: own_sums
output_type: generate_until
doc_to_target: "{{a}}"
generation_kwargs: {until: [], max_gen_toks: 40}
filter_list:
  - name: boxed
    filter: [{function: regex, regex_pattern: "boxed.(\\\\d+)."}, {function: take_first}]
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
CHOOSING = """
task: own_choices
output_type: multiple_choice
doc_to_choice: ["22", "23", "24", "32"]
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""


@pytest.fixture
def own_tasks(tmp_path):
    """A folder with two tasks as anyone may write them for lm-eval."""
    folder = tmp_path / "own"
    folder.mkdir()
    rows = folder / "sums.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in SUMS))
    data = f"dataset_path: json\ndataset_kwargs: {{data_files: {{test: {rows}}}}}\ntest_split: test\n"
    for name, task in (("sums", GENERATING), ("choices", CHOOSING)):
        (folder / f"{name}.yaml").write_text(f'{task}{data}doc_to_text: "{{{{q}}}}"\n')
    return folder


def stored(folder, kind):
    return [json.loads(line) for path in sorted((folder / kind).rglob("*.jsonl")) for line in path.open()]


def test_a_task_of_lm_eval_is_kept_in_our_format(engine, own_tasks, tmp_path):
    run = tmp_path / "run"
    summary = evaluate_task("own_sums", engine, run, include_path=own_tasks)
    generations, verdicts = stored(run, "generations"), stored(run, "verdicts")
    assert [row["problem_id"] for row in generations] == [str(i) for i in range(6)]
    for row, verdict, sum_ in zip(generations, verdicts, SUMS, strict=True):
        assert sum_["q"] in row["prompt"]
        assert verdict["correct"] == (f"boxed{{{sum_['a']}}}" in row["completion"])
    assert summary.metrics.accuracy == sum(row["correct"] for row in verdicts) / 6
    assert 0 < summary.metrics.accuracy < 1
    told = json.loads((run / "summary.json").read_text())["lm_eval"]
    assert told["exact_match,boxed"] == summary.metrics.accuracy
    assert evaluate_task("own_sums", engine, run, include_path=own_tasks) == summary


def test_the_command_runs_a_task_and_refuses_what_it_cannot(own_tasks, tmp_path, capsys):
    command = ["--via", "lm-eval", "own_sums", "--model", "testbed/base", "--include-path", str(own_tasks)]
    out = str(tmp_path / "out")
    assert main([*command, "--output-dir", out]) == 0
    assert "lm-eval/own_sums" in capsys.readouterr().out
    with pytest.raises(UserError, match="own task lm-eval/own_sums"):
        main(["rescore", f"{out}/own_sums"])
    for change, message in (
        (["--model", "nowhere"], "nowhere does not exist"),
        (["--limit", "0"], "limit must be at least 1"),
        (["--backend", "none"], "no backend 'none'"),
        (["--via", "other", "own_sums"], "--via takes lm-eval"),
    ):
        with pytest.raises(UserError, match=message):
            main([*command, "--output-dir", out, *change])


def test_a_task_of_choices_keeps_the_chosen_one(engine, own_tasks, tmp_path):
    summary = evaluate_task("own_choices", engine, tmp_path / "run", include_path=own_tasks)
    generations, verdicts = stored(tmp_path / "run", "generations"), stored(tmp_path / "run", "verdicts")
    for row, verdict in zip(generations, verdicts, strict=True):
        assert row["completion"].strip() in ("22", "23", "24", "32")
        assert verdict["correct"] == (row["completion"].strip() == "22")
    assert summary.metrics.mean_tokens == 0


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ("own_sum", "did you mean 'own_sums'"),
        ("hendrycks_math", "group of tasks"),
        ("gsm8k", "cannot load the task gsm8k"),
    ],
)
def test_tasks_that_cannot_be_run_are_refused(engine, own_tasks, tmp_path, task, message):
    with pytest.raises(UserError, match=message):
        evaluate_task(task, engine, tmp_path / "run", include_path=own_tasks)


def test_an_unknown_metric_is_refused(engine, own_tasks, tmp_path):
    with pytest.raises(UserError, match="exact_match,boxed"):
        evaluate_task("own_sums", engine, tmp_path / "run", include_path=own_tasks, metric="exact_match,box")


def test_a_task_that_draws_several_samples_is_refused(engine, arithmetic, tmp_path):
    export(arithmetic, tmp_path / "tasks", limit=2)
    with pytest.raises(UserError, match="draws 4 samples"):
        evaluate_task(TASK, engine, tmp_path / "run", include_path=tmp_path / "tasks")
