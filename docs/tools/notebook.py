"""The notebook, run without a notebook server: cell by cell, with one set of names.

`make notebook` runs it with its full settings and stores the outputs in the file.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

NOTEBOOK = Path(__file__).parents[1] / "lesson" / "lesson.ipynb"


def cells_of(path: Path = NOTEBOOK) -> list[dict[str, Any]]:
    """The notebook's cells."""
    return list(json.loads(path.read_text(encoding="utf-8"))["cells"])


def run(cells: list[dict[str, Any]], names: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str, Any]]:
    """Run the code cells in order: (cell, what it printed, the value of its last line or None)."""
    for number, cell in enumerate(cells):
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        out, value = io.StringIO(), None
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(io.StringIO()):
            exec(compile(tree, f"cell {number}", "exec"), names)
            if isinstance(last, ast.Expr):
                value = eval(compile(ast.Expression(last.value), f"cell {number}", "eval"), names)
        yield cell, out.getvalue(), value


def _outputs(printed: str, value: Any) -> list[dict[str, Any]]:
    """As a notebook stores them: text, and pictures as PNG."""
    outputs: list[dict[str, Any]] = []
    if printed:
        outputs.append({"output_type": "stream", "name": "stdout", "text": printed.splitlines(keepends=True)})
    if value is not None:
        data: dict[str, Any] = {"text/plain": [repr(value)]}
        if hasattr(value, "_repr_png_"):
            data = {"image/png": base64.b64encode(value._repr_png_()).decode(), "text/plain": ["a picture"]}
        outputs.append({"output_type": "display_data", "data": data, "metadata": {}})
    return outputs


def main() -> None:
    from ddpm.files import write_text

    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    for count, (cell, printed, value) in enumerate(run(notebook["cells"], {"__name__": "__main__"}), 1):
        cell["outputs"], cell["execution_count"] = _outputs(printed, value), count
    write_text(NOTEBOOK, json.dumps(notebook, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
