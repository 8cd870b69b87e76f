"""Device and precision: chosen, named, and refused in words where the machine lacks them."""

from __future__ import annotations

import sys

import pytest
import torch

from ddpm import device
from ddpm.device import autocast, choose_device, choose_precision, describe, is_out_of_memory, limit_memory
from ddpm.errors import UsageError

CPU = torch.device("cpu")


def test_the_environment_names_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DDPM_DEVICE", "cpu")
    assert choose_device() == CPU
    assert choose_device(CPU) == CPU
    monkeypatch.setenv("DDPM_DEVICE", "abacus")
    with pytest.raises(UsageError, match="'abacus': expected auto, cpu, cuda"):
        choose_device()
    assert choose_device("cpu") == CPU  # an argument wins


def test_auto_prefers_cuda_then_mps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DDPM_DEVICE", raising=False)
    for cuda, mps, expected in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert choose_device("auto").type == expected
        if not cuda:
            with pytest.raises(UsageError, match="is not there"):
                choose_device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(UsageError, match="cuda:7"):
        choose_device("cuda:7")


def test_precision_follows_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    for fast, expected in ((True, "bfloat16"), (False, "float32")):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda fast=fast: fast)
        assert choose_precision("auto", CPU) == expected
    cuda = torch.device("cuda")
    for capability, expected in (((7, 5), "float32"), ((8, 0), "bfloat16"), ((9, 0), "bfloat16")):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_, c=capability: c)
        assert choose_precision("auto", cuda) == expected
    assert choose_precision("auto", torch.device("mps")) == "float32"
    assert choose_precision("bfloat16", CPU) == "bfloat16"
    with pytest.raises(UsageError, match="needs a GPU"):
        choose_precision("float16", CPU)


def test_autocast_computes_in_the_precision() -> None:
    x = torch.ones(2, 2)
    for precision, expected in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        with autocast(precision, CPU):  # type: ignore[arg-type]
            assert (x @ x).dtype == expected
    assert describe(CPU).startswith("cpu (")


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), True),
        (RuntimeError("could not create a primitive"), True),
        (MemoryError(), True),
        (RuntimeError("shapes do not match"), False),
        (ValueError("out of memory"), False),
    ],
)
def test_running_out_of_memory_is_recognised(error: Exception, expected: bool) -> None:
    assert is_out_of_memory(error) == expected


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit is set as Linux does")
def test_the_memory_limit_is_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    import resource

    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: calls.append(limits))
    monkeypatch.setattr(device, "_kilobytes", lambda path, name: {"VmData": 1000, "MemAvailable": 5000}[name])
    limit_memory(torch.device("cuda"))
    assert calls == []
    limit_memory(CPU)
    assert len(calls) == 1
    assert 0 < calls[0][0] <= 6000 * 1024
