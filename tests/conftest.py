"""Fixtures for all tests: reference files beside the checkout, and one quiet, repeatable torch."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest
import torch

REFERENCES = {"golden": "DDPM_GOLDEN", "shared_data": "DDPM_SHARED_DATA"}
"""Fixtures that need files users do not have, and the variables that name their folders."""


def _beside(fixture: str) -> Path:
    """The folder an environment variable names, else the one in `../shared/` beside the checkout."""
    named = os.environ.get(REFERENCES[fixture])
    return Path(named) if named else Path(__file__).parents[2] / "shared" / fixture.removeprefix("shared_")


def _or_skip(fixture: str) -> Path:
    path = _beside(fixture)
    if not path.is_dir():
        pytest.skip(f"reference files absent: no {path} (set {REFERENCES[fixture]} to their folder)")
    return path


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where the reference files are, a skipped reference test is a failure."""
    report = yield
    used = [f for f in REFERENCES if f in getattr(item, "fixturenames", ()) and _beside(f).is_dir()]
    if report.skipped and used and not hasattr(report, "wasxfail"):
        report.outcome, report.longrepr = "failed", f"skipped although the reference files are there: {used}"
    return report


@pytest.fixture(scope="session")
def golden() -> Path:
    """Reference vectors of peer implementations; see their README for the conventions."""
    return _or_skip("golden")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real MNIST and CIFAR files."""
    return _or_skip("shared_data")


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """The tests' tensors are tiny: more threads would only wait for one another."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True, scope="session")
def _own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """No test reads or writes the user's cache or data folder; all test processes share one of their own."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_CACHE", str(shared / "cache"))
        patch.delenv("DDPM_DATA_ROOT", raising=False)
        yield
