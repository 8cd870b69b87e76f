"""2,000 steps and 20 checkpoints: memory and open files stay flat."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is read as Linux tells it")
def test_memory_and_open_files_are_flat() -> None:
    command = [sys.executable, "-m", "tests.reliability.long_run", "2000"]
    result = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True)
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert [row["step"] for row in rows] == list(range(100, 2001, 100))
    warm = rows[4]  # a quarter of the run
    growth = max(row["resident"] for row in rows[4:]) / warm["resident"] - 1
    assert growth < 0.02, rows
    assert {row["files"] for row in rows} == {warm["files"]}
    assert {row["threads"] for row in rows} == {warm["threads"]}
