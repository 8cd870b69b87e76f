"""Processes that decode pictures: fed and read in turn, so that what comes out has the order of what went in.

Each is a Python of its own that talks through its standard input and output. It is not forked (the training process has
threads, and may hold a GPU), reads no main module again, and ends when its input does, however the training process
ended.
"""

from __future__ import annotations

import io
import itertools
import os
import signal
import struct
import subprocess
import sys
import threading
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import IO

import numpy as np

from ddpm.config import DataSection
from ddpm.data.decode import open_picture
from ddpm.data.records import Item, Taken
from ddpm.data.scan import frame_of, reason
from ddpm.errors import DataError

Process = subprocess.Popen[bytes]
_FRAME, _REASON = b"f", b"r"


def usual_workers() -> int:
    """One a core that this process may use, shared with the job's other processes on the machine; 4 at most."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(4, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def decoded(
    chunks: Iterator[Sequence[Taken]], config: DataSection, workers: int
) -> Generator[tuple[Taken, np.ndarray | str], None, None]:
    """Each picture as a frame, uint8 (C, H, W), or the reason why it is none; in order, two chunks a worker ahead.

    Raises DataError when a worker dies, and what `chunks` raises, but after all that came before it.
    """
    processes = [_start(config) for _ in range(workers)]
    waiting: deque[tuple[Process, Sequence[Taken]]] = deque()
    shape = (config.channels, *config.size)
    failed: DataError | None = None
    try:
        for process in itertools.cycle(processes):
            try:
                chunk = next(chunks, None)
            except DataError as error:
                failed = error
                break
            if chunk is None:
                break
            _send(process, [one.sample.content for one in chunk])
            waiting.append((process, chunk))
            if len(waiting) > 2 * workers:
                yield from _received(*waiting.popleft(), shape)
        while waiting:
            yield from _received(*waiting.popleft(), shape)
        if failed is not None:
            raise failed
    finally:
        for process in processes:
            _end(process)


def _start(config: DataSection) -> Process:
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", "from ddpm.data.workers import main; main()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))},
        start_new_session=True,  # Ctrl-C is for the training process, which first ends its step
    )
    _send(process, [config.model_dump_json().encode()])
    return process


def _send(process: Process, parts: Sequence[bytes]) -> None:
    assert process.stdin is not None
    try:
        _write(process.stdin, parts)
    except OSError as error:
        raise _died(process) from error


def _received(
    process: Process, chunk: Sequence[Taken], shape: tuple[int, int, int]
) -> Iterator[tuple[Taken, np.ndarray | str]]:
    assert process.stdout is not None
    try:
        found = _read(process.stdout)
    except (EOFError, OSError) as error:
        raise _died(process) from error
    for one, part in zip(chunk, found, strict=True):
        if one.sample.problem or part[:1] == _REASON:
            yield one, one.sample.problem or part[1:].decode()
        else:
            yield one, np.frombuffer(part, np.uint8, offset=1).reshape(shape)


def _died(process: Process) -> DataError:
    try:
        how = f"with exit code {process.wait(5)}; if that is -9, often for want of memory"
    except subprocess.TimeoutExpired:
        how = "it seems"
    return DataError(f"a process that decodes pictures has ended by itself ({how}). Fewer need less: data.workers")


def _end(process: Process) -> None:
    assert process.stdin is not None
    assert process.stdout is not None
    process.kill()  # it holds nothing but pictures
    for pipe in (process.stdin, process.stdout):
        with suppress(OSError):  # of what it did not take any more
            pipe.close()
    process.wait()


def main() -> None:
    """What a worker does: contents of pictures in, frames or reasons out, until its input ends."""
    for number in (signal.SIGINT, signal.SIGTERM):  # they ask the training process, which ends this one
        signal.signal(number, signal.SIG_IGN)
    source, out = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # whatever a library prints is no frame
    config = DataSection.model_validate_json(_read(source)[0])
    tasks: SimpleQueue[list[bytes]] = SimpleQueue()

    def receive() -> None:  # at once, so that nobody waits to send while we do
        try:
            while True:
                tasks.put(_read(source))
        except EOFError:
            os._exit(0)

    threading.Thread(target=receive, daemon=True).start()
    warnings.simplefilter("ignore")  # Pillow's remarks on odd files
    while True:
        _write(out, [_decode(content, config) for content in tasks.get()])


def _decode(content: bytes, config: DataSection) -> bytes:
    """A frame, or the reason why there is none, behind the mark of the one or the other."""
    frame = frame_of(Item("", lambda: open_picture(io.BytesIO(content)), None), config)
    return _REASON + reason(frame).encode() if isinstance(frame, Exception) else _FRAME + frame.pixels


def _write(pipe: IO[bytes], parts: Sequence[bytes]) -> None:
    """A message: the number of its parts, their lengths, the parts."""
    pipe.write(struct.pack(f"<{1 + len(parts)}Q", len(parts), *map(len, parts)))
    pipe.writelines(parts)
    pipe.flush()


def _read(pipe: IO[bytes]) -> list[bytes]:
    (count,) = struct.unpack("<Q", _exactly(pipe, 8))
    return [_exactly(pipe, length) for length in struct.unpack(f"<{count}Q", _exactly(pipe, 8 * count))]


def _exactly(pipe: IO[bytes], length: int) -> bytes:
    """Raises EOFError where the pipe ends before."""
    content = pipe.read(length)
    if len(content) < length:
        raise EOFError
    return content
