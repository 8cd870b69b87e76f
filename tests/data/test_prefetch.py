"""Items made in advance are the same items."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from ddpm.data.prefetch import ahead


def test_the_same_items_in_order_made_by_another_thread() -> None:
    makers = set()

    def numbers() -> Iterator[int]:
        for n in range(20):
            makers.add(threading.current_thread().name)
            yield n

    assert list(ahead(numbers(), 3)) == list(range(20))
    assert all(name.startswith("ahead") for name in makers)


def test_no_more_than_asked_are_made_in_advance() -> None:
    made = []
    stream = ahead((made.append(n) or n for n in range(100)), 2)  # type: ignore[func-returns-value]
    assert next(stream) == 0
    stream.close()  # type: ignore[attr-defined]
    assert len(made) <= 3
    assert not [t for t in threading.enumerate() if t.name.startswith("ahead")]


def test_an_error_comes_when_its_turn_does() -> None:
    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the disk is gone")

    stream = ahead(broken(), 4)
    assert [next(stream), next(stream)] == [1, 2]
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
