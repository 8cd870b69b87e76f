"""Processes that train, started once, and what they train on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.reliability.runs import Trainers, pictures


@pytest.fixture(scope="session")
def trainers() -> Iterator[Trainers]:
    with Trainers() as trainers:
        yield trainers


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pictures(tmp_path_factory.mktemp("data") / "pictures")
