"""Errors meant for people: a message that says what was found, what is allowed and what to do.

The command line prints the message and exits with `exit_code`; a traceback means a bug in ddpm.
"""

from __future__ import annotations

from pathlib import Path


class DDPMError(Exception):
    """Something went wrong that the user can act on (exit code 1)."""

    exit_code = 1


class UsageError(DDPMError):
    """The command or an argument is wrong (exit code 2)."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration is wrong: names file, key, what was found and what is allowed."""


class DataError(DDPMError):
    """The data cannot be read as asked."""


class CheckpointError(DDPMError):
    """A checkpoint is missing, damaged or does not fit."""


class DamagedError(CheckpointError):
    """The content of a checkpoint is not what was written: another checkpoint of the run may still be whole."""


class WriteError(DDPMError):
    """The disk refuses to take what is written; what stood there before is untouched."""


class ElsewhereError(DDPMError):
    """What the first of several processes has failed with, and says."""

    def __init__(self, message: str, exit_code: int):
        super().__init__(message)
        self.exit_code = exit_code


class DivergedError(DDPMError):
    """Training was stopped because its loss is no longer a number."""

    def __init__(self, message: str, step: int, saved: Path | None):
        super().__init__(message)
        self.step = step
        """The first of the last steps in a row that were skipped."""
        self.saved = saved
        """The last good checkpoint, if any was written."""
