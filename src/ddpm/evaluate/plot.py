"""Curves as SVG text, for pages that are one file: no library, nothing to load."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

WIDTH, HEIGHT = 460, 280
LEFT, RIGHT, TOP, BOTTOM = 58, 12, 30, 42
COLOURS = ("#1f5fa8", "#c8501e", "#2d8a4e")


class Curve(NamedTuple):
    """One line of a plot."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


class _Axis(NamedTuple):
    low: float
    high: float
    log: bool
    start: float
    """Where `low` lies, in pixels."""
    end: float

    def place(self, value: float) -> float:
        low, high, value = (math.log(v) if self.log else v for v in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        if not self.log:
            step = 10 ** math.floor(math.log10(self.high - self.low))
            step = next(step * k for k in (0.1, 0.2, 0.5, 1, 2, 5) if (self.high - self.low) / (step * k) <= 6)
            first = math.ceil(self.low / step - 1e-9)
            return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]
        decades = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        parts = (1,) if len(decades) > 3 else (1, 2, 5)
        return [k * 10.0**d for d in decades for k in parts if self.low * 0.999 <= k * 10.0**d <= self.high * 1.001]


def plot(title: str, x: str, y: str, curves: Sequence[Curve], *, log_x: bool = False, log_y: bool = True) -> str:
    """Curves over one pair of axes as an <svg> element; "" where no curve has two points to show.

    A logarithmic axis leaves out what is not above 0, and all leave out what is no number.
    """
    kept = [curve for curve in (_shown(curve, log_x, log_y) for curve in curves) if len(curve.x) > 1]
    if not kept:
        return ""
    across = _axis([v for c in kept for v in c.x], log_x, LEFT, WIDTH - RIGHT)
    up = _axis([v for c in kept for v in c.y], log_y, HEIGHT - BOTTOM, TOP)
    lines = [
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title)}">',
        f'<text x="{LEFT}" y="16" class="head">{escape(title)}</text>',
    ]
    for value in across.ticks():
        p = across.place(value)
        lines.append(f'<path class="grid" d="M{p:.1f} {TOP}V{HEIGHT - BOTTOM}"/>')
        lines.append(f'<text x="{p:.1f}" y="{HEIGHT - BOTTOM + 14}" class="tick mid">{_number(value)}</text>')
    for value in up.ticks():
        p = up.place(value)
        lines.append(f'<path class="grid" d="M{LEFT} {p:.1f}H{WIDTH - RIGHT}"/>')
        lines.append(f'<text x="{LEFT - 5}" y="{p + 3.5:.1f}" class="tick end">{_number(value)}</text>')
    for number, (curve, colour) in enumerate(zip(kept, COLOURS, strict=False)):
        points = " ".join(f"{across.place(a):.1f},{up.place(b):.1f}" for a, b in zip(curve.x, curve.y, strict=True))
        lines.append(f'<polyline points="{points}" stroke="{colour}"/>')
        if len(kept) > 1:
            place = TOP + 12 + 14 * number
            lines.append(f'<text x="{WIDTH - RIGHT - 4}" y="{place}" class="tick end" style="fill:{colour}">')
            lines.append(f"{escape(curve.name)}</text>")
    middle = (LEFT + WIDTH - RIGHT) / 2
    lines.append(f'<text x="{middle}" y="{HEIGHT - 8}" class="tick mid">{escape(x)}</text>')
    lines.append(f'<text class="tick mid" transform="translate(12 {(TOP + HEIGHT - BOTTOM) / 2}) rotate(-90)">')
    lines.append(f"{escape(y)}</text></svg>")
    return "\n".join(lines)


def _shown(curve: Curve, log_x: bool, log_y: bool) -> Curve:
    pairs = [
        (a, b)
        for a, b in zip(curve.x, curve.y, strict=True)
        if math.isfinite(a) and math.isfinite(b) and (a > 0 or not log_x) and (b > 0 or not log_y)
    ]
    return Curve(curve.name, [a for a, _ in pairs], [b for _, b in pairs])


def _axis(values: Sequence[float], log: bool, start: float, end: float) -> _Axis:
    low, high = min(values), max(values)
    if not log:
        low = min(low, 0.0)
    if low == high:
        low, high = (low / 2, high * 2) if log else (low - 1, high + 1)
    return _Axis(low, high, log, start, end)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value == int(value) and abs(value) < 1e7 else f"{value:.3g}"
