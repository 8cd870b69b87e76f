"""The few functions over torch.distributed."""

from __future__ import annotations

import pytest
import torch

from ddpm.distributed import World, collected, joined, shared, total, world
from tests.distributed.processes import together


def _exchange() -> tuple[World, float, list[float], str]:
    place = world()
    rows = (10 * place.rank + i for i in range(place.rank))  # none, one and two
    return place, float(total(torch.tensor(2.0**place.rank))), collected(rows), shared(f"from {place.rank}")


def test_sums_rows_and_words_go_round() -> None:
    for rank, (place, summed, rows, word) in enumerate(together(3, _exchange)):
        assert place == World(rank, 3)
        assert summed == 7
        assert rows == [10, 20, 21]
        assert word == "from 0"


def test_one_process_is_the_trivial_case() -> None:
    with joined(torch.device("cpu")) as place:
        assert place == World(0, 1)
        x = torch.arange(3)
        assert total(x) is x
        assert collected(x) == [0, 1, 2]
        assert shared("word") == "word"


@pytest.mark.parametrize("size", [1, 2, 3, 7])
@pytest.mark.parametrize("count", [0, 1, 2, 3, 10, 11])
def test_shares_in_the_order_of_ranks_are_the_whole(size: int, count: int) -> None:
    shares = [list(World(rank, size).share(range(count))) for rank in range(size)]
    assert [item for share in shares for item in share] == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
