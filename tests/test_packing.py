"""Which rows share a forward: each once, in the order that takes the fewest tokens."""

import random

import pytest

from trl_opd.packing import Row, chunks, cost


def rows(lengths, prompts=None, prompt_length=3):
    prompts = prompts or range(len(lengths))
    return [Row(i, (p,), prompt_length, n) for i, (n, p) in enumerate(zip(lengths, prompts, strict=True))]


def tokens(made, cut, share):
    return sum(cost([made[i] for i in chunk], share) for chunk in cut)


def test_cost_is_the_rectangle_and_a_shared_prompt_counts_once():
    made = rows([5, 2, 4], prompts=[0, 0, 1])
    assert cost(made, share=False) == 3 * (3 + 5)
    assert cost(made, share=True) == 2 * 3 + 3 * 5


def test_rows_of_like_length_share_a_chunk_longest_first():
    assert chunks(rows([1, 9, 2, 8]), 2, share=False) == [[1, 3], [2, 0]]


def test_rows_of_a_long_prompt_share_a_chunk():
    made = rows([1, 9, 2, 8], prompts=[0, 0, 1, 1], prompt_length=100)
    assert sorted(map(sorted, chunks(made, 2, share=True))) == [[0, 1], [2, 3]]


@pytest.mark.parametrize("share", [False, True])
def test_no_row_is_lost_and_no_order_is_worse_than_that_of_the_batch(share):
    generator = random.Random(0)
    for _ in range(50):
        made = rows([generator.randint(1, 60) for _ in range(12)], [i // 4 for i in range(12)], 20)
        cut = chunks(made, 5, share)
        assert sorted(i for chunk in cut for i in chunk) == list(range(12))
        assert sorted(len(chunk) for chunk in cut) == [2, 5, 5]
        costs = [tokens(made, [chunk], share) for chunk in cut]
        assert costs == sorted(costs, reverse=True)
    ordered = sorted(made, key=lambda row: row.completion_length)
    by_length = [[row.index for row in ordered[start : start + 5]] for start in range(0, 12, 5)]
    assert tokens(made, cut, share) <= tokens(made, by_length, share)


def test_ragged_lengths_waste_less_than_in_the_order_that_they_came():
    generator = random.Random(1)
    lengths = [max(1, min(512, int(generator.lognormvariate(4.2, 0.9)))) for _ in range(32)]
    made = rows(lengths)
    came = [list(range(start, start + 8)) for start in range(0, 32, 8)]
    assert tokens(made, chunks(made, 8, share=False), share=False) < 0.75 * tokens(made, came, share=False)
