"""improved-diffusion's checkpoints (openai/improved-diffusion): bare weights, from whose names and shapes the network
is read off.

    ours                                      improved-diffusion
    time_mlp.0, time_mlp.2                    time_embed.0, time_embed.2
    conv_in, norm_out, conv_out               input_blocks.0.0, out.0, out.2
    down.L.blocks.N.res, .attention           input_blocks.K.0, .1     K = 1 + L (blocks + 1) + N
    down.L.resample.conv                      input_blocks.K.0.op      K = (L + 1) (blocks + 1)
    middle.0.res, .attention, middle.1.res    middle_block.0, .1, .2
    up.L.blocks.N.res, .attention             output_blocks.K.0, .1    K = L (blocks + 1) + N
    up.L.resample.conv                        output_blocks.K.1.conv, or .2.conv behind attention
    in res:  norm1, conv1, time               in_layers.0, in_layers.2, emb_layers.1
             norm2, conv2, shortcut           out_layers.0, out_layers.3, skip_connection
    in attention: norm, qkv, out              norm, qkv, proj_out; qkv head by head, as in xdiffusion

What a file does not say, the user must: the images' size, the heads, and the process it was trained in.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ddpm.checkpoint import check_weights
from ddpm.errors import CheckpointError, DDPMError
from ddpm.interop.foreign import Foreign
from ddpm.interop.strict import refuse, shapes
from ddpm.interop.xdiffusion import RESIDUAL, by_kind

_SOURCE = "improved-diffusion's weights"

HEADS = 4
"""num_heads of its scripts where none is given."""

UNSAID = (
    "data.image_size",
    "network.heads",
    "network.dropout",
    "network.time_scale",
    "diffusion.timesteps",
    "diffusion.schedule",
    "diffusion.prediction",
    "diffusion.variance",
)
"""What the weights are silent about."""


def is_state_dict(content: Any) -> bool:
    """Whether a file's content looks like the weights of one of its networks."""
    return isinstance(content, Mapping) and {"time_embed.0.weight", "input_blocks.0.0.weight"} <= content.keys()


def read_weights(content: Mapping[str, Any], *, size: tuple[int, int], heads: int) -> Foreign:
    """The network in a state_dict.

    Args:
        size: (height, width) of the images.
        heads: its num_heads.

    Raises DDPMError for what our network cannot express, CheckpointError for weights that do not fit together.
    """
    if wrong := [name for name, value in content.items() if not isinstance(value, Tensor)]:
        raise CheckpointError(f"{_SOURCE}: {wrong[0]} is no tensor")
    settings = unet_settings(content, size=size, heads=heads)
    learned = settings["out_channels"] == 2 * settings["in_channels"]
    return Foreign(
        "improved-diffusion",
        settings,
        unet_weights_from(content, settings),
        {"variance": "learned_range" if learned else "fixed_large"},
        {},
        unsaid=UNSAID,
    )


def unet_settings(weights: Mapping[str, Tensor], *, size: tuple[int, int], heads: int) -> dict[str, Any]:
    """The arguments of `UNet` that build the network of these weights.

    Raises DDPMError for classes and for names that no such network has.
    """
    if "label_emb.weight" in weights:
        refuse(_SOURCE, ["label_emb: a network with classes but without a null class"])
    try:
        return _settings(weights, size, heads)
    except (KeyError, IndexError) as error:
        raise DDPMError(f"{_SOURCE}: not the names of improved-diffusion's UNetModel: {error} is missing") from None


def _settings(weights: Mapping[str, Tensor], size: tuple[int, int], heads: int) -> dict[str, Any]:
    channels, in_channels = weights["input_blocks.0.0.weight"].shape[:2]
    count = 1 + max(int(m[1]) for name in weights if (m := re.match(r"input_blocks\.(\d+)\.", name)))
    levels: list[list[int]] = [[]]  # widths of the residual blocks of each level
    attends: list[bool] = [False]
    for k in range(1, count):
        if f"input_blocks.{k}.0.op.weight" in weights:
            levels.append([])
            attends.append(False)
        else:
            levels[-1].append(weights[f"input_blocks.{k}.0.in_layers.2.weight"].shape[0])
            attends[-1] |= f"input_blocks.{k}.1.qkv.weight" in weights
    widths, blocks = [level[-1] for level in levels], len(levels[0])
    reasons = []
    if len({len(level) for level in levels}) > 1 or any(len(set(level)) > 1 for level in levels):
        reasons.append(f"input_blocks: levels of unequal blocks, {levels}")
    if any(width % channels for width in widths):
        reasons.append(f"input_blocks: the widths {widths} are not multiples of the first convolution's {channels}")
    emb = weights["input_blocks.1.0.emb_layers.1.weight"].shape[0]
    height, width = size
    factor = 2 ** (len(levels) - 1)
    if height % factor or width % factor:
        reasons.append(f"images of {height}x{width} do not fit: both sides must be multiples of {factor}")
    attending = {w for w, attend in zip(widths, attends, strict=True) if attend} | {widths[-1]}
    if any(w % heads for w in attending):
        reasons.append(f"heads: {heads} do not divide the widths with attention, {sorted(attending)}")
    refuse(_SOURCE, reasons)
    return {
        "in_channels": in_channels,
        "out_channels": weights["out.2.weight"].shape[0],
        "size": size,
        "channels": channels,
        "multipliers": tuple(width // channels for width in widths),
        "blocks": blocks,
        "attention": tuple(min(size) >> level for level, attend in enumerate(attends) if attend),
        "heads": heads,
        "dropout": 0.0,
        "time": "scale_shift" if emb == 2 * widths[0] else "add",
        "resample": "strided",
        "padding": "symmetric",
        "embedding": "improved",
        "patch": 1,
        "norm_groups": 32,
        "norm_eps": 1e-5,
        "outer_bias": True,
        "time_scale": 1.0,
        "classes": None,
    }


def unet_weights_from(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """A UNetModel's state_dict as that of UNet(**settings), float32.

    Raises CheckpointError naming keys that are missing, unknown or of another shape.
    """
    ours = shapes(settings)
    attends = {name.split(".")[1] for name in ours if name.startswith("up.") and ".attention." in name}
    names = {name: _theirs(name, settings["blocks"], attends) for name in ours}
    expected = {
        names[name]: (*shape, 1) if ".attention." in name and len(shape) == 2 else shape for name, shape in ours.items()
    }
    check_weights(weights, expected, _SOURCE)
    return {
        name: (by_kind(weights[names[name]], settings["heads"]) if ".qkv." in name else weights[names[name]])
        .reshape(shape)
        .float()
        for name, shape in ours.items()
    }


_NAMES = {
    "time_mlp.0": "time_embed.0",
    "time_mlp.2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "norm_out": "out.0",
    "conv_out": "out.2",
    "middle.0.res": "middle_block.0",
    "middle.0.attention": "middle_block.1",
    "middle.1.res": "middle_block.2",
}
_LAYERS = {
    "res": RESIDUAL,
    "attention": {"norm": "norm", "qkv": "qkv", "out": "proj_out"},
}
_PARTS = list(_LAYERS)
"""A block's parts in their order there."""


def _theirs(name: str, blocks: int, attends: set[str]) -> str:
    """Their name for one of our weights, by the table above; `attends`: the levels upwards that have attention."""
    module, _, kind = name.rpartition(".")
    match module.split("."):
        case ["down", level, "blocks", block, part, layer]:
            k = 1 + int(level) * (blocks + 1) + int(block)
            return f"input_blocks.{k}.{_PARTS.index(part)}.{_LAYERS[part][layer]}.{kind}"
        case ["down", level, "resample", "conv"]:
            return f"input_blocks.{(int(level) + 1) * (blocks + 1)}.0.op.{kind}"
        case ["up", level, "blocks", block, part, layer]:
            k = int(level) * (blocks + 1) + int(block)
            return f"output_blocks.{k}.{_PARTS.index(part)}.{_LAYERS[part][layer]}.{kind}"
        case ["up", level, "resample", "conv"]:
            return f"output_blocks.{int(level) * (blocks + 1) + blocks}.{1 + (level in attends)}.conv.{kind}"
        case ["middle", block, part, layer]:
            return f"{_NAMES[f'middle.{block}.{part}']}.{_LAYERS[part][layer]}.{kind}"
        case _:
            return f"{_NAMES[module]}.{kind}"
