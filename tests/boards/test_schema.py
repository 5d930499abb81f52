"""The shape of results.json, and the synthetic results that the page's tests build on."""

import json

import pytest

from tests.boards.results_example import make_results, shape_errors
from trl_opd.boards.schema import Results, benchmark_of, primary_score


@pytest.mark.parametrize("seeds", [(0, 1, 2), (0,)])
def test_the_example_has_the_shape_and_is_plain_json(seeds):
    results = make_results(seeds)
    assert shape_errors(Results, results) == []
    assert json.loads(json.dumps(results, allow_nan=False)) == results


def test_the_shape_check_finds_what_is_wrong():
    results = make_results()
    results["rows"][1]["finished"] = "3"
    del results["rows"][2]["warnings"]
    results["rows"][3]["scores"]["arithmetic"]["accuracy"]["scope"] = "both"
    errors = shape_errors(Results, results)
    assert len(errors) == 3
    assert errors[0].startswith("results.rows[1].finished must be")


def test_the_primary_score_is_found():
    results = make_results()
    assert primary_score(results, results["rows"][1]) is results["rows"][1]["scores"]["arithmetic"]
    assert primary_score(results, results["rows"][-1]) is None
    assert benchmark_of(results, results["primary"])["purpose"] == "primary"
