"""The smallest configuration that exercises everything: 8x8 digits, 2,000 parameters' worth of network."""

from __future__ import annotations

from ddpm.config import Config, parse_config

TINY = {
    "data": {"source": "digits", "image_size": 8, "channels": 1, "held_out": 0.1},
    "diffusion": {"timesteps": 20},
    "network": {
        "channels": 8,
        "multipliers": (1, 2),
        "blocks": 1,
        "attention": (4,),
        "dropout": 0.1,
        "norm_groups": 4,
    },
    "training": {
        "steps": 6,
        "batch_size": 8,
        "learning_rate": 1e-3,
        "warmup_steps": 2,
        "ema_decay": 0.9,
        "log_every": 2,
        "save_every": 3,
        "preview_samples": 4,
        "preview_measured": 8,
        "preview_steps": 3,
        "precision": "float32",
    },
    "sampling": {"steps": 5, "batch_size": 4},
}


def tiny(**changes: object) -> Config:
    """The tiny configuration with some settings changed: tiny(training__steps=9)."""
    values = {section: dict(settings) for section, settings in TINY.items()}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section][name] = value
    return parse_config(values, source="tiny")
