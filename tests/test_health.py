"""Signs of trouble: each appears just beyond its threshold and not before it."""

import re
import sys

import pytest

from tests.docs.tables import DOCS
from trl_opd.health import ADVICE, findings, summary


def steps(number: int = 20, **metrics) -> list[dict]:
    """Logged rows; a pair of values is a straight line from the first to the second."""

    def at(value, index: int):
        if not isinstance(value, tuple):
            return value
        return value[0] + (value[1] - value[0]) * index / (number - 1)

    return [{"step": i + 1, "loss": 0.1} | {k: at(v, i) for k, v in metrics.items()} for i in range(number)]


HEALTHY = {
    "grad_norm": 0.5,
    "entropy": (1.0, 0.8),
    "distill/divergence": (0.5, 0.1),
    "completions/mean_length": (100, 120),
    "completions/clipped_ratio": 0.05,
    "signal/active_fraction": 0.9,
    "signal/pg_fraction": 1.0,
    "frac_reward_zero_std": 0.2,
    "reward": (0.3, 0.6),
    "context/dropped_fraction": 0.0,
}


def signs(rows) -> list[str]:
    return [finding.sign for finding in findings(rows)]


def test_a_healthy_run_has_none():
    assert findings(steps(**HEALTHY)) == []
    assert summary(steps(**HEALTHY)) == f"health: none of {len(ADVICE)} signs of trouble in 20 logged steps"


def test_a_run_that_logged_no_step_is_not_called_healthy():
    assert summary([]) == summary([{"train_runtime": 1.0}])
    assert "no step was logged" in summary([])


@pytest.mark.parametrize(
    ("sign", "bad", "fine"),
    [
        ("not_finite", {"grad_norm": float("nan")}, {"grad_norm": 1e9}),
        ("runaway_length", {"completions/mean_length": (100, 400)}, {"completions/mean_length": (100, 190)}),
        ("inactive", {"signal/active_fraction": 0.04}, {"signal/active_fraction": 0.06}),
        ("zero_variance", {"frac_reward_zero_std": 0.31}, {"frac_reward_zero_std": 0.3}),
        ("truncated", {"completions/clipped_ratio": 0.31}, {"completions/clipped_ratio": 0.3}),
        ("reward_at_zero", {"reward": 0.005}, {"reward": (0.0, 0.05)}),
        ("reward_at_one", {"reward": 0.995}, {"reward": (0.95, 1.0)}),
        ("dropped_contexts", {"context/dropped_fraction": 0.11}, {"context/dropped_fraction": 0.1}),
        ("missing_scores", {"teacher/missing_fraction": 0.06}, {"teacher/missing_fraction": 0.05}),
    ],
)
def test_each_sign_appears_beyond_its_threshold_only(sign, bad, fine):
    assert signs(steps(**HEALTHY | bad)) == [sign]
    assert signs(steps(**HEALTHY | fine)) == []


FALLING = {"entropy": (1.0, 0.1), "distill/divergence": (0.5, 0.05)}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"reward": 0.3}, ["collapse"]),
        ({"reward": (0.3, 0.1)}, ["collapse"]),
        ({"reward": (0.3, 0.6)}, []),
        ({"reward": None}, ["collapse"]),
        ({"reward": 0.3, "entropy": (1.0, 0.9)}, []),
        ({"reward": 0.3, "distill/divergence": (0.5, 0.4)}, []),
    ],
)
def test_a_collapse_is_both_falling_without_a_rise_of_the_reward(changes, expected):
    assert signs(steps(**HEALTHY | FALLING | changes)) == expected


def test_too_few_steps_show_no_trend():
    assert signs(steps(9, **HEALTHY | FALLING | {"reward": 0.3})) == []
    assert signs(steps(10, **HEALTHY | FALLING | {"reward": 0.3})) == ["collapse"]


def test_groups_of_one_reward_trouble_a_policy_gradient_only():
    assert signs(steps(**HEALTHY | {"frac_reward_zero_std": 1.0, "signal/pg_fraction": 0.0})) == []


def test_rows_without_a_loss_and_metrics_without_a_value_are_passed_over():
    rows = [*steps(12, **HEALTHY), {"step": 12, "train_runtime": 3.0}, {"step": 12, "eval_reward": 0.0}]
    rows[3]["reward"] = None
    assert findings(rows) == []
    assert findings([]) == []
    assert findings(rows[-2:]) == []


def test_a_finding_says_what_was_seen_what_to_do_and_where_to_read():
    rows = steps(**HEALTHY | {"completions/clipped_ratio": 0.5})
    (finding,) = findings(rows)
    assert finding.record() == {
        "sign": "truncated",
        "sentence": "50% of the completions were cut at the limit.",
        "remedy": ADVICE["truncated"].remedy,
        "see": "docs/troubleshooting.md#completions-are-cut-at-the-limit",
    }
    assert summary(rows).splitlines() == [
        "health: 1 sign(s) of trouble",
        "  - 50% of the completions were cut at the limit.",
        f"    {ADVICE['truncated'].remedy} See {finding.see}.",
    ]


def test_anchors_are_headings_as_a_page_names_them():
    anchors = [advice.anchor for advice in ADVICE.values()]
    assert len(set(anchors)) == len(anchors)
    for anchor in anchors:
        assert anchor == anchor.lower().replace(" ", "-")


def test_the_documentation_has_the_table_and_a_section_for_each_sign():
    page = (DOCS / "logging.md").read_text()
    for name, advice in ADVICE.items():
        assert f"| [{name}](troubleshooting.md#{advice.anchor}) | {advice.when} | {advice.remedy} |" in page
    headings = re.findall(r"^#+ (.*)$", (DOCS / "troubleshooting.md").read_text(), re.MULTILINE)
    slugs = {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}
    assert {advice.anchor for advice in ADVICE.values()} <= slugs


def test_it_needs_no_library_but_pythons():
    module = sys.modules["trl_opd.health"]
    assert not {"torch", "numpy", "trl"} & set(vars(module))


@pytest.mark.parametrize("name", ["loss", "grad_norm"])
def test_a_stored_log_has_none_for_what_was_not_finite(name):
    rows = steps(12, **HEALTHY)
    rows[4][name] = None
    assert signs(rows) == ["not_finite"]
