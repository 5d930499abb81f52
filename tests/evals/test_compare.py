"""Two runs side by side, and what `show` and `diff` print."""

from itertools import product

import numpy as np
import pytest

from trl_opd.cli.eval import main
from trl_opd.errors import UserError
from trl_opd.evals.compare import compare, sign_flip_p
from trl_opd.evals.metrics import Z_95
from trl_opd.evals.results import read_run
from trl_opd.evals.runner import evaluate

from .conftest import ScriptedEngine


@pytest.fixture
def runs(benchmark, sums_path, tmp_path):
    for seed in (0, 1):
        evaluate(benchmark, ScriptedEngine(), tmp_path / str(seed), seed=seed, data_dir=sums_path.parent)
    return tmp_path / "0", tmp_path / "1"


@pytest.mark.parametrize("count", [1, 3, 6, 10])
def test_sign_flips_of_few_problems_are_all_counted(count):
    differences = np.random.default_rng(count).integers(-4, 5, count) / 4
    flipped = [round(float(np.dot(signs, differences)), 9) for signs in product((1, -1), repeat=count)]
    expected = np.mean([abs(total) >= abs(round(float(differences.sum()), 9)) for total in flipped])
    assert sign_flip_p(differences) == pytest.approx(expected)


def test_equal_runs_have_p_of_one_and_many_flips_are_seeded():
    assert sign_flip_p(np.zeros(20)) == 1
    assert sign_flip_p(np.array([0.0, 0.25, 0.0])) == 1  # both signs of a single difference are equally far from 0
    differences = np.random.default_rng(0).normal(0.2, 1, 200)
    assert sign_flip_p(differences) == sign_flip_p(differences) < 0.1


def test_the_difference_is_paired_by_problem(runs):
    a, b = map(read_run, runs)
    found = compare(a, b)
    means = [
        np.array(
            [np.mean([run.verdicts[f"sum-{i}", j]["correct"] for j in range(4)]) for i in sorted(range(12), key=str)]
        )
        for run in (a, b)
    ]
    difference = means[1] - means[0]
    half = Z_95 * difference.std(ddof=1) / np.sqrt(12)
    assert found.difference == pytest.approx(difference.mean())
    assert found.interval == pytest.approx((difference.mean() - half, difference.mean() + half))
    assert len(found.won()) == (difference > 0).sum()
    assert len(found.lost()) == (difference < 0).sum()
    same = compare(a, a)
    assert (same.difference, same.interval, same.p) == (0, None, 1)


def test_runs_on_other_problems_are_compared_on_request_only(runs, benchmark, sums_path, tmp_path, capsys):
    evaluate(benchmark, ScriptedEngine(), tmp_path / "few", limit=5, data_dir=sums_path.parent)
    with pytest.raises(UserError, match=r"not comparable .data is"):
        main(["diff", str(runs[0]), str(tmp_path / "few")])
    assert main(["diff", str(runs[0]), str(tmp_path / "few"), "--allow-other-data"]) == 0
    printed = capsys.readouterr().out
    assert "5 problems" in printed
    assert "7 problems that one run alone has are left out" in printed


def test_an_unfinished_run_is_not_compared(runs):
    (runs[1] / "summary.json").unlink()
    with pytest.raises(UserError, match="is not finished"):
        main(["diff", *map(str, runs)])


def test_diff_prints_interval_and_p(runs, capsys):
    assert main(["diff", *map(str, runs), "--all"]) == 0
    printed = capsys.readouterr().out
    for line in ("difference", "paired by problem", "signs of the problems flipped", "won by B", "lost by B"):
        assert line in printed


def test_show_lists_problems_failures_and_one_sample(runs, capsys):
    assert main(["show", str(runs[0])]) == 0
    assert "12 of 12 problems" in capsys.readouterr().out
    verdicts = read_run(runs[0]).verdicts
    failed = {problem for (problem, _), verdict in verdicts.items() if not verdict["correct"]}
    assert main(["show", str(runs[0]), "--failures"]) == 0
    assert f"{len(failed)} of 12 problems" in capsys.readouterr().out
    assert main(["show", str(runs[0]), "--id", "sum-7", "--index", "2"]) == 0
    shown = capsys.readouterr().out
    assert "<9>" in shown  # the prompt
    assert f"verdict: {verdicts['sum-7', 2]['reason']}" in shown


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--id", "sum-99"], "did you mean 'sum-9'"),
        (["--id", "sum-7", "--index", "4"], "has no sample 4: it has 0, 1, 2, 3"),
        (["--index", "4"], "name the problem with --id"),
    ],
)
def test_show_refuses_what_is_not_there(runs, options, message):
    with pytest.raises(UserError, match=message):
        main(["show", str(runs[0]), *options])


def test_a_folder_of_a_single_run_is_that_run(runs, tmp_path, capsys):
    (tmp_path / "one").mkdir()
    (tmp_path / "one" / "arithmetic").symlink_to(runs[0])
    main(["show", str(runs[0])])
    direct = capsys.readouterr().out
    main(["show", str(tmp_path / "one")])
    assert "verdicts" in direct
    assert capsys.readouterr().out.split("one sample")[0] == direct.split("one sample")[0]


def test_a_folder_of_runs_is_named_as_such(runs):
    with pytest.raises(UserError, match="it holds the runs 0, 1, pass one of them"):
        main(["show", str(runs[0].parent)])
