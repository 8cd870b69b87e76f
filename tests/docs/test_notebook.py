"""The lesson's notebook, run from end to end with its fast settings."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from docs.tools.notebook import NOTEBOOK, cells_of, run


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_LESSON_FAST", "1")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "__main__"}
    printed, pictures = "", 0
    for _, text, value in run(cells_of(), names):
        printed += text
        pictures += hasattr(value, "_repr_png_")
    assert "1617 scans to train on, 180 held out" in printed
    assert "surely a digit" in printed
    assert pictures == 6
    assert np.shape(names["samples"]) == (20, 8, 8, 1)  # type: ignore[arg-type]
    losses = names["losses"]
    assert isinstance(losses, list)
    assert losses[0] == pytest.approx(1, abs=0.1)
    assert losses[-1] < losses[0]


def test_its_outputs_are_of_the_full_run() -> None:
    """What is stored is what `make notebook` made: in order, whole, in less than ten minutes."""
    code = [cell for cell in cells_of() if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    text = "".join(line for cell in code for out in cell["outputs"] for line in out.get("text", []))
    assert "(an estimate from 50 timesteps)" in text
    assert int(text.split(" s in all")[0].split()[-1]) < 600
    assert sum("image/png" in out.get("data", {}) for cell in code for out in cell["outputs"]) == 6
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["metadata"]["kernelspec"]["language"]) == (4, "python")
    assert NOTEBOOK.stat().st_size < 500_000
