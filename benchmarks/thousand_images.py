"""1,000 images: a solver in few steps here, and the 1,000 steps of diffusers' DDPMPipeline with the same weights.

    python -m benchmarks.thousand_images CHECKPOINT --sampler unipc --steps 15

diffusers' UNet2DModel cannot express every network of ours (no patches), so that its pipeline is given our network in
its plain form, which computes at diffusers' speed (results.md). Twenty of the pipeline's steps are timed and scaled
to all of them; our images are drawn, all of them. Both take the batches that ours takes by default; the pipeline's
own default, one image at a time, is slower. What the two sets are worth says `ddpm benchmark samplers`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.candidates import DEVICE
from benchmarks.timing import take_turns
from ddpm.config import Config
from ddpm.errors import DDPMError
from ddpm.generate import load, network_calls, sample, sampling_settings, stored
from ddpm.interop.schedulers import prediction_type
from ddpm.training_loop import build_diffusion, trained_network

IMAGES = 1000
TIMED = 20


class AsTheirs(nn.Module):
    """Our plain network in the shape that diffusers' pipeline calls: t counted from 0, an answer in a box."""

    def __init__(self, config: Config, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.inner = trained_network(config, weights, "the model")
        self.config = SimpleNamespace(sample_size=config.data.size, in_channels=config.data.channels)
        self.dtype = torch.float32

    @property
    def device(self) -> torch.device:
        return DEVICE

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return SimpleNamespace(sample=self.inner(x, t.reshape(-1).expand(len(x)).to(x.device) + 1))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.thousand_images", description=__doc__)
    parser.add_argument("checkpoint")
    for name in ("sampler", "spacing"):
        parser.add_argument(f"--{name}")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    try:
        model = load(options.checkpoint)
        changes = {"sampler": options.sampler, "spacing": options.spacing, "steps": options.steps}
        settings = sampling_settings(model, **changes)
    except DDPMError as error:
        parser.exit(1, f"{error}\n")
    batch = settings.batch_size
    theirs = pipeline(Path(options.checkpoint))
    timings = take_turns(
        {
            "ours": lambda: sample(model, IMAGES, **changes),
            "diffusers": lambda: theirs(batch_size=batch, num_inference_steps=TIMED, output_type="np"),
        },
        options.rounds,
    )
    ours = timings["ours"].median
    T = model.diffusion.schedule.T
    scale = T / TIMED * IMAGES / batch
    ratios = sorted(b * scale / a for a, b in zip(timings["ours"].seconds, timings["diffusers"].seconds, strict=True))
    print(f"{settings.sampler}, {network_calls(model, settings)} network calls, {IMAGES:,} images: {ours:.1f} s")
    print(
        f"diffusers' DDPMPipeline, {T:,} steps: {timings['diffusers'].median * scale:,.0f} s "
        f"({TIMED} steps of {batch} images timed and scaled)"
    )
    print(f"{ratios[len(ratios) // 2]:.0f}x ({ratios[0]:.0f} to {ratios[-1]:.0f})  {time.strftime('%Y-%m-%d')}")


def pipeline(path: Path) -> Any:
    """diffusers' DDPMPipeline on the EMA weights and betas of a checkpoint or a file of weights, in float32."""
    import diffusers

    saved, weights = stored(path, "ema")
    alpha_bar = build_diffusion(saved.config).schedule.alpha_bar
    betas = (1 - alpha_bar[1:] / alpha_bar[:-1]).tolist()
    predicts = prediction_type(saved.config.diffusion.prediction)
    scheduler = diffusers.DDPMScheduler(trained_betas=betas, prediction_type=predicts)
    network = AsTheirs(saved.config, weights).to(DEVICE).eval().requires_grad_(False)
    made = diffusers.DDPMPipeline(network, scheduler)
    made.set_progress_bar_config(disable=True)
    return made


if __name__ == "__main__":
    main()
