"""A page of labelled pictures on white: what most of the paper's figures are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ddpm.images import PAPER, enlarge

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont, ImageFont

_INK, _GREY = (32, 32, 32), (110, 110, 110)
_TITLE, _TEXT, _SMALL = 19, 14, 12
_MARGIN = 16

Cell = tuple[np.ndarray, str] | None
"""A picture, uint8 (H, W, C), with the line below it ("": none); None leaves the place empty."""


def sheet(
    cells: Sequence[Sequence[Cell]],
    *,
    title: str,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    note: str = "",
    height: int = 64,
) -> np.ndarray:
    """Rows of pictures with their labels.

    Args:
        cells: rows of equal length.
        rows: label of each row, on the left; may have several lines.
        columns: head of each column.
        note: small print below; wrapped to the page's width.
        height: height in pixels that each picture is at least enlarged to.

    Returns:
        uint8 (H', W', 3).
    """
    from PIL import Image, ImageDraw

    title_font, text, small = _font(_TITLE), _font(_TEXT), _font(_SMALL)
    picture_h, picture_w = enlarge(_first(cells)[None], height).shape[1:3]
    captioned = any(cell and cell[1] for row in cells for cell in row)
    heads = [_lines(head) for head in columns]
    words = [part for row in cells for cell in row if cell for part in _lines(cell[1])]
    widest = max(
        [_width(text, part) for head in heads for part in head] + [_width(small, part) for part in words] + [0]
    )
    gap = max(6, picture_h // 12)
    pitch_x = max(picture_w, widest) + gap
    pitch_y = picture_h + (_SMALL + 6 if captioned else 0) + gap
    left = _MARGIN + max([_width(text, line) + 12 for label in rows for line in _lines(label)] + [0])
    count = max(len(row) for row in cells)
    page_w = max(left + count * pitch_x - gap + _MARGIN, _width(title_font, title) + 2 * _MARGIN)
    small_print = _wrap(small, note, page_w - 2 * _MARGIN)
    head_h = max([len(head) for head in heads] + [0]) * (_TEXT + 4)
    top = _MARGIN + _TITLE + 12 + head_h
    page_h = top + len(cells) * pitch_y + len(small_print) * (_SMALL + 4) + _MARGIN
    page = Image.new("RGB", (page_w, page_h), (PAPER,) * 3)
    pen = ImageDraw.Draw(page)
    pen.text((_MARGIN, _MARGIN - 4), title, _INK, title_font)
    for column, head in enumerate(heads):
        x = left + column * pitch_x + pitch_x // 2 - gap // 2
        for n, line in enumerate(reversed(head)):
            pen.text((x, top - 4 - n * (_TEXT + 4)), line, _INK, text, anchor="ms")
    for i, row in enumerate(cells):
        y = top + i * pitch_y
        if i < len(rows):
            lines = _lines(rows[i])
            first = y + picture_h // 2 - (len(lines) - 1) * (_TEXT + 4) // 2
            for n, line in enumerate(lines):
                pen.text((left - 12, first + n * (_TEXT + 4)), line, _INK, text, anchor="rm")
        for column, cell in enumerate(row):
            if cell is None:
                continue
            array, caption = cell
            x = left + column * pitch_x + (pitch_x - gap - picture_w) // 2
            colour = np.broadcast_to(enlarge(array[None], height)[0], (picture_h, picture_w, 3))
            page.paste(Image.fromarray(np.ascontiguousarray(colour)), (x, y))
            if caption:
                pen.text((x + picture_w // 2, y + picture_h + 4), caption, _GREY, small, anchor="mt")
    y = page_h - _MARGIN - len(small_print) * (_SMALL + 4) + 4
    for n, line in enumerate(small_print):
        pen.text((_MARGIN, y + n * (_SMALL + 4)), line, _GREY, small)
    return np.asarray(page)


def _font(size: int) -> FreeTypeFont | ImageFont:
    from PIL import ImageFont

    return ImageFont.load_default(size)


def _first(cells: Sequence[Sequence[Cell]]) -> np.ndarray:
    return next(cell[0] for row in cells for cell in row if cell)


def _lines(label: str) -> list[str]:
    return label.split("\n") if label else []


def _width(font: FreeTypeFont | ImageFont, line: str) -> int:
    return int(np.ceil(font.getlength(line)))


def _wrap(font: FreeTypeFont | ImageFont, text: str, width: int) -> list[str]:
    """`text` in lines no wider than `width`."""
    lines: list[str] = []
    for paragraph in _lines(text):
        line = ""
        for word in paragraph.split():
            longer = f"{line} {word}".strip()
            if line and _width(font, longer) > width:
                lines.append(line)
                longer = word
            line = longer
        lines.append(line)
    return lines
