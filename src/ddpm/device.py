"""Device and precision: chosen in one place, named in words."""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path
from typing import Literal

import torch

from ddpm.errors import DDPMError, UsageError

Precision = Literal["float32", "bfloat16", "float16"]


def choose_device(name: str | torch.device | None = None) -> torch.device:
    """The device to run on.

    Args:
        name: "cpu", "cuda", "cuda:1", "mps" or "auto"; None: the environment variable DDPM_DEVICE, else auto
            (CUDA, then Apple's MPS, then the CPU).

    Raises UsageError for a device that this machine lacks.
    """
    name = str(name or os.environ.get("DDPM_DEVICE") or "auto")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:  # one GPU for each process that a launcher started
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
        there = {
            "cpu": True,
            "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
            "mps": torch.backends.mps.is_available(),
        }[device.type]
    except (RuntimeError, KeyError):
        raise UsageError(f"device {name!r}: expected auto, cpu, cuda, cuda:<number> or mps") from None
    if not there:
        raise UsageError(f"device {name!r} is not there on this machine (torch {torch.__version__}); try auto or cpu")
    return device


def describe(device: torch.device) -> str:
    """The device in words: "cuda (NVIDIA T4, 16 GB)", "cpu (2 threads)"."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{device} ({properties.name}, {properties.total_memory / 1e9:.0f} GB)"
    if device.type == "mps":
        return f"mps (Apple {platform.machine()})"
    return f"cpu ({torch.get_num_threads()} threads)"


def choose_precision(name: Literal["auto"] | Precision, device: torch.device) -> Precision:
    """What the network computes in.

    `auto` takes bfloat16 where the device multiplies it faster than float32 (CUDA from compute
    capability 8, CPUs with AMX) and float32 elsewhere. Raises UsageError for what the device cannot do.
    """
    if name == "auto":
        return "bfloat16" if _fast_bfloat16(device) else "float32"
    if name == "float16" and device.type == "cpu":
        raise UsageError("training.precision: float16 needs a GPU; on the CPU use bfloat16 or float32")
    return name


def _fast_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    if device.type == "cpu":
        # Private, but the only question torch answers; without AMX its bfloat16 convolutions are slower than
        # float32 ones (measured: 185 against 350 GFLOP/s on a Xeon with AVX512-BF16 alone).
        return bool(getattr(torch.cpu, "_is_amx_tile_supported", bool)())
    return False


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context in which the network runs in `precision`; weights stay float32."""
    if precision == "float32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, precision))


@contextmanager
def repeatable() -> Iterator[None]:
    """Only algorithms that give the same bits every time, and none chosen by how fast it was just now."""
    from torch.utils import deterministic

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS asks for it
    on, warn_only = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill, tuned = "fill_uninitialized_memory", torch.backends.cudnn.benchmark
    filled = getattr(deterministic, fill)
    torch.use_deterministic_algorithms(True)
    setattr(deterministic, fill, False)  # a help against bugs, which costs time
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(on, warn_only=warn_only)
        setattr(deterministic, fill, filled)
        torch.backends.cudnn.benchmark = tuned


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all that it was told (the CPU always has)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that a device's memory is used up."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error).lower() for words in _OUT_OF_MEMORY)


@contextmanager
def batch_fits(count: int) -> Iterator[None]:
    """Turn a lack of memory inside into an error that says which --batch-size to try instead of `count`."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise DDPMError(
            f"out of memory with {count} images at a time; try --batch-size {max(1, count // 2)}"
        ) from error


_OUT_OF_MEMORY = (
    "out of memory",
    "not enough memory",
    "can't allocate memory",
    "could not create a primitive",  # what oneDNN's convolutions say on the CPU
    "could not create a memory",
)


def limit_memory(device: torch.device) -> None:
    """Make a CPU run that needs more memory than there is fail with an error instead of being killed.

    Linux only: elsewhere, and for accelerators, allocation fails with an error by itself or swaps.
    """
    if device.type != "cpu" or not sys.platform.startswith("linux"):
        return
    import resource

    # RLIMIT_DATA counts private writable pages, touched or not: what is in use now plus what is free.
    used = _kilobytes("/proc/self/status", "VmData") * 1024
    free = _kilobytes("/proc/meminfo", "MemAvailable") * 1024
    cgroup = Path("/sys/fs/cgroup")
    with suppress(OSError, ValueError):
        free = min(free, int((cgroup / "memory.max").read_text()) - int((cgroup / "memory.current").read_text()))
    soft, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + free
    if used and free > 0 and (soft == resource.RLIM_INFINITY or limit < soft):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def _kilobytes(path: str, name: str) -> int:
    with suppress(OSError):
        for line in Path(path).read_text().splitlines():
            if line.startswith(f"{name}:"):
                return int(line.split()[1])
    return 0
