"""Steps whose loss or gradient is no number: skipped and counted, and what comes of too many in a row."""

from __future__ import annotations

from dataclasses import dataclass, replace

ROLLBACKS = 1
"""How often a run goes back to its last good checkpoint before it is stopped."""
LOWER = 0.5
"""What a rollback multiplies the learning rate by."""


@dataclass(frozen=True)
class Faults:
    """What has gone wrong in a run so far: state that no function of the step can tell."""

    skipped: int = 0
    """Steps that left weights, moments and averages as they were."""
    in_a_row: int = 0
    """How many of them the last steps were; 0: the last step was sound."""
    rollbacks: int = 0
    """How often the run went back to a good checkpoint."""

    @property
    def rate_factor(self) -> float:
        """What the learning rate is multiplied by."""
        return float(LOWER**self.rollbacks)

    def after(self, *, sound: bool, alarming: bool = True) -> Faults:
        """After one more step. A skipped one that is not `alarming` is counted, but not in a row."""
        if sound:
            return replace(self, in_a_row=0)
        return replace(self, skipped=self.skipped + 1, in_a_row=self.in_a_row + alarming)

    def set_back(self) -> Faults:
        """After going back to a good checkpoint."""
        return replace(self, in_a_row=0, rollbacks=self.rollbacks + 1)
