"""Says at the end what the cases came to."""

from __future__ import annotations

import pytest

from tests.fuzz.guard import outcomes


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if outcomes:
        terminalreporter.section("fuzzing")
        for target in dict.fromkeys(target for target, _ in outcomes):
            ended = {kind: count for (name, kind), count in outcomes.items() if name == target}
            terminalreporter.write_line(f"{target:18} {', '.join(f'{n:,} {kind}' for kind, n in ended.items())}")
        terminalreporter.write_line(f"{outcomes.total():,} cases")
