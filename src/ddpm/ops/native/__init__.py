"""Our own CPU kernels: compiled once with the machine's C++ compiler, loaded with ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from ddpm.errors import DDPMError
from ddpm.files import cache_folder

_FOLDER = Path(__file__).parent
_SOURCES = ("simd.h", "conv3x3.cpp", "group_norm_silu.cpp")
# Sums keep the order they are written in (no -ffast-math); only a multiplication and an addition may become one.
_FLAGS = ("-std=c++17", "-O3", "-ffp-contract=fast", "-fno-math-errno", "-fopenmp", "-fPIC", "-Wno-psabi")

_P, _N, _F = ctypes.c_void_p, ctypes.c_ssize_t, ctypes.c_float
_SIGNATURES = {
    "ddpm_lanes": [],
    "ddpm_conv3x3_weights": [_P, *[_N] * 6, _P],
    "ddpm_conv3x3": [*[_P] * 5, *[_N] * 5],
    "ddpm_conv3x3_weight_gradient": [*[_P] * 3, *[_N] * 4, _P, *[_N] * 5],
    "ddpm_norm_silu_float32": [*[_P] * 7, *[_N] * 4, _F],
    "ddpm_norm_silu_bfloat16": [*[_P] * 7, *[_N] * 4, _F],
    "ddpm_norm_silu_backward_float32": [*[_P] * 11, *[_N] * 4],
    "ddpm_norm_silu_backward_bfloat16": [*[_P] * 11, *[_N] * 4],
}


class Unavailable(DDPMError):
    """The kernels cannot be had here; the message says why."""


def library() -> ctypes.CDLL:
    """The kernels, compiled if they are not in the cache yet (a few seconds).

    Raises Unavailable with the reason: no Linux, no compiler, or one that fails.
    """
    loaded = _library()
    if isinstance(loaded, str):
        raise Unavailable(loaded)
    return loaded


@functools.cache
def _library() -> ctypes.CDLL | str:
    if not sys.platform.startswith("linux"):
        return f"the compiled kernels are for Linux; this is {platform.system()}"
    compiler = next((c for c in (os.environ.get("CXX"), "c++", "g++", "clang++") if c and shutil.which(c)), None)
    if compiler is None:
        return "there is no C++ compiler (c++, g++, clang++ or what CXX names)"
    try:
        import torch  # noqa: F401  (its OpenMP is the one the kernels share)

        return _load(_built(compiler))
    except (OSError, DDPMError, subprocess.SubprocessError, AttributeError) as error:
        reason = str(error).strip().splitlines() or [repr(error)]
        return f"{compiler} could not build them: {reason[-1]}"


def _load(path: Path) -> ctypes.CDLL:
    # No OpenMP of our own is linked in: the names resolve to torch's, which has the threads already.
    loaded = ctypes.CDLL(str(path), mode=os.RTLD_NOW)
    for name, arguments in _SIGNATURES.items():
        getattr(loaded, name).argtypes = arguments
    return loaded


def _built(compiler: str) -> Path:
    """The shared library for this source, compiler and processor."""
    version = _run([compiler, "--version"])
    key = hashlib.sha256("\n".join([version, _processor(), *_FLAGS]).encode())
    for name in _SOURCES:
        key.update((_FOLDER / name).read_bytes())
    target = cache_folder() / f"kernels-{key.hexdigest()[:16]}.so"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=".kernels-") as scratch:
            native = "-march=native" if platform.machine() in ("x86_64", "AMD64") else "-mcpu=native"
            objects = []
            for name in _SOURCES[1:]:
                objects.append(str(Path(scratch) / f"{name}.o"))
                _run([compiler, *_FLAGS, native, *_wide(compiler), "-c", str(_FOLDER / name), "-o", objects[-1]])
            made = Path(scratch) / target.name
            _run([compiler, "-shared", *objects, "-o", str(made)])
            os.replace(made, target)  # whole or not there, whoever else compiles at the same time
    return target


def _wide(compiler: str) -> list[str]:
    # Compilers hold back from 512-bit registers for code that uses few of them; these kernels do nothing else.
    return ["-mprefer-vector-width=512"] if platform.machine() in ("x86_64", "AMD64") else []


def _processor() -> str:
    """What -march=native depends on."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return "\n".join(sorted({line for line in lines if line.startswith(("model name", "flags", "Features"))}))


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    if done.returncode:
        raise Unavailable(done.stderr or f"{command[0]} ended with {done.returncode}")
    return done.stdout
