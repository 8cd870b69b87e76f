"""Writes the checkpoint that later versions must be able to load: `python -m tests.reliability.golden`.

Only where the format's version is raised; the old file then stays beside the new one, with a test of its own.
"""

from __future__ import annotations

import gzip
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ddpm import data, training_loop
from ddpm.checkpoint import load
from ddpm.config import Config
from ddpm.generate import load as load_model
from ddpm.generate import sample
from ddpm.run import train
from tests.reliability.worker import with_nan
from tests.tiny import tiny


def main() -> None:
    torch.set_num_threads(1)
    config = tiny(
        data__held_out=0.0,
        diffusion__timesteps=2,
        network__multipliers=(1,),
        network__attention=(),
        network__channels=4,
        network__norm_groups=2,
        network__classes=10,
        training__timesteps="importance",
        training__batch_size=32,
        training__steps=4,
        training__kernels="plain",
        sampling__steps=None,
    )
    training_loop._accumulate_gradients = with_nan(training_loop._accumulate_gradients, {(0, 3)})
    packed = Path(__file__).parent / "golden" / "diffusion-4.pt.gz"
    packed.parent.mkdir(exist_ok=True)
    with TemporaryDirectory() as folder:
        done = train(config, folder, device="cpu", progress=False)
        packed.write_bytes(gzip.compress(done.checkpoint.read_bytes(), 9, mtime=0))
        target = done.checkpoint
        report(config, target)
    print(f"{packed.stat().st_size:,} bytes")


def report(config: Config, target: Path) -> None:
    """What the test has to expect."""
    saved = load(target)
    state = training_loop.restore_state(saved, saved.config, device=torch.device("cpu"))
    longer = config.model_copy(update={"training": config.training.model_copy(update={"steps": 5})})
    (step,) = training_loop.training_steps(longer, state, data.load(config.data, progress=False))
    print(f"EXPECTED = ({float(step.loss):.7f}, {float(step.grad_norm):.7f})")
    print("EXPECTED_LEVELS =", tuple(sample(load_model(target, device="cpu"), 2).reshape(2, -1).mean(1).tolist()))


if __name__ == "__main__":
    main()
