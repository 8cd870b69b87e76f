"""Curves as SVG: points where they belong, readable ticks, and what cannot be shown left out."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest

from ddpm.evaluate.plot import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, Curve, plot


def _points(svg: str) -> list[list[tuple[float, float]]]:
    lines = re.findall(r'points="(.*?)"', svg)
    return [[(float(x), float(y)) for x, y in (pair.split(",") for pair in line.split())] for line in lines]


def test_points_lie_where_the_axes_say() -> None:
    svg = plot("Loss", "step", "loss", [Curve("a", [0, 50, 100], [1, 0.1, 0.01]), Curve("b", [100], [1])])
    ElementTree.fromstring(svg)  # well-formed
    ((first, middle, last),) = _points(svg)  # one point alone is no curve
    assert first == (LEFT, TOP)
    assert last == (WIDTH - RIGHT, HEIGHT - BOTTOM)
    assert middle == pytest.approx(((first[0] + last[0]) / 2, (first[1] + last[1]) / 2), abs=0.1)
    ticks = re.findall(r'class="tick (?:mid|end)">([\d.,e-]+)<', svg)
    assert ticks == ["0", "20", "40", "60", "80", "100", "0.01", "0.02", "0.05", "0.1", "0.2", "0.5", "1"]


def test_a_linear_axis_holds_zero_and_what_is_below() -> None:
    svg = plot("KID", "step", "kid", [Curve("", [1, 10], [-2.0, 8.0])], log_x=True, log_y=False)
    ((_, low), (_, high)) = _points(svg)[0]
    assert (low, high) == (HEIGHT - BOTTOM, TOP)
    assert ">-2<" in svg
    assert ">0<" in svg


def test_what_is_no_number_is_left_out() -> None:
    svg = plot("x", "x", "y", [Curve("", [1, 2, 3, 4, 5], [1, math.nan, 0, math.inf, 2])])
    assert len(_points(svg)[0]) == 2
    assert plot("x", "x", "y", [Curve("", [1, 2], [0, math.nan])]) == ""
    assert plot("x", "x", "y", []) == ""
    ElementTree.fromstring(plot("a < b", "&", "y", [Curve("<", [1, 2], [3, 3]), Curve("&", [1, 2], [3, 3])]))
