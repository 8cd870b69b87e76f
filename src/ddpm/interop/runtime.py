"""The noise predictor for other runtimes: a program of torch.export, or ONNX. What is written is run and compared."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from ddpm.conditioning import NO_CLASS
from ddpm.errors import DDPMError
from ddpm.files import atomic_write
from ddpm.noise import Purpose, normal, rng
from ddpm.unet import UNet

Runtime = Literal["torch-export", "onnx"]

TOLERANCE = 1e-4
"""Largest difference between our outputs and the written program's, of outputs of size 1."""


def example(net: UNet, count: int, T: int, *, in_channels: int, size: tuple[int, int]) -> tuple[Tensor, ...]:
    """Arguments of the predictor: x_t, t and, for a network with classes, labels."""
    x_t = normal(rng(0, Purpose.VALIDATION, count), (count, in_channels, *size))
    t = torch.linspace(1, T, count).round()
    if net.class_embedding is None:
        return x_t, t
    classes = net.class_embedding.num_embeddings - 1
    return x_t, t, torch.arange(count) % (classes + 1) + NO_CLASS


def write_program(path: Path, net: UNet, runtime: Runtime, T: int, *, in_channels: int, size: tuple[int, int]) -> float:
    """Write the network as a program for any batch size; returns the largest difference of its outputs from ours.

    Its inputs are x_t (B, C, H, W) float32, t (B,) float32 on the paper's clock 1..T, and for a network with classes
    labels (B,) int64, NO_CLASS for none.

    Raises DDPMError if a package is missing, or the outputs differ by more than TOLERANCE; then nothing is written.
    """
    net = net.eval()
    arguments = example(net, 3, T, in_channels=in_channels, size=size)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the exporters, about themselves
        content = _torch_program(net, arguments) if runtime == "torch-export" else _onnx_program(net, arguments)
        run = _torch_runner(content) if runtime == "torch-export" else _onnx_runner(content)
        worst = 0.0
        for count in (1, 5):  # other batch sizes than the example's
            given = example(net, count, T, in_channels=in_channels, size=size)
            with torch.no_grad():
                ours = net(*given)
            scale = max(1.0, float(ours.abs().max()))
            worst = max(worst, float((run(given) - ours).abs().max()) / scale)
    if not worst <= TOLERANCE:
        raise DDPMError(f"{path}: the exported network's outputs differ from ours by {worst:.2g}; nothing was written")
    with atomic_write(path) as file:
        file.write(content)
    return worst


def _torch_program(net: UNet, arguments: Sequence[Tensor]) -> bytes:
    import io

    batch = torch.export.Dim("batch", min=1)
    program = torch.export.export(net, tuple(arguments), dynamic_shapes=tuple({0: batch} for _ in arguments))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def _torch_runner(content: bytes) -> Callable[[Sequence[Tensor]], Tensor]:
    import io

    program = torch.export.load(io.BytesIO(content)).module()

    def run(arguments: Sequence[Tensor]) -> Tensor:
        with torch.no_grad():
            return program(*arguments)  # type: ignore[no-any-return]

    return run


_NAMES = ("x_t", "t", "labels")


def _onnx_program(net: UNet, arguments: Sequence[Tensor]) -> bytes:
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise DDPMError(f"ONNX needs the package {error.name}: pip install 'ddpm[onnx]'") from None
    batch = torch.export.Dim("batch", min=1)
    program = torch.onnx.export(
        net,
        tuple(arguments),
        dynamo=True,
        verbose=False,
        input_names=_NAMES[: len(arguments)],
        output_names=("prediction",),
        dynamic_shapes=tuple({0: batch} for _ in arguments),
    )
    assert program is not None
    return program.model_proto.SerializeToString()  # type: ignore[no-any-return]


def _onnx_runner(content: bytes) -> Callable[[Sequence[Tensor]], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session: Any = onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])

    def run(arguments: Sequence[Tensor]) -> Tensor:
        named = {name: np.asarray(value) for name, value in zip(_NAMES, arguments, strict=False)}
        return torch.from_numpy(session.run(None, named)[0])

    return run
