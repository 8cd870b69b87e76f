"""diffusers' scheduler_config.json as our process and sampling settings, and back.

DDPMScheduler and DDIMScheduler are understood; a field that we cannot follow is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple, get_args

import torch

from ddpm.choices import DEFAULT_SPACING
from ddpm.errors import DDPMError
from ddpm.interop.steps import DiffusersSpacing, diffusers_ddim_steps, diffusers_steps
from ddpm.interop.strict import Field, anything, count, number, one_of, read, refuse
from ddpm.schedule import NoiseSchedule, ScheduleName, make_schedule, sampling_steps, zero_terminal_snr

Pipeline = Literal["DDPMPipeline", "DDIMPipeline"]

DDIM_STEPS = 50
"""Steps of a DDIMPipeline that is not told how many."""

_SOURCE = "diffusers' scheduler_config.json"


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _betas(value: Any) -> bool:
    return value is None or (isinstance(value, list | tuple) and len(value) > 0 and all(map(_is_number, value)))


_FLAG = (False, True)

_FIELDS = {
    "num_train_timesteps": count(1000),
    "beta_start": number(0.0001, below=1),
    "beta_end": number(0.02, below=1),
    "beta_schedule": one_of("linear", "scaled_linear", "squaredcos_cap_v2", default="linear"),
    "trained_betas": Field(None, _betas, "None or a list of numbers"),
    # fixed_large_log is the root of a negative number there, and what learned learns is no logarithm, as ours is.
    "variance_type": one_of("fixed_small", "fixed_small_log", "fixed_large", "learned_range", default="fixed_small"),
    "clip_sample": one_of(*_FLAG, default=True),
    "prediction_type": one_of("epsilon", "sample", "v_prediction", default="epsilon"),
    "thresholding": one_of(*_FLAG, default=False),
    "dynamic_thresholding_ratio": number(0.995),
    "clip_sample_range": Field(1.0, _is_number, "a number"),
    "sample_max_value": Field(1.0, _is_number, "a number"),
    "timestep_spacing": one_of("linspace", "leading", "trailing", default="leading"),
    "steps_offset": Field(0, lambda v: isinstance(v, int) and not isinstance(v, bool), "a whole number"),
    "rescale_betas_zero_snr": one_of(*_FLAG, default=False),
}
"""Every argument of DDPMScheduler (0.42)."""
_DDIM_FIELDS = {name: field for name, field in _FIELDS.items() if name != "variance_type"} | {
    "set_alpha_to_one": one_of(True, default=True),
}
"""Every argument of DDIMScheduler (0.42)."""
_FORMER = {
    "tensor_format": anything(None),  # the array library of version 0.1
    "timestep_values": one_of(None, default=None),
    "predict_epsilon": one_of(True, default=True),  # of before prediction_type
}
"""Fields of old versions, which today's diffusers passes over."""

_SCHEDULES: dict[str, ScheduleName] = {"linear": "linear", "scaled_linear": "quad", "squaredcos_cap_v2": "cosine"}
_KINDS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v"}
_VARIANCES = {name: name for name in ("fixed_small", "fixed_large", "learned_range")} | {
    "fixed_small_log": "fixed_small"  # the same number, by way of its logarithm
}
_STEPS: dict[str, Callable[..., Any]] = {"ancestral": diffusers_steps, "ddim": diffusers_ddim_steps}
_UNBOUNDED = 1e9
"""Their sample_max_value where ours has no limit: JSON has no infinity."""


class Process(NamedTuple):
    """What a scheduler says, in our settings."""

    diffusion: dict[str, Any]
    sampling: dict[str, Any]


def process_of(config: Mapping[str, Any], pipeline: Pipeline) -> Process:
    """The process and the sampling settings of a scheduler in a pipeline.

    A DDIMPipeline makes a DDIMScheduler of whatever it is given. Raises DDPMError naming every field that ours cannot
    follow, and every unknown one.
    """
    kinds = ("DDPMScheduler", "DDIMScheduler")
    name = config.get("_class_name")
    read({"_class_name": name}, {"_class_name": one_of(*kinds)}, _SOURCE)
    fields = (_FIELDS if name == "DDPMScheduler" else _DDIM_FIELDS) | _FORMER
    own = {key: value for key, value in config.items() if not key.startswith("_")}
    c = read(own, fields, _SOURCE)
    ddim = pipeline == "DDIMPipeline"
    if name == "DDIMScheduler" and not ddim:
        refuse(_SOURCE, ["_class_name: found 'DDIMScheduler', supported: 'DDPMScheduler' in a DDPMPipeline"])

    T, clip, quantile, reasons = c["num_train_timesteps"], _clip(c), None, []
    if isinstance(clip, float):
        clip, quantile = "dynamic", clip
    elif isinstance(clip, str):
        reasons.append(clip)
    variance = "fixed_small" if ddim else _VARIANCES[c.get("variance_type", "fixed_small")]
    spacing = c["timestep_spacing"]
    if ddim and c.get("variance_type") == "learned_range":
        reasons.append("variance_type: found 'learned_range', which a DDIMPipeline makes nothing of")
    if variance == "learned_range" and spacing == "trailing":
        reasons.append("timestep_spacing: found 'trailing', whose last step has noise of a learned variance")
    if spacing == "leading" and c["steps_offset"] != 0:
        reasons.append(f"steps_offset: found {c['steps_offset']}, supported: 0")
    if c["rescale_betas_zero_snr"] and c["prediction_type"] == "epsilon":
        reasons.append("rescale_betas_zero_snr: found True with prediction_type 'epsilon', which says nothing at T")
    schedule: dict[str, Any] = {}
    try:
        schedule = _schedule_of(c)
    except DDPMError as error:
        reasons.append(str(error))
    refuse(_SOURCE, reasons)
    return Process(
        {
            "timesteps": T,
            **schedule,
            "prediction": _KINDS[c["prediction_type"]],
            "variance": variance,
        },
        {
            "sampler": "ddim" if ddim else "ancestral",
            "steps": min(DDIM_STEPS, T) if ddim else T,
            "spacing": spacing,
            "conventions": "diffusers",
            "clip": clip,
            "clip_quantile": quantile,
        },
    )


def _clip(c: Mapping[str, Any]) -> bool | float | str:
    """Our clip, the quantile of a dynamic one, or why it is neither."""
    if c["thresholding"]:  # which comes before clip_sample there
        if c["sample_max_value"] == 1:
            return True  # the quantile, at least 1 and at most 1
        if c["sample_max_value"] >= _UNBOUNDED and 0 < c["dynamic_thresholding_ratio"] <= 1:
            return float(c["dynamic_thresholding_ratio"])
        return (
            f"thresholding: found True with sample_max_value {c['sample_max_value']} and dynamic_thresholding_ratio "
            f"{c['dynamic_thresholding_ratio']}, supported: a sample_max_value of 1 or from {_UNBOUNDED:g}, "
            "and a ratio in (0, 1]"
        )
    if c["clip_sample"] and c["clip_sample_range"] != 1:
        return f"clip_sample_range: found {c['clip_sample_range']}, supported: 1"
    return bool(c["clip_sample"])


def _schedule_of(c: Mapping[str, Any]) -> dict[str, Any]:
    """Our schedule and its ends. Raises DDPMError."""
    T, stretched = c["num_train_timesteps"], c["rescale_betas_zero_snr"]
    if c["trained_betas"] is not None:
        return _named(c["trained_betas"], T) | ({"zero_terminal_snr": True} if stretched else {})
    name = _SCHEDULES[c["beta_schedule"]]
    ends = {} if name == "cosine" else {"beta_start": float(c["beta_start"]), "beta_end": float(c["beta_end"])}
    if any(value <= 0 for value in ends.values()):
        raise DDPMError(f"beta_start, beta_end: found {list(ends.values())}, supported: numbers above 0")
    return {"schedule": name, **ends, "zero_terminal_snr": stretched}


def _named(betas: Sequence[float], T: int) -> dict[str, Any]:
    """Which of our schedules has these betas: with its own ends, or with the first and the last of them."""
    if len(betas) != T:
        raise DDPMError(f"trained_betas: found {len(betas)}, supported: as many as num_train_timesteps, {T}")
    wanted = torch.tensor(betas, dtype=torch.float64)
    for name in get_args(ScheduleName):
        free = name in ("linear", "quad", "const", "warmup10", "warmup50")
        for ends in ({}, {"beta_start": float(betas[0]), "beta_end": float(betas[-1])} if free else {}):
            if not all(0 < value < 1 for value in ends.values()):
                continue
            for stretched in (False, True):
                schedule = make_schedule(name, T, **ends)
                if stretched:
                    if name == "jsd" or T < 2:
                        continue
                    schedule = zero_terminal_snr(schedule)
                if torch.allclose(schedule.betas, wanted, rtol=1e-4, atol=1e-7):
                    return {"schedule": name, **ends, "zero_terminal_snr": stretched}
    raise DDPMError(f"trained_betas: found {T} numbers that none of our schedules has")


def scheduler_config(
    diffusion: Mapping[str, Any], sampling: Mapping[str, Any], schedule: NoiseSchedule
) -> tuple[dict[str, Any], list[str]]:
    """The DDPMScheduler that is our process: every field; and what of the sampling settings it cannot say.

    A DDIMPipeline makes its own scheduler of it.

    Args:
        diffusion: `config.DiffusionSection`, dumped.
        sampling: `config.SamplingSection`, dumped.
        schedule: of the process.

    Raises DDPMError naming every setting of the process that DDPMScheduler cannot express.
    """
    reasons = []
    if diffusion["prediction"] not in _KINDS.values():
        reasons.append(f"diffusion.prediction: {diffusion['prediction']}: it has epsilon, v and x0")
    if diffusion["variance"] not in _VARIANCES.values():
        reasons.append(f"diffusion.variance: {diffusion['variance']}: it takes no learned logarithm")
    refuse("the checkpoint's settings", reasons, target="diffusers' DDPMScheduler")

    name, betas, stretched = diffusion["schedule"], None, diffusion["zero_terminal_snr"]
    theirs = next((key for key, value in _SCHEDULES.items() if value == name), None)
    if theirs is None:  # a table then, whole: what is stretched is stretched already
        theirs, betas, stretched = "linear", schedule.betas.tolist(), False
    start, end = diffusion["beta_start"], diffusion["beta_end"]
    quantile = sampling["clip_quantile"]
    spacing, lost = _spacing(sampling, schedule)
    return {
        "_class_name": "DDPMScheduler",
        **{key: field.default for key, field in _FIELDS.items()},
        "num_train_timesteps": schedule.T,
        "beta_start": 0.0001 if start is None else start,
        "beta_end": 0.02 if end is None else end,
        "beta_schedule": theirs,
        "trained_betas": betas,
        "variance_type": diffusion["variance"],
        "clip_sample": sampling["clip"] is True,
        "prediction_type": prediction_type(diffusion["prediction"]),
        "thresholding": sampling["clip"] == "dynamic",
        "dynamic_thresholding_ratio": 0.995 if quantile is None else quantile,
        "sample_max_value": _UNBOUNDED if sampling["clip"] == "dynamic" else 1.0,
        "timestep_spacing": spacing,
        "rescale_betas_zero_snr": stretched,
    }, lost


def prediction_type(prediction: str) -> str:
    """Their name of what our network predicts; they have none for mu."""
    return next(theirs for theirs, ours in _KINDS.items() if ours == prediction)


def _spacing(sampling: Mapping[str, Any], schedule: NoiseSchedule) -> tuple[str, list[str]]:
    """Their timestep_spacing that visits our times, and what is lost where none does."""
    sampler, T = sampling["sampler"], schedule.T
    count: int = sampling["steps"] or T
    spacing: Any = sampling["spacing"] or DEFAULT_SPACING
    if sampling["conventions"] == "diffusers":
        return spacing, []
    if sampler not in ("ancestral", "ddim"):
        return "linspace", [f"sampling.sampler: {sampler}"]
    ours, steps_of = list(sampling_steps(schedule, count, spacing)), _STEPS[sampler]
    for theirs in get_args(DiffusersSpacing):
        if steps_of(T, count, theirs) == ours:
            return theirs, []
    return "linspace", [f"sampling.spacing: {spacing} in {count} steps, a list of times that diffusers does not have"]
