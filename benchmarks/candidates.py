"""What is compared: one training step or one network call, of ours and of peers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from ddpm.config import Config, parse_config
from ddpm.device import autocast, choose_precision
from ddpm.speed import network_call, training_step

Work = Literal["train", "call"]
Call = Callable[[], object]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class Network:
    """A network in our settings and, where it has one, in diffusers'."""

    name: str
    ours: dict[str, Any]
    diffusers: dict[str, Any] | None
    image_size: int = 32

    def config(self, batch: int, **training: Any) -> Config:
        return parse_config(
            {
                "data": {"source": "mnist", "image_size": self.image_size, "channels": 1, "resize": "pad"},
                "network": self.ours,
                "training": {"steps": 10**9, "batch_size": batch, "learning_rate": 1e-4, **training},
            },
            source=self.name,
        )


PAPER = Network(
    "35.7 M (the paper's)",
    {},
    {
        "block_out_channels": (128, 256, 256, 256),
        "layers_per_block": 2,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        "up_block_types": ("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        "downsample_padding": 0,
        "attention_head_dim": None,
        "norm_eps": 1e-6,
        "flip_sin_to_cos": False,
        "freq_shift": 1,
    },
)
SMALL = Network(
    "1.1 M",
    {"channels": 32, "multipliers": (1, 2, 2), "blocks": 1, "attention": (8,)},
    {
        "block_out_channels": (32, 64, 64),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
    },
)
LESSON = Network(
    "35.2 M (the lesson's)",
    {
        "channels": 128,
        "multipliers": (1, 2, 2, 2),
        "time": "scale_shift",
        "resample": "pooled",
        "heads": 4,
        "outer_bias": False,
        "norm_eps": 1e-5,
    },
    None,
)


def ours(network: Network, work: Work, batch: int, **training: Any) -> Call:
    """One step of our training loop (data, noise, EMA and all), or one call of the network as `ddpm sample` has it."""
    config = network.config(batch, **training)
    if work == "train":
        step = training_step(config, DEVICE)
        return lambda: float(step().loss)  # type: ignore[attr-defined]
    return network_call(config, batch, DEVICE)


def diffusers(network: Network, work: Work, batch: int, *, best: bool, compiled: bool = False) -> Call:
    """diffusers' network in the training loop of its documentation; `best`: channels last, the faster precision."""
    import diffusers as peer

    assert network.diffusers is not None
    torch.manual_seed(0)
    model = peer.UNet2DModel(sample_size=network.image_size, in_channels=1, out_channels=1, **network.diffusers)
    model.to(DEVICE)
    x, context = _settings(model, _noise(batch, network.image_size), best=best)
    if compiled:
        model.compile()
    if work == "call":
        model.eval()
        t = torch.full((batch,), 500)

        @torch.no_grad()
        def call() -> float:
            with context():
                return float(model(x, t.to(DEVICE)).sample.flatten()[0])

        return call
    scheduler = peer.DDPMScheduler()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=best)
    rate = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    x0 = x.clamp(-1, 1)

    def step() -> float:
        noise = torch.randn_like(x0)
        t = torch.randint(0, 1000, (batch,), device=DEVICE)
        with context():
            loss = F.mse_loss(model(scheduler.add_noise(x0, noise, t), t).sample, noise)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        rate.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def denoising_diffusion_pytorch(work: Work, batch: int, *, best: bool) -> tuple[Call, float]:
    """The network and the training step of its documentation, and the network's GFLOP an image.

    Its network is of its own form, of the size of the paper's; `best`: channels last, the faster precision.
    """
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    torch.manual_seed(0)
    model = Unet(dim=64, dim_mults=(1, 2, 4, 8), channels=1, flash_attn=True)
    diffusion = GaussianDiffusion(model, image_size=32, timesteps=1000).to(DEVICE)
    t = torch.full((batch,), 500, device=DEVICE)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(_noise(1, 32), t[:1])
    x, context = _settings(diffusion, _noise(batch, 32), best=best)
    optimizer = torch.optim.Adam(model.parameters(), lr=8e-5, betas=(0.9, 0.99))
    images = x.clamp(-1, 1) / 2 + 0.5

    @torch.no_grad()
    def call() -> float:
        with context():
            return float(model(x, t).flatten()[0])

    def step() -> float:
        with context():
            loss = diffusion(images)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    if work == "call":
        model.eval()
    return step if work == "train" else call, counter.get_total_flops() / 1e9


def _settings(
    model: torch.nn.Module, x: torch.Tensor, *, best: bool
) -> tuple[torch.Tensor, Callable[[], contextlib.AbstractContextManager[object]]]:
    """The images, and what the network computes within; `best`: channels last, the faster precision."""
    if not best:
        return x, contextlib.nullcontext
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    precision = choose_precision("auto", DEVICE)
    return x.to(memory_format=torch.channels_last), lambda: autocast(precision, DEVICE)


def _noise(batch: int, size: int) -> torch.Tensor:
    return torch.randn(batch, 1, size, size, generator=torch.Generator().manual_seed(0)).to(DEVICE)
