"""improved-diffusion's weights: the network read off names and shapes, and what it computes."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ddpm.errors import CheckpointError, DDPMError
from ddpm.interop.improved import is_state_dict, read_weights, unet_settings, unet_weights_from
from ddpm.interop.strict import shapes
from ddpm.unet import UNet, timestep_embedding
from tests.reference import index

EXPECTED: dict[str, dict[str, Any]] = {
    "params_improved_1ch": {
        "in_channels": 1,
        "out_channels": 1,
        "channels": 64,
        "multipliers": (1, 2, 2),
        "blocks": 2,
        "attention": (14,),
        "time": "add",
    },
    "params_improved_cifar10": {
        "in_channels": 3,
        "out_channels": 6,
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "blocks": 3,
        "attention": (16, 8),
        "time": "scale_shift",
    },
}


def weights_of(golden: Path, name: str) -> dict[str, Tensor]:
    """The recorded names and shapes, each element a number of its own."""
    reference, start, made = index(golden / f"unet/{name}.json"), 0, {}
    for key, shape in reference["parameters"].items():
        count = torch.Size(shape).numel()
        made[key] = torch.arange(start, start + count).view(shape)
        start += count
    assert start == reference["n_params"]
    return made


@pytest.mark.parametrize("name", EXPECTED)
def test_the_network_is_read_off_the_shapes(golden: Path, name: str) -> None:
    weights = weights_of(golden, name)
    side = 28 if name.endswith("1ch") else 32
    assert is_state_dict(weights)
    settings = unet_settings(weights, size=(side, side), heads=4)
    common = {"padding": "symmetric", "embedding": "improved", "norm_eps": 1e-5, "heads": 4, "size": (side, side)}
    assert settings.items() >= (EXPECTED[name] | common).items()
    mapped = unet_weights_from(weights, settings)
    assert {key: tuple(value.shape) for key, value in mapped.items()} == shapes(settings)


def test_every_weight_is_used_once(golden: Path) -> None:
    # As float32 the numbers of 6.5 million weights are exact.
    weights = weights_of(golden, "params_improved_1ch")
    mapped = unet_weights_from(weights, unet_settings(weights, size=(28, 28), heads=4))
    arrived = torch.cat([value.flatten() for value in mapped.values()]).long()
    assert torch.equal(arrived.sort().values, torch.arange(sum(v.numel() for v in weights.values())))


def their_network(
    w: dict[str, Tensor], x: Tensor, t: Tensor, *, channels: int, heads: int, scale_shift: bool
) -> Tensor:
    """Their U-Net from the description of their modules, on their clock: it walks the names as it finds them."""

    def norm(name: str, h: Tensor) -> Tensor:
        return F.group_norm(h, 32, w[f"{name}.weight"], w[f"{name}.bias"], 1e-5)

    def conv(name: str, h: Tensor, **kind: int) -> Tensor:
        return F.conv2d(h, w[f"{name}.weight"], w[f"{name}.bias"], **kind)

    def linear(name: str, h: Tensor) -> Tensor:
        return F.linear(h, w[f"{name}.weight"], w[f"{name}.bias"])

    emb = timestep_embedding(t, channels, "improved")
    emb = linear("time_embed.2", F.silu(linear("time_embed.0", emb)))

    def residual(name: str, h: Tensor) -> Tensor:
        inner = conv(f"{name}.in_layers.2", F.silu(norm(f"{name}.in_layers.0", h)), padding=1)
        time = linear(f"{name}.emb_layers.1", F.silu(emb))[..., None, None]
        if scale_shift:
            scale, shift = time.chunk(2, 1)
            inner = norm(f"{name}.out_layers.0", inner) * (1 + scale) + shift
        else:
            inner = norm(f"{name}.out_layers.0", inner + time)
        inner = conv(f"{name}.out_layers.3", F.silu(inner), padding=1)
        return inner + (conv(f"{name}.skip_connection", h) if f"{name}.skip_connection.weight" in w else h)

    def attention(name: str, h: Tensor) -> Tensor:
        b, c, height, width = h.shape
        flat = norm(f"{name}.norm", h).flatten(2)
        qkv = F.conv1d(flat, w[f"{name}.qkv.weight"], w[f"{name}.qkv.bias"])
        of_heads = []
        for part in qkv.chunk(heads, 1):  # head by head: its q, k and v
            q, k, v = part.chunk(3, 1)
            weight = torch.softmax(q.transpose(1, 2) @ k / (c // heads) ** 0.5, -1)
            of_heads.append(v @ weight.transpose(1, 2))
        out = F.conv1d(torch.cat(of_heads, 1), w[f"{name}.proj_out.weight"], w[f"{name}.proj_out.bias"])
        return h + out.view(b, c, height, width)

    def block(name: str, h: Tensor) -> Tensor:
        for part in range(3):
            layer = f"{name}.{part}"
            if f"{layer}.in_layers.0.weight" in w:
                h = residual(layer, h)
            elif f"{layer}.qkv.weight" in w:
                h = attention(layer, h)
            elif f"{layer}.op.weight" in w:
                h = conv(f"{layer}.op", h, stride=2, padding=1)
            elif f"{layer}.conv.weight" in w:
                h = conv(f"{layer}.conv", F.interpolate(h, scale_factor=2.0, mode="nearest"), padding=1)
            elif f"{layer}.weight" in w:
                h = conv(layer, h, padding=1)
        return h

    def count(way: str) -> int:
        return 1 + max(int(m[1]) for name in w if (m := re.match(rf"{way}\.(\d+)\.", name)))

    kept, h = [], x
    for k in range(count("input_blocks")):
        h = block(f"input_blocks.{k}", h)
        kept.append(h)
    h = block("middle_block", h)
    for k in range(count("output_blocks")):
        h = block(f"output_blocks.{k}", torch.cat([h, kept.pop()], 1))
    return conv("out.2", F.silu(norm("out.0", h)), padding=1)


def small(scale_shift: bool) -> dict[str, Tensor]:
    """Weights in their names: of 32 channels, two levels, one block, attention at the second."""
    shapes: dict[str, tuple[int, ...]] = {
        "time_embed.0": (128, 32),
        "time_embed.2": (128, 128),
        "input_blocks.0.0": (32, 1, 3, 3),
        "input_blocks.2.0.op": (32, 32, 3, 3),
        "output_blocks.1.2.conv": (64, 64, 3, 3),
        "out.0": (32,),
        "out.2": (1, 32, 3, 3),
    }

    def residual(name: str, into: int, out: int) -> None:
        shapes[f"{name}.in_layers.0"] = (into,)
        shapes[f"{name}.in_layers.2"] = (out, into, 3, 3)
        shapes[f"{name}.emb_layers.1"] = (out * (2 if scale_shift else 1), 128)
        shapes[f"{name}.out_layers.0"] = (out,)
        shapes[f"{name}.out_layers.3"] = (out, out, 3, 3)
        if into != out:
            shapes[f"{name}.skip_connection"] = (out, into, 1, 1)

    residual("input_blocks.1.0", 32, 32)
    residual("input_blocks.3.0", 32, 64)
    residual("middle_block.0", 64, 64)
    residual("middle_block.2", 64, 64)
    for k, (into, out) in enumerate([(128, 64), (96, 64), (96, 32), (64, 32)]):
        residual(f"output_blocks.{k}.0", into, out)
    for name in ("input_blocks.3.1", "middle_block.1", "output_blocks.0.1", "output_blocks.1.1"):
        shapes |= {f"{name}.norm": (64,), f"{name}.qkv": (192, 64, 1), f"{name}.proj_out": (64, 64, 1)}
    generator, made = torch.Generator().manual_seed(0), {}
    for name, shape in shapes.items():
        fan = torch.Size(shape[1:]).numel() if len(shape) > 1 else 100
        noise = torch.randn(shape, generator=generator) / fan**0.5
        made[f"{name}.weight"] = noise + (len(shape) == 1)
        made[f"{name}.bias"] = torch.randn(shape[0], generator=generator) * 0.1
    return made


@pytest.mark.parametrize("scale_shift", [False, True])
def test_ours_computes_what_theirs_does(scale_shift: bool) -> None:
    weights = small(scale_shift)
    found = read_weights(weights, size=(8, 12), heads=4)
    assert found.settings["time"] == ("scale_shift" if scale_shift else "add")
    net = UNet(**found.settings).eval()
    net.load_state_dict(dict(found.weights))
    generator = torch.Generator().manual_seed(1)
    x, t = torch.randn(3, 1, 8, 12, generator=generator), torch.tensor([0, 37, 999])
    with torch.no_grad():
        expected = their_network(weights, x, t, channels=32, heads=4, scale_shift=scale_shift)
        assert expected.std() > 0.1
        assert (net(x, t + 1) - expected).abs().max() < 5e-5
        # Another number of heads is another network, and so is their clock on ours.
        other = UNet(**found.settings | {"heads": 2}).eval()
        other.load_state_dict(unet_weights_from(weights, {**found.settings, "heads": 2}))
        assert (other(x, t + 1) - expected).abs().max() > 1e-3
        assert (net(x, t) - expected).abs().max() > 1e-3
        # Their chains of 4,000 steps ask at a quarter of the time.
        rescaled = UNet(**found.settings | {"time_scale": 0.25}).eval()
        rescaled.load_state_dict(dict(found.weights))
        expected = their_network(weights, x, t * 0.25, channels=32, heads=4, scale_shift=scale_shift)
        assert (rescaled(x, t + 1) - expected).abs().max() < 5e-5


def test_what_is_not_theirs_or_not_ours(golden: Path) -> None:
    weights = small(False)
    assert not is_state_dict({"state_dict": weights})
    with pytest.raises(DDPMError, match="label_emb: a network with classes but without a null class"):
        unet_settings(weights | {"label_emb.weight": torch.zeros(10, 128)}, size=(8, 8), heads=4)
    with pytest.raises(DDPMError, match="heads: 5 do not divide"):
        unet_settings(weights, size=(8, 8), heads=5)
    with pytest.raises(DDPMError, match="images of 7x8 do not fit"):
        unet_settings(weights, size=(7, 8), heads=4)
    with pytest.raises(DDPMError, match=re.escape("'out.2.weight' is missing")):
        unet_settings({k: v for k, v in weights.items() if k != "out.2.weight"}, size=(8, 8), heads=4)
    with pytest.raises(CheckpointError, match=re.escape("middle_block.1.qkv.bias: found none, expected (192,)")):
        read_weights({k: v for k, v in weights.items() if k != "middle_block.1.qkv.bias"}, size=(8, 8), heads=4)
    with pytest.raises(CheckpointError, match=re.escape("input_blocks.1.1.extra: found (1,), expected none")):
        read_weights(weights | {"input_blocks.1.1.extra": torch.zeros(1)}, size=(8, 8), heads=4)
