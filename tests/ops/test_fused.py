"""The fused form of the operations equals the plain one, forwards and backwards, and training with it does too."""

from __future__ import annotations

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ddpm.ops import Operations, native
from ddpm.ops.native import Unavailable, library
from ddpm.ops.plain import PLAIN
from ddpm.unet import UNet
from tests.reference import close

try:
    LANES = library().ddpm_lanes()
except Unavailable as reason:
    pytest.skip(f"no compiled kernels: {reason}", allow_module_level=True)

from ddpm.ops import fused
from ddpm.ops.fused import FUSED

LAST = torch.channels_last


def error(actual: Tensor, expected: Tensor) -> float:
    """The relative error of a whole array, in the Euclidean norm."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm().clamp(min=1e-30))


def same(a: nn.Module, b: nn.Module) -> None:
    with torch.no_grad():
        for p, q in zip(a.parameters(), b.parameters(), strict=True):
            q.copy_(p)


class Case:
    """One call of norm_silu_conv with everything on, in the given precision, and the gradients of all it takes."""

    def __init__(self, size: tuple[int, int, int, int], out: int, groups: int, *, dtype: torch.dtype, **on: bool):
        b, c, h, w = size
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

        self.norm, self.conv = nn.GroupNorm(groups, c).to(dtype), nn.Conv2d(c, out, 3, padding=1).to(dtype)
        with torch.no_grad():
            for p in [*self.norm.parameters(), *self.conv.parameters()]:
                p.copy_(torch.randn(p.shape, generator=generator) / max(1, p[0].numel()) ** 0.5)
        self.x = (draw(b, c, h, w).detach() * 2 + 5).to(memory_format=LAST).requires_grad_()
        self.options: dict[str, Any] = {}
        if on.get("offset"):
            self.options["offset"] = draw(b, c)
        if on.get("modulation"):
            self.options["modulation"] = (draw(b, c), draw(b, c))
        if on.get("added"):
            self.options["added"] = draw(b, out, h, w)
        self.dout = torch.randn((b, out, h, w), generator=generator).to(dtype)

    def run(self, operations: Operations) -> list[Tensor]:
        """The result, then the gradients."""
        extra = [o for value in self.options.values() for o in (value if isinstance(value, tuple) else (value,))]
        wanted = [self.x, *self.norm.parameters(), *self.conv.parameters(), *extra]
        out = operations.norm_silu_conv(self.norm, self.conv, self.x, **self.options)
        return [out.detach(), *torch.autograd.grad(out, wanted, self.dout)]


# Sizes that tiles of 4 divide and that they do not, one pixel wide, a lone image, widths of one vector and of many.
SIZES = [((16, 32, 8, 8), 32), ((4, 64, 13, 7), 48), ((1, 16, 32, 32), 16), ((60, 16, 1, 3), 16), ((3, 16, 16, 20), 80)]


@pytest.mark.parametrize(("size", "out"), SIZES)
@pytest.mark.parametrize("on", [{}, {"offset": True, "added": True}, {"modulation": True, "added": True}])
def test_equals_the_plain_form(size: tuple[int, int, int, int], out: int, on: dict[str, bool]) -> None:
    """As near to float64 as float32 rounding allows: Winograd's sums lose about one digit more than direct ones."""
    exact = Case(size, out, 4, dtype=torch.float64, **on).run(PLAIN)
    for fast, reference in zip(Case(size, out, 4, dtype=torch.float32, **on).run(FUSED), exact, strict=True):
        assert error(fast, reference) < 5e-5


def test_norm_silu_alone_equals_the_plain_form() -> None:
    """As a network with dropout uses it."""
    case, exact = (Case((4, 32, 6, 5), 32, 4, dtype=d, modulation=True) for d in (torch.float32, torch.float64))
    results = []
    for operations, c in ((FUSED, case), (PLAIN, exact)):
        out = operations.norm_silu(c.norm, c.x, **c.options)
        wanted = [c.x, *c.norm.parameters(), *c.options["modulation"]]
        results.append([out.detach(), *torch.autograd.grad(out, wanted, c.x.detach().sin())])
    for fast, reference in zip(*results, strict=True):
        assert error(fast, reference) < 1e-5


def test_winograd_is_what_ran() -> None:
    """The comparison above is not one of the plain form with itself."""
    x, weight = torch.randn(16, 32, 8, 8).to(memory_format=LAST), torch.randn(32, 32, 3, 3)
    assert fused._winograd(x, weight)
    assert not fused._winograd(x[:1], weight)  # too few tiles to pay
    direct, ours = torch.conv2d(x, weight, padding=1), fused._forward(x, weight, None, None, None)
    assert 0 < error(ours, direct) < 1e-5


def test_means_far_from_zero_lose_nothing() -> None:
    """A variance as the difference of large squares would be rounding alone."""
    x = (torch.randn(2, 16, 8, 8) + 1e4).to(memory_format=LAST)
    norm, conv = nn.GroupNorm(4, 16), nn.Conv2d(16, 16, 3, padding=1)
    with torch.no_grad():
        fast = FUSED.norm_silu_conv(norm, conv, x)
        exact = PLAIN.norm_silu_conv(norm.double(), conv.double(), x.double())
    assert error(fast, exact) < 1e-3


def test_extreme_values_stay_finite() -> None:
    x = torch.zeros(2, 16, 8, 8).to(memory_format=LAST)
    x[0, 0, 0, 0] = 1e30
    norm, conv = nn.GroupNorm(16, 16), nn.Conv2d(16, 16, 3, padding=1)
    with torch.no_grad():
        norm.weight.fill_(1e3)
        norm.bias.fill_(-1e3)
        assert torch.isfinite(FUSED.norm_silu_conv(norm, conv, x)).all()


def test_bfloat16_rounds_no_worse_than_plain_bfloat16() -> None:
    size, out = (8, 32, 8, 8), 32
    exact = Case(size, out, 4, dtype=torch.float64, modulation=True).run(PLAIN)
    case = Case(size, out, 4, dtype=torch.float32, modulation=True)
    case.x = case.x.detach().bfloat16().requires_grad_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        case.dout = case.dout.bfloat16()
        fast, plain = case.run(FUSED), case.run(PLAIN)
    for ours, theirs, reference in zip(fast, plain, exact, strict=True):
        assert error(ours, reference) < max(1.25 * error(theirs, reference), 0.004)
    assert fast[0].dtype == torch.bfloat16


def test_bfloat16_storage_rounds_to_nearest_even() -> None:
    """Equal to torch's own rounding of the float32 result, where that is not on an edge."""
    x = torch.randn(4, 16, 8, 8).bfloat16().to(memory_format=LAST)
    ones, zeros = torch.ones(4, 16), torch.zeros(4, 16)
    narrow, _ = fused._norm_silu(x, None, ones, zeros, 4, 1e-5)
    wide, _ = fused._norm_silu(x.float(), None, ones, zeros, 4, 1e-5)
    assert torch.equal(narrow, wide.bfloat16())


def test_what_the_kernels_do_not_cover_is_left_to_torch() -> None:
    """Odd channel numbers, float64, one output channel."""
    for c, out, dtype in ((6, 16, torch.float32), (16, 16, torch.float64), (16, 1, torch.float32)):
        case = Case((4, c, 8, 8), out, 2, dtype=dtype, added=True)
        for ours, theirs in zip(case.run(FUSED), case.run(PLAIN), strict=True):
            close(ours, theirs, 1e-4 if dtype == torch.float32 else 1e-12)


@pytest.mark.parametrize("form", ["paper", "lesson"])
def test_a_whole_network_equals_its_plain_form(form: str) -> None:
    settings: dict[str, Any] = {"time": "scale_shift", "resample": "pooled"} if form == "lesson" else {}
    torch.manual_seed(0)
    net = UNet(
        in_channels=3, out_channels=3, size=(16, 16), channels=32, multipliers=(1, 2), attention=(8,), **settings
    )
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p) * 0.05)
    net.to(memory_format=LAST)
    x, t, dout = torch.randn(8, 3, 16, 16), torch.randint(1, 1001, (8,)), torch.randn(8, 3, 16, 16)
    exact = copy.deepcopy(net).double()
    fast = copy.deepcopy(net).use(FUSED)
    for model in (exact, fast):
        kind = next(model.parameters()).dtype
        out = model(x.to(kind).to(memory_format=LAST), t)
        model.result = out.detach()
        out.backward(dout.to(kind))
    assert error(fast.result, exact.result) < 1e-5
    scale = float(sum(q.grad.square().sum() for q in exact.parameters()) ** 0.5)  # some gradients are 0
    for (name, p), q in zip(fast.named_parameters(), exact.parameters(), strict=True):
        assert p.grad is not None
        assert q.grad is not None
        size = float(q.grad.norm())
        assert float((p.grad - q.grad).norm()) < 5e-5 * size + 1e-6 * scale, name


def test_the_sums_do_not_depend_on_the_number_of_threads() -> None:
    def gradients() -> list[Tensor]:
        return Case((16, 32, 16, 16), 32, 4, dtype=torch.float32, offset=True, added=True).run(FUSED)

    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = gradients()
        torch.set_num_threads(3)
        three = gradients()
    finally:
        torch.set_num_threads(before)
    # All but what torch itself adds up over the batch.
    assert all(torch.equal(a, b) for a, b in zip(one, three, strict=True))


def test_frozen_weights_are_kept_until_they_change() -> None:
    conv = nn.Conv2d(16, 16, 3, padding=1).requires_grad_(False)
    x = torch.randn(16, 16, 8, 8).to(memory_format=LAST)
    FUSED.freeze(conv)
    assert fused._kept(conv) is not None
    before = FUSED.conv3x3(conv, x)
    conv.weight.mul_(2)
    conv.bias.mul_(2)  # type: ignore[union-attr]
    assert fused._kept(conv) is None
    assert error(FUSED.conv3x3(conv, x), 2 * before) < 1e-5


@pytest.mark.slow
def test_training_follows_the_plain_curve() -> None:
    """300 steps of Adam on one task: the losses of the two forms stay together; another seed's do not."""

    def curve(operations: Operations, seed: int = 0, steps: int = 300) -> Tensor:
        torch.manual_seed(seed)
        net = UNet(in_channels=1, out_channels=1, size=(8, 8), channels=16, multipliers=(1,), blocks=1, attention=(),
                   norm_groups=4).to(memory_format=LAST).use(operations)  # fmt: skip
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
        losses = []
        for _ in range(steps):
            x0 = torch.rand(16, 1, 8, 8).round() * 2 - 1
            noise, t = torch.randn_like(x0), torch.randint(1, 1001, (16,))
            a = (1 - t / 1001).view(-1, 1, 1, 1)
            loss = (net(a.sqrt() * x0 + (1 - a).sqrt() * noise, t) - noise).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.detach())
        return torch.stack(losses)

    plain, fast = curve(PLAIN), curve(FUSED)
    assert not torch.equal(plain, fast)
    assert float((fast - plain).abs().max() / plain.mean()) < 0.02
    assert float((curve(PLAIN, seed=1, steps=50) - plain[:50]).abs().max() / plain.mean()) > 0.1


def test_without_a_compiler_the_plain_form_is_chosen_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    from ddpm.errors import UsageError
    from ddpm.ops.select import choose_kernels

    cpu = torch.device("cpu")
    assert choose_kernels("auto", cpu)[0].name == "fused"
    assert choose_kernels("plain", cpu)[0].name == "plain"
    monkeypatch.setenv("DDPM_KERNELS", "plain")
    assert choose_kernels("auto", cpu)[0].name == "plain"
    monkeypatch.setenv("DDPM_KERNELS", "quick")
    with pytest.raises(UsageError, match="DDPM_KERNELS: found 'quick', expected auto, plain or fused"):
        choose_kernels("auto", cpu)
    monkeypatch.delenv("DDPM_KERNELS")
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.delenv("CXX", raising=False)
    native._library.cache_clear()
    try:
        operations, words = choose_kernels("auto", cpu)
        assert operations.name == "plain"
        assert "no C++ compiler" in words
        with pytest.raises(UsageError, match=r"no C\+\+ compiler .* Use training.kernels: plain"):
            choose_kernels("fused", cpu)
    finally:
        native._library.cache_clear()


def test_a_compiler_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    broken = tmp_path / "broken-c++"
    broken.write_text('#!/bin/sh\n[ "$1" = --version ] && exit 0\necho "no such header" >&2\nexit 1\n')
    broken.chmod(0o755)
    monkeypatch.setenv("CXX", str(broken))
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "cache"))
    native._library.cache_clear()
    try:
        with pytest.raises(Unavailable, match=r"broken-c\+\+ could not build them: no such header"):
            library()
        assert not list((tmp_path / "cache").iterdir()), "nothing half-made stays behind"
    finally:
        native._library.cache_clear()


def test_every_size_of_the_matrix_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers of tiles that leave every possible rest after blocks of rows."""
    monkeypatch.setattr(fused, "FEWEST_TILES", 1)
    weight = torch.randn(LANES, LANES, 3, 3)
    for batch, side in itertools.product(range(1, 16), (4, 5)):
        x = torch.randn(batch, LANES, side, side).to(memory_format=LAST)
        assert error(fused._forward(x, weight, None, None, None), torch.conv2d(x, weight, padding=1)) < 1e-5
