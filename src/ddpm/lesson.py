"""The lesson's two commands, with the lesson's options: `training/.../train.py`, `sampling/.../sample.py`.

No option has a default of its own: what is not given comes from the configuration.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from ddpm.cli import run_command
from ddpm.commands.arguments import natural, positive
from ddpm.commands.sample import sample_command
from ddpm.commands.train import train_command
from ddpm.errors import ConfigError

_PRECISIONS = {"no": "float32", "fp16": "float16", "bf16": "bfloat16"}


def train_main(arguments: Sequence[str] | None = None) -> int:
    """`python training/image/mnist/train.py --config_path CONFIG ...`; returns the exit code."""
    parser = argparse.ArgumentParser(description="Train a DDPM from a configuration.")
    parser.add_argument("--config_path", required=True)
    parser.add_argument("--num_training_steps", type=positive, help="default: the configuration's training.steps")
    parser.add_argument("--batch_size", type=positive, help="default: training.batch_size")
    parser.add_argument("--save_and_sample_every_n", type=positive, help="default: training.save_every")
    parser.add_argument("--resume_from", type=Path, help="checkpoint to go on from (default: the run's latest)")
    parser.add_argument("--mixed_precision", choices=[*_PRECISIONS], help="default: training.precision")
    parser.set_defaults(command=_train)
    return run_command(parser, arguments)


def sample_main(arguments: Sequence[str] | None = None) -> int:
    """`python sampling/image/mnist/sample.py --config_path CONFIG --checkpoint FILE ...`; returns the exit code."""
    parser = argparse.ArgumentParser(description="Draw images from a checkpoint.")
    parser.add_argument("--config_path", required=True)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--num_samples", type=positive, required=True)
    parser.add_argument("--sampling_steps", type=positive, help="network calls an image (default: all timesteps)")
    parser.add_argument("--seed", type=natural, help="default: the configuration's sampling.seed")
    parser.set_defaults(command=_sample)
    return run_command(parser, arguments)


def _train(options: argparse.Namespace) -> None:
    from ddpm.config import load_config
    from ddpm.run import folder_of

    settings = {
        "training.steps": options.num_training_steps,
        "training.batch_size": options.batch_size,
        "training.save_every": options.save_and_sample_every_n,
        "training.precision": _PRECISIONS.get(options.mixed_precision),
    }
    config = load_config(options.config_path, [f"{k}={v}" for k, v in settings.items() if v is not None])
    train_command(config, folder_of(options.config_path), resume_from=options.resume_from)


def _sample(options: argparse.Namespace) -> None:
    from ddpm import checkpoint
    from ddpm.config import differences, flatten, load_config
    from ddpm.run import folder_of

    config, saved = load_config(options.config_path), checkpoint.load(options.checkpoint)
    keys = [k for k in flatten(config) if k.startswith(("data.", "diffusion.", "network.")) and k != "data.root"]
    changed = differences(saved.config, config, keys=keys)
    if changed:
        lines = "\n".join(f"  {line}" for line in changed)
        raise ConfigError(
            f"{options.checkpoint} was not trained with {options.config_path} (checkpoint -> file):\n{lines}\n"
            "Give the configuration it was trained with, or use: ddpm sample CHECKPOINT"
        )
    run = folder_of(options.config_path)
    sample_command(
        options.checkpoint,
        count=options.num_samples,
        default_out=run.parent / "sample" / run.name,
        steps=options.sampling_steps,
        seed=options.seed,
    )
