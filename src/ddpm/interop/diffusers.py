"""diffusers' UNet2DModel: its config.json and its weights as ours, both ways, and its 0-based clock.

Our network is UNet2DModel with these differences of name and layout:

    ours                                      diffusers
    time_mlp.0, time_mlp.2                    time_embedding.linear_1, time_embedding.linear_2
    down.L.blocks.N.res                       down_blocks.L.resnets.N
    down.L.blocks.N.attention                 down_blocks.L.attentions.N
    down.L.resample.conv                      down_blocks.L.downsamplers.0.conv
    middle.N.res, middle.0.attention          mid_block.resnets.N, mid_block.attentions.0
    up.L.blocks.N.res                         up_blocks.L.resnets.N
    up.L.blocks.N.attention                   up_blocks.L.attentions.N
    up.L.resample.conv                        up_blocks.L.upsamplers.0.conv
    conv_in, norm_out, conv_out               conv_in, conv_norm_out, conv_out
    in res:  time, shortcut                   time_emb_proj, conv_shortcut
    in attention: norm, qkv, out              group_norm; to_q, to_k, to_v, one above the other; to_out.0
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm.checkpoint import check_weights
from ddpm.diffusion import Net
from ddpm.interop.strict import (
    Field,
    accepted,
    anything,
    count,
    counts,
    heads_of,
    is_count,
    number,
    one_of,
    read,
    refuse,
    shapes,
)
from ddpm.unet import UNet

_SOURCE = "UNet2DModel's configuration"

_PLAIN = {"down": "DownBlock2D", "up": "UpBlock2D"}
_ATTENDING = {"down": "AttnDownBlock2D", "up": "AttnUpBlock2D"}


def _size(value: Any) -> bool:
    return is_count(value) or (isinstance(value, list | tuple) and len(value) == 2 and all(map(is_count, value)))


def _blocks(way: str) -> Callable[[Any], bool]:
    known = (_PLAIN[way], _ATTENDING[way])
    return lambda value: isinstance(value, list | tuple) and all(name in known for name in value)


_FIELDS = {
    "sample_size": Field(None, _size, "the side of the images, or [height, width]"),
    "in_channels": count(3),
    "out_channels": count(3),
    "center_input_sample": one_of(False, default=False),
    "time_embedding_type": one_of("positional", default="positional"),
    "time_embedding_dim": Field(None, lambda v: v is None or is_count(v), "None or 4 x block_out_channels[0]"),
    "freq_shift": one_of(0, 1, default=0),
    "flip_sin_to_cos": one_of(False, True, default=True),
    "down_block_types": Field(
        ("DownBlock2D", *["AttnDownBlock2D"] * 3), _blocks("down"), "DownBlock2D, AttnDownBlock2D"
    ),
    "mid_block_type": one_of("UNetMidBlock2D", default="UNetMidBlock2D"),
    "up_block_types": Field((*["AttnUpBlock2D"] * 3, "UpBlock2D"), _blocks("up"), "UpBlock2D, AttnUpBlock2D"),
    "block_out_channels": counts((224, 448, 672, 896)),
    "layers_per_block": count(2),
    "mid_block_scale_factor": one_of(1, default=1),
    "downsample_padding": one_of(0, 1, default=1),
    "downsample_type": one_of("conv", default="conv"),
    "upsample_type": one_of("conv", default="conv"),
    "dropout": number(0.0, below=1),
    "act_fn": one_of("silu", "swish", default="silu"),
    "attention_head_dim": Field(8, lambda v: v is None or is_count(v), "None or a positive number"),
    "norm_num_groups": count(32),
    "attn_norm_num_groups": Field(None, lambda v: v is None or is_count(v), "None or norm_num_groups"),
    "norm_eps": number(1e-5),
    "resnet_time_scale_shift": one_of("default", "scale_shift", default="default"),
    "add_attention": one_of(True, default=True),
    "class_embed_type": one_of(None, default=None),
    "num_class_embeds": one_of(None, default=None),
    "num_train_timesteps": anything(None),  # it sizes time_embedding_type "learned" alone
}
"""Every argument of UNet2DModel (0.42)."""

_EMBEDDINGS = {(False, 1): "paper", (True, 0): "improved"}
"""Our embedding by (flip_sin_to_cos, freq_shift)."""


def unet_settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `UNet` that build the same network as a UNet2DModel's config.json.

    Fields that are absent have UNet2DModel's defaults. Raises DDPMError naming every field that our network cannot
    express, and every unknown one.
    """
    own = {name: value for name, value in config.items() if not name.startswith("_")}
    read({"_class_name": config.get("_class_name", "UNet2DModel")}, {"_class_name": one_of("UNet2DModel")}, _SOURCE)
    c = read(own, _FIELDS, _SOURCE)

    size = (c["sample_size"],) * 2 if is_count(c["sample_size"]) else tuple(c["sample_size"])
    widths, groups = c["block_out_channels"], c["norm_num_groups"]
    attends = [name == _ATTENDING["down"] for name in c["down_block_types"]]
    mirrored = [name == _ATTENDING["up"] for name in reversed(c["up_block_types"])]
    attending = [width for width, attend in zip(widths, attends, strict=False) if attend]
    heads, reasons = heads_of(c["attention_head_dim"], [*attending, widths[-1]], "attention_head_dim")
    embedding = (c["flip_sin_to_cos"], c["freq_shift"])
    mid_groups = c["attn_norm_num_groups"] or (groups if c["resnet_time_scale_shift"] == "default" else None)

    if not len(widths) == len(attends) == len(mirrored):
        reasons.append("block_out_channels, down_block_types, up_block_types: differ in length")
    elif attends != mirrored:
        reasons.append("up_block_types: attention is not at the levels of down_block_types")
    if any(width % widths[0] for width in widths):
        reasons.append(f"block_out_channels: {list(widths)} are not multiples of the first")
    if c["time_embedding_dim"] not in (None, 4 * widths[0]):
        reasons.append(f"time_embedding_dim: found {c['time_embedding_dim']}, supported: None or {4 * widths[0]}")
    if embedding not in _EMBEDDINGS:
        reasons.append(
            f"flip_sin_to_cos, freq_shift: found {embedding}, supported: {' or '.join(map(str, _EMBEDDINGS))}"
        )
    if mid_groups != groups:
        reasons.append(
            f"attn_norm_num_groups: found {c['attn_norm_num_groups']}, supported: {groups} (norm_num_groups)"
            + ("; without it the middle attention of scale_shift has no norm" if mid_groups is None else "")
        )
    refuse(_SOURCE, reasons)

    settings = {
        "in_channels": c["in_channels"],
        "out_channels": c["out_channels"],
        "size": size,
        "channels": widths[0],
        "multipliers": tuple(width // widths[0] for width in widths),
        "blocks": c["layers_per_block"],
        "attention": tuple(min(size) >> level for level, attend in enumerate(attends) if attend),
        "heads": heads,
        "dropout": float(c["dropout"]),
        "time": {"default": "add", "scale_shift": "scale_shift"}[c["resnet_time_scale_shift"]],
        "resample": "strided",
        "padding": {0: "same", 1: "symmetric"}[c["downsample_padding"]],
        "embedding": _EMBEDDINGS[embedding],
        "patch": 1,
        "norm_groups": groups,
        "norm_eps": float(c["norm_eps"]),
        "outer_bias": True,
        "time_scale": 1.0,
        "classes": None,
    }
    return accepted(settings, _SOURCE)


def unet_config(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The config.json of the UNet2DModel that is UNet(**settings): every field, in JSON's types.

    Raises DDPMError naming every setting that UNet2DModel cannot express.
    """
    bound = inspect.signature(UNet).bind(**settings)
    bound.apply_defaults()
    s = bound.arguments
    height, width = s["size"]
    widths = [s["channels"] * m for m in s["multipliers"]]
    attends = [min(height, width) >> level in s["attention"] for level in range(len(widths))]
    attending = {w for w, attend in zip(widths, attends, strict=True) if attend} | {widths[-1]}

    reasons = []
    if s["patch"] > 1:
        reasons.append(f"patch: {s['patch']}")
    if s["resample"] != "strided":
        reasons.append(f"resample: {s['resample']}")
    if not s["outer_bias"]:
        reasons.append("outer_bias: False")
    if s["time_scale"] != 1:
        reasons.append(f"time_scale: {s['time_scale']}: UNet2DModel embeds the times as they are")
    reasons += _about_classes(s)
    if s["multipliers"][0] != 1:
        reasons.append(f"multipliers: {s['multipliers']} do not begin with 1")
    if s["heads"] > 1 and len(attending) > 1:
        reasons.append(f"heads: {s['heads']} at different widths, {sorted(attending)}: it counts channels a head")
    refuse("the network's settings", reasons, target="diffusers' UNet2DModel")

    flip, shift = next(key for key, name in _EMBEDDINGS.items() if name == s["embedding"])
    scale_shift = s["time"] == "scale_shift"
    return {
        "_class_name": "UNet2DModel",
        **{name: field.default for name, field in _FIELDS.items()},
        "sample_size": height if height == width else [height, width],
        "in_channels": s["in_channels"],
        "out_channels": s["out_channels"],
        "freq_shift": shift,
        "flip_sin_to_cos": flip,
        "down_block_types": [(_ATTENDING if attend else _PLAIN)["down"] for attend in attends],
        "up_block_types": [(_ATTENDING if attend else _PLAIN)["up"] for attend in reversed(attends)],
        "block_out_channels": widths,
        "layers_per_block": s["blocks"],
        "downsample_padding": 0 if s["padding"] == "same" else 1,
        "dropout": s["dropout"],
        "attention_head_dim": None if s["heads"] == 1 else widths[-1] // s["heads"],
        "norm_num_groups": s["norm_groups"],
        # Where the timestep scales, the middle attention would otherwise have no norm.
        "attn_norm_num_groups": s["norm_groups"] if scale_shift else None,
        "norm_eps": s["norm_eps"],
        "resnet_time_scale_shift": "scale_shift" if scale_shift else "default",
    }


def _about_classes(settings: Mapping[str, Any]) -> list[str]:
    # num_class_embeds would hold our rows, but not say that the first is for no class.
    classes = settings.get("classes")
    return [] if classes is None else [f"classes: {classes}: UNet2DModel knows no null class"]


def unet_weights_from(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """A UNet2DModel's state_dict as that of UNet(**settings).

    The attention's names of before diffusers 0.17, in which many models are published, are understood too.
    Raises CheckpointError naming keys that are missing, unknown or of another shape.
    """
    refuse("the network's settings", _about_classes(settings), target="diffusers' UNet2DModel")
    weights = {_modern(name): value for name, value in weights.items()}
    expected = shapes(settings)
    check_weights(weights, _their_shapes(expected), "UNet2DModel's weights")
    return {name: torch.cat([weights[theirs] for theirs in _theirs(name)]) for name in expected}


def unet_weights_to(weights: Mapping[str, Tensor], settings: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state_dict of UNet(**settings) as that of UNet2DModel(**unet_config(settings)).

    Raises CheckpointError naming keys that are missing, unknown or of another shape.
    """
    refuse("the network's settings", _about_classes(settings), target="diffusers' UNet2DModel")
    expected = shapes(settings)
    check_weights(weights, expected, "the network's weights")
    return {
        theirs: part.clone()
        for name in expected
        for theirs, part in zip(_theirs(name), weights[name].chunk(len(_theirs(name))), strict=True)
    }


_RES = {"time": "time_emb_proj", "shortcut": "conv_shortcut"}
_ATTENTION = {"norm": ("group_norm",), "qkv": ("to_q", "to_k", "to_v"), "out": ("to_out.0",)}
_FORMER = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _theirs(name: str) -> tuple[str, ...]:
    """Their names for one of our weights, by the table above: one, or the three that make up qkv."""
    *path, kind = name.split(".")
    modules: tuple[str, ...]
    match path:
        case ["time_mlp", index]:
            modules = (f"time_embedding.linear_{1 + int(index) // 2}",)
        case ["down" | "up" as way, level, "blocks", block, "res", layer]:
            modules = (f"{way}_blocks.{level}.resnets.{block}.{_RES.get(layer, layer)}",)
        case ["down" | "up" as way, level, "blocks", block, "attention", layer]:
            modules = tuple(f"{way}_blocks.{level}.attentions.{block}.{part}" for part in _ATTENTION[layer])
        case ["down" | "up" as way, level, "resample", "conv"]:
            modules = (f"{way}_blocks.{level}.{way}samplers.0.conv",)
        case ["middle", block, "res", layer]:
            modules = (f"mid_block.resnets.{block}.{_RES.get(layer, layer)}",)
        case ["middle", block, "attention", layer]:
            modules = tuple(f"mid_block.attentions.{block}.{part}" for part in _ATTENTION[layer])
        case ["norm_out"]:
            modules = ("conv_norm_out",)
        case _:
            modules = (".".join(path),)
    return tuple(f"{module}.{kind}" for module in modules)


def _their_shapes(ours: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {
        theirs: (shape[0] // len(_theirs(name)), *shape[1:]) for name, shape in ours.items() for theirs in _theirs(name)
    }


def _modern(name: str) -> str:
    head, attention, tail = name.rpartition(".attentions.")
    block, _, layer = tail.partition(".")
    former, _, kind = layer.rpartition(".")
    return f"{head}{attention}{block}.{_FORMER[former]}.{kind}" if attention and former in _FORMER else name


def wrap(model: Callable[..., Any]) -> Net:
    """A diffusers model as our net(x_t, t), where t = 1 is one step of noise; theirs calls that 0.

    The model may return a tensor, a tuple that begins with it, or an object that has it as `sample`.
    """

    def net(x_t: Tensor, t: Tensor) -> Tensor:
        out = model(x_t, t - 1)
        if not isinstance(out, Tensor):
            out = out.sample if hasattr(out, "sample") else out[0]
        return out  # type: ignore[no-any-return]

    return net


class Output(NamedTuple):
    sample: Tensor


def unwrap(net: Net) -> Callable[..., Output]:
    """Our net as diffusers calls a model: model(sample, timestep) with one time for all, or one for each."""

    def model(sample: Tensor, timestep: Tensor | float) -> Output:
        t = torch.as_tensor(timestep, device=sample.device).expand(sample.shape[0])
        return Output(net(sample, t + 1))

    return model
