"""The command line: `ddpm COMMAND`, `python -m ddpm COMMAND` and the lesson's two scripts.

Only the standard library is imported before a command runs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from typing import Any

from ddpm.commands import (
    app,
    benchmark,
    completion,
    config,
    edit,
    evaluate,
    export,
    extractor,
    hub,
    import_model,
    info,
    inpaint,
    interpolate,
    paper,
    pretrained,
    sample,
    train,
)
from ddpm.errors import DDPMError, ElsewhereError, UsageError
from ddpm.progress import speaks

COMMANDS = (
    train,
    sample,
    evaluate,
    extractor,
    config,
    info,
    pretrained,
    paper,
    benchmark,
    interpolate,
    inpaint,
    edit,
    export,
    import_model,
    hub,
    app,
    completion,
)

EXIT_CODES = """exit codes: 0 done; 1 failed, with the reason; 2 wrong usage or configuration;
130 or 143 interrupted, after saving"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    return run_command(_parser(), arguments)


def run_command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Parse, run the command the parser chose, and turn errors for people into a line and an exit code."""
    # Threads that wait by spinning for long make a run 20 times slower beside one busy neighbour; a short spin
    # costs an undisturbed run 6 %. Read when torch is imported, which no command has done yet.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    options = parser.parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        with _one_voice():
            command(options)
    except DDPMError as error:
        # What every process of a job finds wrong is said once.
        if speaks() or not isinstance(error, UsageError | ElsewhereError):
            print(f"ddpm: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("ddpm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        sys.stderr.close()
        return 1
    except OSError as error:  # a file that cannot be opened, a name that is too long, a full disk
        print(f"ddpm: {error}", file=sys.stderr)
        return 1
    return 0


@contextmanager
def _one_voice() -> Iterator[None]:
    """Of several processes only the first writes to standard output."""
    if speaks():
        yield
        return
    with open(os.devnull, "w", encoding="utf-8") as nowhere, redirect_stdout(nowhere):
        yield


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ddpm",
        description="Denoising Diffusion Probabilistic Models (arXiv 2006.11239): train, sample, look inside.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in COMMANDS:
        command.add(commands)
    return parser


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str):
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"ddpm {version('ddpm')}")
        parser.exit()
