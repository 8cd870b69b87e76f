"""The predictor in other runtimes gives our outputs; one that does not is not written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm.errors import DDPMError
from ddpm.interop import runtime
from ddpm.interop.runtime import example, write_program
from ddpm.unet import UNet
from tests.interop.test_diffusers import lively

SETTINGS: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "size": (8, 12),
    "channels": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention": (4,),
    "norm_groups": 4,
}
SHAPE: dict[str, Any] = {"in_channels": 1, "size": (8, 12)}


def net_of(**changes: Any) -> UNet:
    net = UNet(**SETTINGS | changes).eval()
    lively(net)
    return net


FORMS = [pytest.param({}, id="plain"), pytest.param({"classes": 3}, id="classes", marks=pytest.mark.slow)]


@pytest.mark.parametrize("changes", FORMS)
def test_a_torch_program_gives_our_outputs(tmp_path: Path, changes: dict[str, Any]) -> None:
    net, path = net_of(**changes), tmp_path / "net.pt2"
    assert write_program(path, net, "torch-export", 1000, **SHAPE) < 1e-6
    program = torch.export.load(path).module()
    for count in (1, 7):
        arguments = example(net, count, 1000, **SHAPE)
        with torch.no_grad():
            assert (program(*arguments) - net(*arguments)).abs().max() < 1e-5
            later = (arguments[0], arguments[1] + 1, *arguments[2:])  # the clock is an input, not a constant
            assert (program(*later) - program(*arguments)).abs().max() > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("changes", FORMS)
def test_onnx_gives_our_outputs(tmp_path: Path, changes: dict[str, Any]) -> None:
    for package in ("onnx", "onnxscript", "onnxruntime"):
        pytest.importorskip(package, reason="ONNX is an extra: pip install 'ddpm[onnx]'")
    import onnxruntime

    net, path = net_of(**changes), tmp_path / "net.onnx"
    assert write_program(path, net, "onnx", 1000, **SHAPE) < 1e-5
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    names = [argument.name for argument in session.get_inputs()]
    assert names == ["x_t", "t", "labels"][: len(names)]
    arguments = example(net, 7, 1000, **SHAPE)
    (out,) = session.run(None, {name: value.numpy() for name, value in zip(names, arguments, strict=True)})
    with torch.no_grad():
        assert (torch.from_numpy(out) - net(*arguments)).abs().max() < 1e-4


def test_onnx_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnx", None)
    with pytest.raises(DDPMError, match=r"ONNX needs the package onnx: pip install 'ddpm\[onnx\]'"):
        write_program(tmp_path / "net.onnx", net_of(), "onnx", 1000, **SHAPE)
    assert not (tmp_path / "net.onnx").exists()


def test_a_program_with_other_outputs_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "_torch_program", lambda net, arguments: b"")
    wrong = net_of()
    with torch.no_grad():
        wrong.conv_out.bias.add_(0.01)  # type: ignore[union-attr]
    monkeypatch.setattr(runtime, "_torch_runner", lambda content: lambda arguments: wrong(*arguments).detach())
    with pytest.raises(DDPMError, match=r"outputs differ from ours by 0\.0\d+; nothing was written"):
        write_program(tmp_path / "net.pt2", net_of(), "torch-export", 1000, **SHAPE)
    assert not list(tmp_path.iterdir())
