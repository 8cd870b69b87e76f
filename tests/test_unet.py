"""The network's own properties. Agreement with peers is tested in tests/interop/."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddpm.config import NetworkSection
from ddpm.unet import Attention, Downsample, ResBlock, UNet, timestep_embedding
from tests.reference import arrays, close

LESSON: dict[str, Any] = {"time": "scale_shift", "resample": "pooled", "outer_bias": False, "norm_eps": 1e-5}
SMALL: dict[str, Any] = {"channels": 16, "multipliers": (1, 2), "blocks": 1, "attention": (8,), "norm_groups": 8}


def small(**settings: Any) -> UNet:
    torch.manual_seed(0)
    return UNet(**({"in_channels": 1, "out_channels": 1, "size": (16, 16)} | SMALL | settings))


def lively(net: UNet) -> UNet:
    """The network with no layer left at zero, so that every part of it shows."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(1 + noise if "norm" in name and name.endswith("weight") else noise)
    return net


def batch(channels: int = 1, height: int = 16, width: int = 16) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(3, channels, height, width, generator=generator), torch.tensor([1, 437, 1000])


@pytest.mark.parametrize(
    ("settings", "channels", "count"),
    [({}, 3, 35_746_307), (LESSON | {"heads": 2}, 1, 35_204_480), (LESSON | {"heads": 4}, 1, 35_204_480)],
    ids=["paper", "lesson, 2 heads", "lesson, 4 heads"],
)
def test_number_of_parameters(settings: dict[str, Any], channels: int, count: int) -> None:
    with torch.device("meta"):
        net = UNet(in_channels=channels, out_channels=channels, size=(32, 32), **settings)
    assert sum(p.numel() for p in net.parameters()) == count
    assert not list(net.buffers())


def test_arguments_are_the_settings_of_the_configuration() -> None:
    """The same names with the same defaults, so that NetworkSection can be unpacked."""
    arguments = dict(inspect.signature(UNet).parameters)
    for name in ("in_channels", "out_channels", "size"):
        assert arguments.pop(name).default is inspect.Parameter.empty
    assert {name: a.default for name, a in arguments.items()} == NetworkSection().model_dump()
    assert all(a.kind is inspect.Parameter.KEYWORD_ONLY for a in arguments.values())


@pytest.mark.parametrize(
    ("file", "prefix", "convention"),
    [
        ("diffusers_tiny_io.npz", "tiny_1ch.", "paper"),
        ("diffusers_tiny_io.npz", "tiny_3ch.", "improved"),
        ("xdiffusion_tiny/io.npz", "", "paper"),
    ],
)
def test_timestep_embedding_equals_peers(golden: Path, file: str, prefix: str, convention: Any) -> None:
    tables = arrays(golden / "unet" / file)
    theirs = tables[f"{prefix}time_proj"]
    position = torch.from_numpy(tables[f"{prefix}t"])
    # float32: an angle of up to 999 is rounded to 3e-5 on either side.
    close(timestep_embedding(position, theirs.shape[1], convention), theirs, 2e-5)
    other = "improved" if convention == "paper" else "paper"
    assert (timestep_embedding(position, theirs.shape[1], other) - torch.from_numpy(theirs)).abs().max() > 0.1


def test_timestep_embedding_by_hand() -> None:
    found = timestep_embedding(torch.tensor([0.5], dtype=torch.float64), 6, "paper")
    angle = torch.tensor([0.5, 0.5 / 100, 0.5 / 10_000], dtype=torch.float64)
    close(found, torch.cat([angle.sin(), angle.cos()])[None], 1e-15)


@pytest.mark.parametrize("form", [{}, LESSON | {"heads": 2}], ids=["paper", "lesson"])
def test_starts_at_zero_and_leaves_it_in_one_step(form: dict[str, Any]) -> None:
    net = small(**form)
    x_t, t = batch()
    assert net(x_t, t).abs().max() == 0
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3)
    (net(x_t, t) - x_t).square().mean().backward()
    optimizer.step()
    assert net(x_t, t).abs().max() > 1e-4


def test_initialisation_is_the_authors() -> None:
    """uniform(-r, r), r = sqrt(6 / (fan_in + fan_out)), of each layer alone; every branch ends in zeros."""
    net = small()
    zero = {"conv_out"} | {n + ".conv2" for n, m in net.named_modules() if isinstance(m, ResBlock)}
    zero |= {n + ".out" for n, m in net.named_modules() if isinstance(m, Attention)}
    for name, module in net.named_modules():
        if isinstance(module, nn.GroupNorm):
            assert (module.weight == 1).all()
            assert (module.bias == 0).all()
        elif isinstance(module, nn.Conv2d | nn.Linear):
            assert module.bias is not None
            assert (module.bias == 0).all()
            for weight in module.weight.chunk(3) if name.endswith("qkv") else [module.weight]:
                fans = (weight.shape[0] + weight.shape[1]) * weight[0, 0].numel()
                bound = 0.0 if name in zero else (6 / fans) ** 0.5
                assert weight.abs().max() <= bound, name
                assert weight.abs().max() >= 0.9 * bound, name


@pytest.mark.parametrize("form", [{}, LESSON | {"heads": 2}, {"patch": 2}], ids=["paper", "lesson", "patch"])
def test_gradient_reaches_every_parameter(form: dict[str, Any]) -> None:
    net = lively(small(**form))
    net(*batch()).square().mean().backward()
    dead = [name for name, p in net.named_parameters() if p.grad is None or p.grad.abs().max() < 1e-9]
    assert not dead


def test_gradient_reaches_the_images() -> None:
    x_t, t = batch()
    x_t.requires_grad_()
    lively(small())(x_t, t).sum().backward()
    assert x_t.grad is not None
    assert (x_t.grad != 0).all()


@pytest.mark.parametrize(
    ("settings", "height", "width"),
    [
        ({}, 16, 24),
        ({"size": (24, 16)}, 24, 16),
        ({"size": (16, 16)}, 32, 8),
        ({"patch": 2}, 16, 16),
        ({"patch": 4, "size": (32, 48), "attention": (4,)}, 32, 48),
        (LESSON | {"patch": 2}, 16, 32),
        ({"multipliers": (1,), "attention": ()}, 7, 5),
        ({"in_channels": 3, "out_channels": 6}, 16, 16),
    ],
)
def test_shapes(settings: dict[str, Any], height: int, width: int) -> None:
    into, out = settings.get("in_channels", 1), settings.get("out_channels", 1)
    net = lively(small(**({"size": (height, width)} | settings)))
    x_t, t = batch(into, height, width)
    assert net(x_t, t).shape == (3, out, height, width)


def test_attention_is_where_the_shorter_side_of_the_map_has_the_size() -> None:
    def attending(**settings: Any) -> set[str]:
        net = small(multipliers=(1, 1, 1), **settings)
        return {".".join(n.split(".")[:2]) for n, m in net.named_modules() if isinstance(m, Attention)}

    middle = {"middle.0"}
    assert attending(size=(32, 32), attention=(8,)) == middle | {"down.2", "up.0"}
    assert attending(size=(64, 16), attention=(8,)) == middle | {"down.1", "up.1"}
    assert attending(size=(64, 16), attention=(16,)) == middle | {"down.0", "up.2"}
    assert attending(size=(32, 32), attention=(8,), patch=2) == middle | {"down.1", "up.1"}
    assert attending(size=(32, 32), attention=(16, 8)) == middle | {"down.1", "up.1", "down.2", "up.0"}
    assert attending(size=(32, 32), attention=()) == middle


@pytest.mark.parametrize("heads", [1, 2, 4])
def test_attention_is_softmax_of_products(heads: int) -> None:
    """Head by head, pixel by pixel, in float64."""
    torch.manual_seed(0)
    layer = Attention(8, heads=heads, norm=lambda channels: nn.GroupNorm(2, channels)).double()
    x = torch.randn(2, 8, 3, 5, dtype=torch.float64)
    h = layer.norm(x)
    weight, bias = layer.qkv.weight, layer.qkv.bias
    q, k, v = (
        torch.einsum("bchw,dc->bdhw", h, weight[8 * i : 8 * i + 8]) + bias[8 * i : 8 * i + 8, None, None]
        for i in range(3)
    )
    mixed = torch.empty_like(x)
    d = 8 // heads
    for head in range(heads):
        part = slice(head * d, head * d + d)
        for row in range(3):
            for column in range(5):
                score = torch.einsum("bc,bchw->bhw", q[:, part, row, column], k[:, part]) / d**0.5
                share = score.flatten(1).softmax(1).view_as(score)
                mixed[:, part, row, column] = torch.einsum("bhw,bchw->bc", share, v[:, part])
    out = torch.einsum("bchw,dc->bdhw", mixed, layer.out.weight) + layer.out.bias[:, None, None]
    close(layer(x).detach(), (x + out).detach(), 1e-12)


def test_same_padding_is_right_and_below() -> None:
    layer = Downsample(1, "same")
    nn.init.ones_(layer.conv.weight)
    nn.init.zeros_(layer.conv.bias)  # type: ignore[arg-type]
    # Each output sums the 3x3 square whose top left corner it is; the last ones lack a column, a row.
    assert layer(torch.ones(1, 1, 4, 4)).tolist() == [[[[9, 6], [6, 4]]]]
    symmetric = Downsample(1, "symmetric")
    symmetric.load_state_dict(layer.state_dict())
    assert symmetric(torch.ones(1, 1, 4, 4)).tolist() == [[[[4, 6], [6, 9]]]]


def test_the_clock_starts_at_one() -> None:
    """t = 1 is embedded as 0: sines vanish, cosines are one."""
    net = small()
    seen: list[Tensor] = []
    net.time_mlp.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    net(batch()[0], torch.ones(3, dtype=torch.int64))
    assert (seen[0][:, :8] == 0).all()
    assert (seen[0][:, 8:] == 1).all()


def test_time_may_be_integer_or_fractional() -> None:
    net = lively(small()).eval()
    x_t, t = batch()
    with torch.no_grad():
        whole = net(x_t, t)
        assert torch.equal(net(x_t, t.float()), whole)
        between = (net(x_t, t + 0.5) - whole).abs().amax((1, 2, 3))
        beyond = (net(x_t, t + 1.0) - whole).abs().amax((1, 2, 3))
    assert (between > 1e-5).all()
    assert (beyond > between).all()


def test_images_of_a_batch_do_not_mix() -> None:
    net = lively(small(heads=2)).eval()
    x_t, t = batch()
    with torch.no_grad():
        alone = torch.cat([net(x_t[i : i + 1], t[i : i + 1]) for i in range(3)])
        close(alone, net(x_t, t), 1e-5)


@pytest.mark.parametrize("form", [{}, LESSON, {"patch": 2, "attention": (4,)}], ids=["paper", "lesson", "patch"])
def test_channels_last_all_the_way(form: dict[str, Any]) -> None:
    """The same numbers, and no layer between that falls back to the other memory format."""
    net = lively(small(**form)).eval()
    x_t, t = batch()
    with torch.no_grad():
        expected = net(x_t, t)
        net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        wrong = []
        for name, module in net.named_modules():

            def look(_: nn.Module, __: Any, out: Any, name: str = name) -> None:
                if isinstance(out, Tensor) and out.ndim == 4 and out.shape[1] > 1 and min(out.shape[2:]) > 1:
                    wrong.extend([] if out.is_contiguous(memory_format=torch.channels_last) else [name])

            module.register_forward_hook(look)
        close(net(x_t.to(memory_format=torch.channels_last), t), expected, 1e-5)
    assert not wrong


def test_dropout_is_for_training_alone() -> None:
    x_t, t = batch()
    net = lively(small(dropout=0.3))
    with torch.no_grad():
        torch.manual_seed(3)
        first = net(x_t, t)
        assert not torch.equal(net(x_t, t), first)
        torch.manual_seed(3)
        assert torch.equal(net(x_t, t), first)
        net.eval()
        assert torch.equal(net(x_t, t), net(x_t, t))
        assert torch.equal(net(x_t, t), lively(small(dropout=0.0))(x_t, t))


def test_without_dropout_no_randomness_is_used() -> None:
    net = small()
    before = torch.get_rng_state()
    net(*batch())
    assert torch.equal(torch.get_rng_state(), before)


def test_compiles_into_one_graph() -> None:
    net = lively(small()).eval()
    x_t, t = batch()
    with torch.no_grad():
        close(torch.compile(net, backend="eager", fullgraph=True)(x_t, t), net(x_t, t), 1e-6)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"size": (15, 16)}, "15x16 do not fit: both sides must be multiples of 2"),
        ({"size": (16, 18), "patch": 2}, "16x18 do not fit: both sides must be multiples of 4"),
        ({"attention": (5,)}, r"attention at \[5\].*\[16, 8\]"),
        ({"attention": (16,), "patch": 2}, r"attention at \[16\].*\[8, 4\]"),
        ({"heads": 3}, "cannot be split into 3 heads"),
        ({"norm_groups": 5}, "divisible by num_groups"),
        ({"time": "sum"}, "time: 'sum' is none of add, scale_shift"),
        ({"resample": "pool"}, "resample: 'pool'"),
        ({"padding": "valid"}, "padding: 'valid'"),
        ({"embedding": "sinusoidal"}, "embedding: 'sinusoidal'"),
        ({"blocks": 0}, "at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        small(**settings)


def test_inputs_that_do_not_fit_are_refused() -> None:
    net = small()
    x_t, t = batch()
    with pytest.raises(ValueError, match="multiples of 2"):
        net(x_t[..., :15], t)
    with pytest.raises(ValueError, match=r"t has the shape \(1,\): one time for each of 3"):
        net(x_t, t[:1])
    with pytest.raises(ValueError, match="shape"):
        net(x_t, t[0])
    with pytest.raises(ValueError, match="even"):
        timestep_embedding(t, 7)
    with pytest.raises(ValueError, match="embedding: 'other'"):
        timestep_embedding(t, 8, "other")  # type: ignore[arg-type]
