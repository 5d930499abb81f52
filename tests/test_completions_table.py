"""The table of completions: which token has which divergence, with colours and without, and nothing that steers."""

import io

import pandas as pd
import pytest
import torch
from rich.console import Console

from tests.conftest import digit_reward, make_model, settings
from trl_opd import OPDConfig, OPDTrainer
from trl_opd.completions_table import BLOCKS, COLUMN, EDGES, STYLES, Strip, Strips, level, print_table, visible

NAN = float("nan")


class Letters:
    """A tokenizer whose tokens are letters; 100 and 101 are the halves of one character."""

    def decode(self, ids: list[int]) -> str:
        if ids == [100, 101]:
            return "é"
        return "".join("\N{REPLACEMENT CHARACTER}" if i >= 100 else chr(97 + i) for i in ids)


def logs(completion="abc", **extra):
    return {
        "prompt": [[{"role": "user", "content": "why?"}]],
        "completion": [[{"role": "assistant", "content": completion}]],
        "rewards": {"right": [0.5]},
        "advantages": [-1.0],
        "extra": {COLUMN: [[0.0]]} | {name: [value] for name, value in extra.items()},
    }


def printed(strip: Strip | None, table=None, colour: str | None = None, encoding: str = "utf-8", **options) -> str:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="")
    console = Console(file=file, width=100, force_terminal=colour is not None, color_system=colour)
    options = {"step": 7, "quantity": "divergence"} | options
    print_table(table or logs(), [strip], Letters(), console=console, **options)
    file.seek(0)
    return file.read()


def test_levels_are_fixed():
    values = [0.0, 0.0099, *EDGES, 50.0]
    assert [level(value) for value in values] == [0, 0, 1, 2, 3, 4, 4]
    assert len(STYLES) == len(BLOCKS) == len(EDGES) + 1


def test_without_colours_each_token_has_a_block():
    text = printed(Strip([0, 1, 2, 3], [0.005, 0.2, NAN, 3.0]))
    assert "·▄_█" in text
    assert "mean 1.07" in text
    assert "max 3" in text
    assert "abc" in text
    assert "\x1b" not in text
    assert COLUMN not in text


def test_a_console_of_ascii_gets_digits():
    assert "02_4" in printed(Strip([0, 1, 2, 3], [0.005, 0.2, NAN, 3.0]), encoding="ascii")


def test_with_colours_the_tokens_themselves_carry_them():
    text = printed(Strip([0, 1, 2], [0.005, 3.0, NAN]), colour="truecolor")
    red = f"{127};{0};{0}m"  # of the highest level
    assert f"48;2;{red}b\x1b[0m" in text
    assert text.count(red) == 2  # the token, and the legend
    assert "█" not in text


def test_tokens_that_make_one_character_together_are_one_piece():
    text = printed(Strip([0, 100, 101, 1], [0.0, 0.0, 3.0, 0.0]), colour="truecolor")
    assert "0;0mé\x1b[0m" in text
    assert "\N{REPLACEMENT CHARACTER}" not in text


@pytest.mark.parametrize("strip", [None, Strip([0], [NAN])])
def test_a_row_that_was_not_distilled_is_shown_without_a_strip(strip):
    text = printed(strip)
    assert "abc" in text
    assert "mean" not in text


def test_a_long_word_is_folded_and_not_cut():
    word = "z" * 300
    text = printed(Strip([0] * 150, [3.0] * 150), logs(word))
    assert text.count("z") == 300
    assert text.count("█") == 150 + 1
    assert "…" not in text


def test_neither_markup_nor_control_characters_of_a_model_mean_anything():
    hostile = "[red]x[/red] \x1b[2J\x1b]0;title\x07 \u202eabc\x9b31m"
    for colour in (None, "truecolor"):
        text = printed(None, logs(hostile, feedback=hostile), colour)
        assert "[red]x[/red]" in text
        for steering in ("\x1b[2J", "\x1b]0;", "\x07", "\u202e", "\x9b"):
            assert steering not in text
    assert visible("a\x1b\nb\x7f") == "a␛\nb\N{REPLACEMENT CHARACTER}"


def test_only_so_many_rows_and_none_at_all():
    assert printed(Strip([0], [1.0]), most=0) == ""
    two = {
        name: value * 2 if isinstance(value, list) else {k: v * 2 for k, v in value.items()}
        for name, value in logs().items()
    }
    file = io.StringIO()
    print_table(
        two, [None, None], Letters(), step=1, quantity="divergence", most=1, console=Console(file=file, width=90)
    )
    assert file.getvalue().count("abc") == 1


def test_several_turns_are_shown_with_their_tool_calls():
    table = logs()
    call = {"function": {"name": "add", "arguments": {"a": 1}}}
    table["completion"] = [
        [
            {"role": "assistant", "tool_calls": [call]},
            {"role": "tool", "content": "3"},
            {"role": "assistant", "content": "c"},
        ]
    ]
    text = printed(Strip([0, 1], [3.0, 0.0]), table, colour="truecolor")
    assert "'name': 'add'" in text
    assert "█·" in text


def test_strips_find_their_rows_whatever_the_order():
    strips = Strips(size=4)
    first, second = strips.number(2, processes=2, process=1), strips.number(2, processes=2, process=1)
    assert (first.tolist(), second.tolist()) == ([2, 3], [6, 7])
    ids, mask = torch.tensor([[5, 6, 0], [7, 0, 0]]), torch.tensor([[1, 1, 0], [1, 0, 0]]).bool()
    facts = {"distill/divergence": torch.tensor([0.1, 0.2, 0.3]), "distill/log_ratio": torch.tensor([1.0, 2.0, 3.0])}
    strips.add(second.flip(0), ids, mask, facts, torch.tensor([True, True, True]))
    strips.add(first, ids, mask, facts, torch.tensor([True, True, True]))
    found = strips.gathered()  # of the last four rows, two of which are another process's
    assert [strip and strip.ids for strip in found] == [None, None, [7], [5, 6]]
    assert found[3].values == pytest.approx([0.1, 0.2])
    assert set(strips._found) == {6, 7}


def test_sampled_estimators_show_the_log_ratio_and_undistilled_tokens_nothing():
    strips = Strips(size=1)
    facts = {"distill/log_ratio": torch.tensor([-2.0, 1.0])}
    strips.add(
        strips.number(1, 1, 0), torch.tensor([[5, 6]]), torch.ones(1, 2).bool(), facts, torch.tensor([True, False])
    )
    (strip,) = strips.gathered()
    assert strips.quantity == "|ln p - ln q|"
    assert strip.known == [2.0]


@pytest.mark.parametrize("estimator", ["full", "k1"])
def test_what_a_run_prints_and_stores_is_what_the_loss_was_made_of(estimator, tmp_path, tokenizer, dataset, capsys):
    options = {"max_steps": 2, "gradient_accumulation_steps": 2, "estimator": estimator, "aggregation": "token-global"}
    config = OPDConfig(**settings(tmp_path, log_completions=True, num_completions_to_print=3, **options))
    trainer = OPDTrainer(
        make_model(tokenizer), args=config, train_dataset=dataset, processing_class=tokenizer,
        teacher_model=make_model(tokenizer, seed=1),
    )  # fmt: skip
    trainer.train()
    out = capsys.readouterr().out
    assert out.count("Step 1 ") == out.count("Step 2 ") == 1
    name = {"full": "distill/divergence", "k1": "distill/log_ratio"}[estimator]
    for step, row in enumerate((row for row in trainer.state.log_history if "loss" in row), start=1):
        stored = pd.read_parquet(tmp_path / "completions" / f"completions_{step:05d}.parquet")
        assert len(stored) == 8
        values = [value for strip in stored[COLUMN] for value in strip]
        assert len(values) == row["completions/mean_length"] * 8
        if estimator == "full":
            assert sum(values) / len(values) == pytest.approx(row[name], abs=1e-4)
        for strip, completion in zip(trainer._strips.gathered(), stored["completion"], strict=True):
            if step == 2:
                text = tokenizer.decode(strip.ids, skip_special_tokens=True)
                assert text == completion[0]["content"]


def test_a_method_without_a_teacher_has_trls_own_table(tmp_path, tokenizer, dataset, capsys):
    from trl_opd import GRPOConfig, GRPOTrainer

    config = GRPOConfig(**settings(tmp_path, max_steps=1, log_completions=True, num_completions_to_print=1))
    GRPOTrainer(make_model(tokenizer), digit_reward, config, dataset, processing_class=tokenizer).train()
    out = capsys.readouterr().out
    assert "Step 1" in out
    assert "ivergence" not in out
