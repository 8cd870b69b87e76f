"""The code blocks of a Markdown page, and what its Python prints.

`python -m docs.tools.blocks PAGE ...` runs the Python of pages and writes what it prints into the ```text blocks that
follow it; the tests compare them.
"""

from __future__ import annotations

import contextlib
import io
import re
import sys
from pathlib import Path
from typing import NamedTuple

_FENCE = re.compile(r"^```(?P<language>\w*)[^\n]*\n(?P<code>.*?)^```$", re.M | re.S)


class Block(NamedTuple):
    """A fenced block."""

    language: str
    code: str
    line: int
    """Of its first line of code, from 1."""
    said: str | None
    """What the ```text block behind it (with nothing in between) says; None: there is none."""
    span: tuple[int, int]
    """Where that text stands in the page."""


def blocks_of(text: str) -> list[Block]:
    """All blocks of a page in order, outputs joined to what they are the outputs of."""
    found: list[Block] = []
    end = -1
    for match in _FENCE.finditer(text):
        gap = text[end : match.start()]
        if match["language"] == "text" and found and end >= 0 and not gap.strip():
            found[-1] = found[-1]._replace(said=match["code"], span=match.span("code"))
            end = -1
            continue
        line = text.count("\n", 0, match.start("code")) + 1
        found.append(Block(match["language"], match["code"], line, None, (0, 0)))
        end = match.end()
    return found


def run_python(blocks: list[Block], names: dict[str, object], page: str = "page") -> list[tuple[Block, str]]:
    """Run the Python blocks in order, with one set of names: each with what it printed."""
    printed = []
    for block in blocks:
        if block.language != "python":
            continue
        out = io.StringIO()
        # Errors name the page's own lines.
        code = compile("\n" * (block.line - 1) + block.code, page, "exec")
        with contextlib.redirect_stdout(out):
            exec(code, names)
        printed.append((block, "".join(f"{line.rstrip()}\n" for line in out.getvalue().splitlines())))
    return printed


def main() -> None:
    for name in sys.argv[1:]:
        path = Path(name)
        text = path.read_text()
        for block, printed in reversed(run_python(blocks_of(text), {"__name__": "lesson"}, name)):
            if block.said is not None:
                text = text[: block.span[0]] + printed + text[block.span[1] :]
        path.write_text(text)


if __name__ == "__main__":
    main()
