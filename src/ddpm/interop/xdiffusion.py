"""xdiffusion's U-Net (swookey-thinky/xdiffusion, the lesson): its configuration and checkpoints as ours.

    ours                                      xdiffusion (under _score_network)
    time_mlp.0, time_mlp.2                    _projections.timestep._projection.1, .3
    conv_in, norm_out, conv_out               _initial_convolution, final_projection.0, final_projection.2
    down.L.blocks.N.res, .attention           downs.K.0, downs.K.1     K = L (blocks + 1) + N; the pooling is counted
    middle.0.res, .attention, middle.1.res    middle.0, middle.1, middle.2
    up.L.blocks.N.res, .attention             ups.K.0, ups.K.1         K = L (blocks + 1) + N
    in res:  norm1, conv1, time               in_layers.0, in_layers.2, emb_layers.1
             norm2, conv2, shortcut           out_layers.0, out_layers.3, skip_connection
    in attention: norm, qkv, out              _norm, _qkv, _proj_out

Found from a small checkpoint and its recorded outputs, which ours reproduces (see the tests):

- `attention_channels` is the width of a head and sets the number of heads; `attention_heads` has no effect.
- _qkv holds, head by head, that head's q, k and v; ours holds all q, all k, all v. Both layers are
  convolutions of width 1 there and linear here.
- The norms' epsilon is torch's 1e-5; the first and the last convolution have no bias.
- The timestep's layers are in a checkpoint twice, and so are the schedule's tables, which ours computes.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ddpm.checkpoint import check_weights
from ddpm.errors import CheckpointError
from ddpm.interop.foreign import Foreign, load_tensors
from ddpm.interop.strict import (
    REQUIRED,
    Field,
    accepted,
    anything,
    count,
    counts,
    heads_of,
    number,
    one_of,
    read,
    refuse,
    shapes,
)
from ddpm.schedule import make_schedule

_SOURCE = "xdiffusion's configuration"

_section = Field(REQUIRED, lambda value: isinstance(value, Mapping), "a section")

_UNET = {
    "input_channels": count(),
    "output_channels": count(),
    "input_spatial_size": count(),
    "num_features": count(),
    "channel_multipliers": counts(),
    "num_resnet_blocks": count(),
    "use_scale_shift_norm": one_of(True),
    "resamp_with_conv": one_of(False),
    "resblock_updown": one_of(False),
    "resnet_block_type": one_of("biggan"),
    "dropout": number(below=1),
    "is_learned_sigma": one_of(False),
    "is_class_conditional": one_of(False),
    "num_classes": anything(None),  # of class-conditional networks alone
    "attention": _section,
    "conditioning": _section,
}
_ATTENTION = {
    "attention_resolutions": Field(REQUIRED, lambda v: v == [] or counts().accepts(v), "a list"),
    "attention_heads": anything(),
    "attention_channels": count(),
    "is_causal": one_of(False),
}
_CONDITIONING = {
    "signals": one_of(["timestep"]),
    "projections": _section,
    "context_transformer_head": one_of(
        [
            {
                "target": "xdiffusion.layers.embedding.RunProjection",
                "params": {
                    "input_context_key": "timestep",
                    "output_context_key": "timestep_embedding",
                    "projection_key": "timestep",
                },
            }
        ]
    ),
    "context_transformer_layer": _section,  # has no weights in an unconditional network
}


_KEYS = {"step", "model_state_dict", "num_optimizers", "optimizer_state_dicts", "loss", "config"}


def is_checkpoint(content: Any) -> bool:
    """Whether a file's content has the keys of its checkpoints."""
    return isinstance(content, dict) and content.keys() == _KEYS


def load(path: Path) -> Foreign:
    """Read a checkpoint, `diffusion-<step>.pt`; its optimiser's state stays behind.

    Raises CheckpointError naming the file if it cannot be read, and DDPMError if our network cannot express it.
    """
    content = load_tensors(path, "a checkpoint")
    if not is_checkpoint(content):
        found = sorted(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{path}: is not a checkpoint of xdiffusion: found {found}, expected {sorted(_KEYS)}")
    return read_checkpoint(content)


def read_checkpoint(content: Mapping[str, Any]) -> Foreign:
    """What a checkpoint's content says. Raises DDPMError and CheckpointError as `load` does."""
    settings = unet_settings(content["config"])
    process = diffusion_settings(content["config"])
    weights = content["model_state_dict"]
    _check_schedule(weights, process)
    return Foreign(
        "xdiffusion",
        settings,
        unet_weights_from(weights, settings),
        process,
        {"sampler": "ancestral", "clip": True},
        step=content["step"],
    )


_PROCESS = {
    "parameterization": one_of("epsilon", "v"),
    "sampling": Field(REQUIRED, lambda value: isinstance(value, Mapping), "a section"),
    "noise_scheduler": Field(REQUIRED, lambda value: isinstance(value, Mapping), "a section"),
    "context_preprocessing": one_of([{"target": "xdiffusion.context.IgnoreContextAdapter", "params": {}}]),
    "input_preprocessing": _section,
    "classifier_free_guidance": _section,
    "score_network": _section,
}
_SAMPLING = {
    "output_channels": count(),
    "output_spatial_size": count(),
    "target": one_of("xdiffusion.samplers.ancestral.AncestralSampler"),
    "params": one_of({}),
}
_NOISE = {
    "num_scales": count(),
    "schedule_type": one_of("linear", "quadratic", "cosine"),
    "loss_type": anything(),  # of training alone
    "importance_sampler": anything(),  # likewise
}
_GUIDANCE = {
    "classifier_free_guidance": one_of(0),
    "unconditional_guidance_probability": anything(),  # of training alone
    "signals": one_of([]),
    "unconditional_context": anything(),
}
_SCHEDULES = {"linear": "linear", "quadratic": "quad", "cosine": "cosine"}


def diffusion_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the process that a configuration describes, as `config.DiffusionSection` has them.

    Its ancestral sampler takes the variance beta and, in the last step, the clipped estimate of x_0: our
    `fixed_large`. With fewer steps it starts pure noise at a small t; that is not followed. Raises DDPMError.
    """
    diffusion = read(_inner(config, "diffusion"), _PROCESS, _SOURCE)
    scheduler = read(
        diffusion["noise_scheduler"],
        {"target": one_of("xdiffusion.scheduler.DiscreteNoiseScheduler"), "params": _section},
        f"{_SOURCE}, noise_scheduler",
    )
    noise = read(scheduler["params"], _NOISE, f"{_SOURCE}, noise_scheduler")
    read(diffusion["sampling"], _SAMPLING, f"{_SOURCE}, sampling")
    read(diffusion["classifier_free_guidance"], _GUIDANCE, f"{_SOURCE}, classifier_free_guidance")
    return {
        "timesteps": noise["num_scales"],
        "schedule": _SCHEDULES[noise["schedule_type"]],
        "prediction": diffusion["parameterization"],
        "variance": "fixed_large",
    }


def _check_schedule(weights: Mapping[str, Tensor], process: Mapping[str, Any]) -> None:
    """Raises CheckpointError if the tables in the file are not those of the schedule that it names."""
    stored = weights.get("_noise_scheduler.alphas_cumprod")
    ours = make_schedule(process["schedule"], process["timesteps"]).alpha_bar[1:]
    if stored is None or stored.shape != ours.shape or not torch.allclose(stored.double(), ours, rtol=1e-4, atol=1e-7):
        raise CheckpointError(
            f"xdiffusion's weights: _noise_scheduler.alphas_cumprod is not that of schedule_type "
            f"{process['schedule']} with num_scales {process['timesteps']}"
        )


def unet_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `UNet` that build the network of a configuration.

    Raises DDPMError naming every field of the network that ours cannot express, and every unknown one.
    """
    diffusion = _inner(config, "diffusion")
    network = read(
        _inner(diffusion, "score_network"),
        {"target": one_of("xdiffusion.score_networks.unet.Unet"), "params": _section},
        f"{_SOURCE}, score_network",
    )
    read(
        _inner(diffusion, "input_preprocessing"),
        {"target": one_of("xdiffusion.context.IgnoreInputPreprocessor"), "params": one_of({})},
        f"{_SOURCE}, input_preprocessing",
    )
    unet = read(network["params"], _UNET, _SOURCE)
    attention = read(unet["attention"], _ATTENTION, f"{_SOURCE}, attention")
    conditioning = read(unet["conditioning"], _CONDITIONING, f"{_SOURCE}, conditioning")
    channels, multipliers = unet["num_features"], unet["channel_multipliers"]
    read(
        conditioning["projections"],
        {
            "timestep": one_of(
                {
                    "target": "xdiffusion.layers.embedding.TimestepEmbeddingProjection",
                    "params": {"num_features": channels, "time_embedding_mult": 4},
                }
            )
        },
        f"{_SOURCE}, projections",
    )
    head = attention["attention_channels"]
    other = _inner(conditioning["context_transformer_layer"], "params").get("dim_head")

    side, sizes = unet["input_spatial_size"], attention["attention_resolutions"]
    widths = [channels * m for level, m in enumerate(multipliers) if side >> level in sizes]
    heads, reasons = heads_of(head, [*widths, channels * multipliers[-1]], "attention_channels")
    if other != head:
        reasons.append(f"attention_channels: {head} is not dim_head: {other}; one of them sets the heads")
    refuse(_SOURCE, reasons)
    settings = {
        "in_channels": unet["input_channels"],
        "out_channels": unet["output_channels"],
        "size": (side, side),
        "channels": channels,
        "multipliers": tuple(multipliers),
        "blocks": unet["num_resnet_blocks"],
        "attention": tuple(sizes),
        "heads": heads,
        "dropout": float(unet["dropout"]),
        "time": "scale_shift",
        "resample": "pooled",
        "padding": "same",
        "embedding": "paper",
        "patch": 1,
        "norm_groups": 32,
        "norm_eps": 1e-5,
        "outer_bias": False,
        "time_scale": 1.0,
        "classes": None,
    }
    return accepted(settings, _SOURCE)


def _inner(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    section = config.get(name)
    if not isinstance(section, Mapping):
        refuse(_SOURCE, [f"{name}: found {section!r}, supported: a section"])
    return section  # type: ignore[return-value]


_NETWORK = "_score_network."
_TIMESTEP = "_projections.timestep._projection."
_TWIN = "_context_transformers.0._projections.timestep._projection."
_TABLES = {
    f"_noise_scheduler.{table}"
    for table in (
        "betas",
        "alphas_cumprod",
        "alphas_cumprod_prev",
        "sqrt_alphas_cumprod",
        "sqrt_one_minus_alphas_cumprod",
        "log_one_minus_alphas_cumprod",
        "sqrt_recip_alphas_cumprod",
        "sqrt_recipm1_alphas_cumprod",
        "posterior_variance",
        "posterior_log_variance_clipped",
        "posterior_mean_coef1",
        "posterior_mean_coef2",
    )
}


def unet_weights_from(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """A diffusion model's state_dict as that of UNet(**settings).

    Raises CheckpointError naming keys that are missing, unknown, of another shape, or differ from their twin.
    """
    own = {name.removeprefix(_NETWORK): value for name, value in weights.items() if name not in _TABLES}
    for name in [name for name in own if name.startswith(_TWIN)]:
        twin = own.pop(name)
        once = own.get(_TIMESTEP + name.removeprefix(_TWIN))
        if once is None or not torch.equal(once, twin):
            raise CheckpointError(f"xdiffusion's weights: {name} differs from the same layer under {_TIMESTEP}")
    ours = shapes(settings)
    names = {name: _theirs(name, settings["blocks"]) for name in ours}
    expected = {
        names[name]: (*shape, 1) if "attention" in name and len(shape) == 2 else shape for name, shape in ours.items()
    }
    check_weights(own, expected, "xdiffusion's weights")
    return {
        name: (by_kind(own[names[name]], settings["heads"]) if ".qkv." in name else own[names[name]]).reshape(shape)
        for name, shape in ours.items()
    }


def by_kind(qkv: Tensor, heads: int) -> Tensor:
    """Rows ordered (head, q k v, channel), reordered to (q k v, head, channel)."""
    return qkv.reshape(heads, 3, -1, *qkv.shape[1:]).transpose(0, 1).flatten(0, 2)


_NAMES = {
    "time_mlp.0": _TIMESTEP + "1",
    "time_mlp.2": _TIMESTEP + "3",
    "conv_in": "_initial_convolution",
    "norm_out": "final_projection.0",
    "conv_out": "final_projection.2",
    "middle.0.res": "middle.0",
    "middle.0.attention": "middle.1",
    "middle.1.res": "middle.2",
}
RESIDUAL = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "shortcut": "skip_connection",
}
"""The layers of a residual block, which improved-diffusion calls so too."""
_LAYERS = {
    "res": RESIDUAL,
    "attention": {"norm": "_norm", "qkv": "_qkv", "out": "_proj_out"},
}


def _theirs(name: str, blocks: int) -> str:
    """Their name for one of our weights, by the table above."""
    module, _, kind = name.rpartition(".")
    match module.split("."):
        case ["down" | "up" as way, level, "blocks", block, part, layer]:
            index = int(level) * (blocks + 1) + int(block)
            return f"{way}s.{index}.{list(_LAYERS).index(part)}.{_LAYERS[part][layer]}.{kind}"
        case ["middle", block, part, layer]:
            return f"{_NAMES[f'middle.{block}.{part}']}.{_LAYERS[part][layer]}.{kind}"
        case _:
            return f"{_NAMES[module]}.{kind}"
