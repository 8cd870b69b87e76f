"""The page of labelled pictures: everything is on it, nothing overlaps, nothing is cut off."""

from __future__ import annotations

import numpy as np

from ddpm.paper.sheet import Cell, sheet

RED, BLUE = (np.full((20, 30, 3), colour, np.uint8) for colour in ((255, 0, 0), (0, 0, 255)))


def _page(**settings: object) -> np.ndarray:
    cells: list[list[Cell]] = [[(RED, "below"), None, (BLUE, "")], [(BLUE, ""), (RED, ""), (RED, "wide caption here")]]
    return sheet(cells, title="A title", **settings)  # type: ignore[arg-type]


def _count(page: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((page == colour).all(-1).sum())


def test_all_pictures_are_whole() -> None:
    page = _page(rows=["one\nline", "two"], columns=["a", "b", "c\nd"], note="words " * 60, height=40)
    assert _count(page, (255, 0, 0)) == 3 * 40 * 60
    assert _count(page, (0, 0, 255)) == 2 * 40 * 60
    for edge in (page[:4], page[-4:], page[:, :4], page[:, -4:]):
        assert (edge == 255).all()


def test_labels_take_room() -> None:
    bare = _page()
    for settings in ({"rows": ["label", "x"]}, {"columns": ["a\nb", "", ""]}, {"note": "small print"}):
        page = _page(**settings)
        assert page.size > bare.size
        assert (page < 130).all(-1).sum() > (bare < 130).all(-1).sum()


def test_grey_pictures_and_wide_titles() -> None:
    cells: list[list[Cell]] = [[(np.zeros((16, 16, 1), np.uint8), "")]]
    page = sheet(cells, title="A title that is far wider than its one picture", height=16)
    assert page.shape[2] == 3
    assert _count(page, (0, 0, 0)) == 16 * 16
    assert (page[:, -4:] == 255).all()
