"""Prompts from columns."""

import json

import pytest

from trl_opd.data import DataArguments, load_training_data
from trl_opd.errors import UserError


@pytest.fixture
def rows(tmp_path):
    path = tmp_path / "rows.jsonl"
    rows = [{"question": f"Which? {n} {{role}}", "role": f"You are number {n}."} for n in range(2)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_the_system_turn_may_come_from_a_column(rows):
    made = load_training_data(
        DataArguments(dataset_name=rows, prompt_template="Q: {question}", system_prompt="{role} Be {kind}.")
    )
    assert made[1]["prompt"] == [
        {"role": "system", "content": "You are number 1. Be {kind}."},
        {"role": "user", "content": "Q: Which? 1 {role}"},
    ]


def test_a_user_turn_without_a_column_is_refused(rows):
    with pytest.raises(UserError, match="no placeholder of a column"):
        load_training_data(DataArguments(dataset_name=rows, prompt_template="Q", system_prompt="{role}"))
