"""Every field of diffusers' two schedulers: followed, as live diffusers shows, without effect there too, or refused."""

from __future__ import annotations

import inspect
import re
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from ddpm.config import DiffusionSection, SamplingSection, parse_config
from ddpm.errors import DDPMError
from ddpm.generate import _steps, clip_of
from ddpm.interop.schedulers import process_of, scheduler_config
from ddpm.interop.steps import diffusers_states
from ddpm.schedule import make_schedule
from ddpm.training_loop import build_diffusion
from tests.reference import MODELS, model_with_variance, ours
from tests.tiny import TINY

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # not ours to mend
    from diffusers import DDIMScheduler, DDPMScheduler

STEPS, SHAPE = 20, (2, 1, 4, 4)
SIGMOID = (1 - make_schedule("sigmoid", 1000).alpha_bar[1:] / make_schedule("sigmoid", 1000).alpha_bar[:-1]).tolist()
DYNAMIC = {"thresholding": True, "sample_max_value": 1e9}


def noises() -> Tensor:
    return torch.randn(STEPS + 1, *SHAPE, generator=torch.Generator().manual_seed(0))


def net_of(settings: dict[str, Any]) -> Any:
    if settings.get("variance_type") == "learned_range":
        return model_with_variance("gmm", "LEARNED_RANGE")
    return MODELS["tanh" if settings.get("thresholding") or "clip_sample" in settings else "gmm"]


def theirs(name: str, settings: dict[str, Any], net: Any, eta: float) -> Tensor:
    """Their pipeline's loop, with our noise."""
    scheduler = {"DDPM": DDPMScheduler, "DDIM": DDIMScheduler}[name](**settings)
    scheduler.set_timesteps(STEPS)
    draws, x = noises(), noises()[STEPS]
    for k, t in enumerate(scheduler.timesteps):
        out = net(x, t.view(1).expand(len(x)))
        if name == "DDIM":
            x = scheduler.step(out, t, x, eta=eta, variance_noise=draws[k] if eta else None).prev_sample
        else:  # it draws its noise itself, at every step but the one from its t = 0
            with pytest.MonkeyPatch.context() as patch:
                drawn = draws[k]
                patch.setattr("diffusers.schedulers.scheduling_ddpm.randn_tensor", lambda *a, _d=drawn, **k: _d)
                x = scheduler.step(out, t, x).prev_sample
    return x  # type: ignore[no-any-return]


def followed(name: str, settings: dict[str, Any], net: Any, eta: float) -> Tensor:
    """Ours, by what is read from their configuration, as `generate.draw` takes it."""
    process = process_of({"_class_name": f"{name}Scheduler", **settings}, f"{name}Pipeline")  # type: ignore[arg-type]
    sampling = {k: v for k, v in process.sampling.items() if k != "steps"} | {"steps": STEPS}
    config = parse_config(
        TINY | {"diffusion": process.diffusion, "sampling": sampling, "training": TINY["training"] | training(process)},
        source="theirs",
    )
    diffusion = build_diffusion(config)
    draws = noises()
    *_, last = diffusers_states(
        config.sampling.sampler,
        diffusion,
        ours(net),
        draws[STEPS],
        _steps(diffusion, config.sampling),
        noise=lambda k: draws[k],
        clip=clip_of(config.sampling),
        eta=eta if name == "DDIM" else None,
    )
    return last.x


def training(process: Any) -> dict[str, Any]:
    return {"loss": "hybrid"} if process.diffusion["variance"] == "learned_range" else {}


FOLLOWED: list[dict[str, Any]] = [
    {"num_train_timesteps": 500},
    {"beta_start": 0.001},
    {"beta_end": 0.05},
    {"beta_schedule": "scaled_linear"},
    {"beta_schedule": "squaredcos_cap_v2"},
    {"trained_betas": SIGMOID},
    {"clip_sample": False},
    {"prediction_type": "v_prediction"},
    {"prediction_type": "sample"},
    DYNAMIC,
    DYNAMIC | {"dynamic_thresholding_ratio": 0.7},
    {"timestep_spacing": "linspace"},
    {"timestep_spacing": "trailing"},
    {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
]
DDPM_ALONE: list[dict[str, Any]] = [
    {"variance_type": "fixed_large"},
    {"variance_type": "fixed_large", "timestep_spacing": "trailing"},
    {"variance_type": "learned_range"},
]
WITHOUT: dict[str, dict[str, Any]] = {
    "clip_sample_range": {"clip_sample": False, "clip_sample_range": 0.5},
    "sample_max_value": {"sample_max_value": 2.0},
    "dynamic_thresholding_ratio": {"dynamic_thresholding_ratio": 0.7},
    "steps_offset": {"timestep_spacing": "trailing", "steps_offset": 1},
    "variance_type": {"variance_type": "fixed_small_log"},
    "thresholding": {"thresholding": True},  # to a maximum of 1 it is clip_sample
}
"""Changes without effect in diffusers, and the key that is without it."""
REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("DDPM", {"beta_schedule": "sigmoid"}, "beta_schedule: found 'sigmoid'"),
    ("DDPM", {"beta_schedule": "laplace"}, "beta_schedule: found 'laplace'"),
    ("DDPM", {"beta_start": 0.0}, "beta_start, beta_end: found [0.0, 0.02]"),
    ("DDPM", {"trained_betas": [0.1, 0.3] * 500}, "trained_betas: found 1000 numbers that none of our schedules has"),
    ("DDPM", {"trained_betas": [0.1, 0.2]}, "trained_betas: found 2, supported: as many as num_train_timesteps, 1000"),
    ("DDPM", {"trained_betas": "linear"}, "trained_betas: found 'linear'"),
    ("DDPM", {"variance_type": "fixed_large_log"}, "variance_type: found 'fixed_large_log'"),
    ("DDPM", {"variance_type": "learned"}, "variance_type: found 'learned'"),
    ("DDPM", {"clip_sample_range": 0.5}, "clip_sample_range: found 0.5, supported: 1"),
    ("DDPM", {"prediction_type": "flow"}, "prediction_type: found 'flow'"),
    ("DDPM", {"thresholding": True, "sample_max_value": 2.0}, "thresholding: found True with sample_max_value 2.0"),
    ("DDPM", {"timestep_spacing": "karras"}, "timestep_spacing: found 'karras'"),
    ("DDPM", {"steps_offset": 1}, "steps_offset: found 1, supported: 0"),
    ("DDPM", {"rescale_betas_zero_snr": True}, "rescale_betas_zero_snr: found True with prediction_type 'epsilon'"),
    ("DDPM", {"variance_type": "learned_range", "timestep_spacing": "trailing"}, "timestep_spacing: found 'trailing'"),
    ("DDPM", {"num_train_timesteps": 0}, "num_train_timesteps: found 0"),
    ("DDPM", {"clip_sample": "yes"}, "clip_sample: found 'yes'"),
    ("DDPM", {"use_karras_sigmas": True}, "use_karras_sigmas: unknown field (found: True)"),
    ("DDPM", {"predict_epsilon": False}, "predict_epsilon: found False"),
    ("DDPM", {"timestep_values": [1, 2]}, "timestep_values: found [1, 2]"),
    ("DDIM", {"set_alpha_to_one": False}, "set_alpha_to_one: found False"),
    ("DDIM", {"variance_type": "fixed_small"}, "variance_type: unknown field"),
    ("PNDM", {}, "_class_name: found 'PNDMScheduler'"),
]


def cases() -> list[Any]:
    found = [("DDPM", change, 0.0) for change in [*FOLLOWED, *DDPM_ALONE]]
    found += [("DDIM", change, eta) for change in FOLLOWED for eta in (0.0, 1.0)]
    return [pytest.param(*c, id=f"{c[0]}-{'-'.join(c[1])}-{c[2]:g}-{k}") for k, c in enumerate(found)]


def size(x: Tensor) -> float:
    return float(x.abs().max().clamp(min=1))


@pytest.mark.parametrize(("name", "change", "eta"), cases())
def test_a_change_changes_ours_as_theirs(name: str, change: dict[str, Any], eta: float) -> None:
    net = net_of(change)
    expected = theirs(name, change, net, eta)
    assert (followed(name, change, net, eta) - expected).abs().max() / size(expected) < 2e-4
    if change.get("variance_type") != "learned_range":
        base = {"thresholding": False} if "thresholding" in change else {}
        assert (theirs(name, base, net, eta) - expected).abs().max() > 2e-3  # the change is one


@pytest.mark.parametrize("key", WITHOUT)
def test_what_has_no_effect_there_has_none_here(key: str) -> None:
    change = WITHOUT[key]
    base = {k: v for k, v in change.items() if k != key}
    net = MODELS["tanh"]
    assert (theirs("DDPM", change, net, 0) - theirs("DDPM", base, net, 0)).abs().max() < 1e-5
    assert torch.equal(followed("DDPM", change, net, 0), followed("DDPM", base, net, 0))


@pytest.mark.parametrize(("name", "change", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_we_do_not_follow_is_refused_by_name(name: str, change: dict[str, Any], message: str) -> None:
    pipeline: Any = "DDIMPipeline" if name == "DDIM" else "DDPMPipeline"
    with pytest.raises(DDPMError, match=re.escape(message)):
        process_of({"_class_name": f"{name}Scheduler", **change}, pipeline)


@pytest.mark.parametrize("name", ["DDPM", "DDIM"])
def test_every_field_has_a_case(name: str) -> None:
    """Every argument of their constructors is in some case above, and its default is what an absent field means."""
    from ddpm.interop import schedulers

    kind = {"DDPM": DDPMScheduler, "DDIM": DDIMScheduler}[name]
    table = schedulers._FIELDS if name == "DDPM" else schedulers._DDIM_FIELDS
    arguments = dict(inspect.signature(kind.__init__).parameters)
    del arguments["self"]
    assert {n: a.default for n, a in arguments.items()} == {n: field.default for n, field in table.items()}
    tried = {key for change in [*FOLLOWED, *DDPM_ALONE, *WITHOUT.values()] for key in change}
    tried |= {key for _, change, _ in REFUSED for key in change}
    assert set(arguments) <= tried


def test_all_that_is_refused_is_named_at_once() -> None:
    with pytest.raises(DDPMError) as caught:
        process_of({"_class_name": "DDPMScheduler", "steps_offset": 2, "clip_sample_range": 3.0}, "DDPMPipeline")
    assert "steps_offset" in str(caught.value)
    assert "clip_sample_range" in str(caught.value)


def test_a_ddim_pipeline_takes_a_ddpm_scheduler() -> None:
    """As diffusers does; of a learned variance it can make nothing, and a DDPMPipeline takes no other scheduler."""
    process = process_of({"_class_name": "DDPMScheduler", "variance_type": "fixed_large"}, "DDIMPipeline")
    assert (process.sampling["sampler"], process.sampling["steps"]) == ("ddim", 50)
    with pytest.raises(DDPMError, match="variance_type: found 'learned_range'"):
        process_of({"_class_name": "DDPMScheduler", "variance_type": "learned_range"}, "DDIMPipeline")
    with pytest.raises(DDPMError, match="_class_name: found 'DDIMScheduler'"):
        process_of({"_class_name": "DDIMScheduler"}, "DDPMPipeline")


def test_fields_of_old_versions() -> None:
    """As google/ddpm-* were first published."""
    old = {"tensor_format": "pt", "timestep_values": None, "predict_epsilon": True, "_diffusers_version": "0.1.1"}
    assert process_of({"_class_name": "DDPMScheduler", **old}, "DDPMPipeline") == process_of(
        {"_class_name": "DDPMScheduler"}, "DDPMPipeline"
    )


EXPORTED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {}),
    ({"schedule": "quad", "beta_start": 0.001}, {"sampler": "ddim", "steps": 50, "spacing": "trailing"}),
    ({"schedule": "sigmoid", "prediction": "v"}, {"clip": "dynamic", "clip_quantile": 0.9}),
    ({"schedule": "warmup10", "variance": "fixed_small"}, {"clip": False}),
    ({"schedule": "jsd", "prediction": "x0"}, {}),
    ({"schedule": "cosine", "zero_terminal_snr": True, "prediction": "v"}, {"steps": 10, "spacing": "trailing"}),
    ({"schedule": "sigmoid", "zero_terminal_snr": True, "prediction": "v", "timesteps": 50}, {"steps": 10}),
]


@pytest.mark.parametrize(("diffusion", "sampling"), EXPORTED)
def test_a_process_comes_back(diffusion: dict[str, Any], sampling: dict[str, Any]) -> None:
    d, s = DiffusionSection(**diffusion), SamplingSection(**sampling)
    config = parse_config(TINY | {"diffusion": diffusion, "sampling": sampling}, source="ours")
    own = build_diffusion(config)
    written, lost = scheduler_config(d.model_dump(), s.model_dump(), own.schedule)
    assert lost == []
    assert set(written) - {"_class_name"} == set(inspect.signature(DDPMScheduler.__init__).parameters) - {"self"}
    scheduler = DDPMScheduler(**{k: v for k, v in written.items() if k != "_class_name"})
    assert torch.allclose(scheduler.alphas_cumprod.double(), own.schedule.alpha_bar[1:], rtol=1e-3, atol=1e-6)
    back = process_of(written, "DDPMPipeline")
    assert back.sampling["clip"] == s.clip
    again = build_diffusion(parse_config(TINY | {"diffusion": back.diffusion, "sampling": {}}, source="back"))
    assert torch.allclose(again.schedule.alpha_bar, own.schedule.alpha_bar, rtol=1e-6, atol=1e-12)
    assert replace(again, schedule=own.schedule) == own


def test_what_they_cannot_express() -> None:
    schedule = make_schedule("linear", 1000)
    sampling = SamplingSection().model_dump()
    with pytest.raises(DDPMError, match=r"diffusion\.prediction: mu"):
        scheduler_config(DiffusionSection(prediction="mu").model_dump(), sampling, schedule)
    with pytest.raises(DDPMError, match=r"diffusion\.variance: learned"):
        scheduler_config(DiffusionSection(variance="learned").model_dump(), sampling, schedule)


@pytest.mark.parametrize(
    ("sampling", "lost"),
    [
        ({"sampler": "heun", "steps": 10}, "sampling.sampler: heun"),
        ({"steps": 20, "spacing": "quadratic"}, "sampling.spacing: quadratic in 20 steps"),
        ({"sampler": "ddim", "steps": 30}, "sampling.spacing: trailing in 30 steps"),
    ],
)
def test_what_is_not_taken_over_is_said(sampling: dict[str, Any], lost: str) -> None:
    _, lines = scheduler_config(
        DiffusionSection().model_dump(), SamplingSection(**sampling).model_dump(), make_schedule("linear", 1000)
    )
    assert len(lines) == 1
    assert lines[0].startswith(lost)
