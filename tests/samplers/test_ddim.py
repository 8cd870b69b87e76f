"""DDIM: whole trajectories against two peers, its ties to other samplers, and inversion."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ddpm.diffusion import Diffusion
from ddpm.interop.steps import diffusers_ddim_steps, improved_steps
from ddpm.samplers import ancestral, ddim, ddim_invert
from ddpm.schedule import make_schedule, spaced_steps
from tests.reference import MODELS, arrays, close, ours
from tests.samplers.recorded import LINEAR, Recorded, Watched, noise_of, trajectory

GMM = ours(MODELS["gmm"])

IMPROVED = [
    *(
        f"ddim.{model}.eta{eta}.{spacing}.clip"
        for model in MODELS
        for eta in (0.0, 0.5)
        for spacing in ("sp20", "spddim20")
    ),
    "ddim.gmm.eta0.0.spddim20.noclip",
    "ddim.gmm.eta1.0.spddim20.clip",
]


@pytest.mark.parametrize("tag", IMPROVED)
def test_trajectory_equals_improved_diffusion(golden: Path, tag: str) -> None:
    """Every state and estimate, and the noise of every step."""
    tables = arrays(golden / "samplers_improved.npz")
    _, model, eta_0, eta_1, spacing, clip = tag.split(".")
    steps = improved_steps(1000, "ddim20" if "ddim" in spacing else [20])
    net, start = Watched(ours(MODELS[model])), torch.from_numpy(tables["x_T"])
    eta = float(f"{eta_0.removeprefix('eta')}.{eta_1}")
    states = list(ddim(LINEAR, net, start, steps, noise=noise_of(tables["noise"]), eta=eta, clip=clip == "clip"))
    assert [t - 1 for t in net.times] == tables[f"{tag}.timesteps"].tolist()
    close(trajectory(start, states), tables[f"{tag}.x"], 1e-4)
    if f"{tag}.pred_xstart" in tables:
        close(torch.stack([s.x0 for s in states if s.x0 is not None]), tables[f"{tag}.pred_xstart"], 1e-4)


def _cases() -> list[str]:
    spaced = [
        f"ddim.{spacing}.alpha1_{one}.clip_{clip}.eta0.gmm"
        for spacing in ("leading", "trailing")
        for one in (True, False)
        for clip in (True, False)
    ]
    first = "ddim.leading.alpha1_True.clip_True.eta0"
    return [
        *spaced,
        "ddim.linspace.alpha1_True.clip_True.eta0.gmm",
        "ddim.leading.alpha1_False.clip_True.eta0.offset1.gmm",
        *(f"{first}{rest}" for rest in (".tanh", ".use_clipped.gmm", ".5.gmm", ".v_prediction.gmm")),
        "ddim.leading.alpha1_True.clip_True.eta1.0.gmm",
    ]


@pytest.mark.parametrize("tag", _cases())
def test_trajectory_equals_diffusers(golden: Path, tag: str) -> None:
    case = Recorded(golden, tag)
    s = case.settings
    steps = diffusers_ddim_steps(
        1000, 20, s["timestep_spacing"], offset=s["steps_offset"], set_alpha_to_one=s["set_alpha_to_one"]
    )
    eta = 0.5 if "eta0.5" in tag else 1.0 if "eta1" in tag else 0.0
    states = ddim(
        case.diffusion,
        case.net,
        case.start,
        steps,
        noise=case.noise,
        eta=eta,
        clip=s["clip_sample"],
        rederive="use_clipped" in tag,
    )
    close(trajectory(case.start, states), case.x, 1e-4)
    assert case.calls == case.times.tolist()


def test_rederiving_matters_only_where_the_estimate_was_clipped() -> None:
    start = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    steps = spaced_steps(1000, 20)
    walks = {}
    for clip in (True, False):
        for rederive in (True, False):
            walks[clip, rederive] = trajectory(start, ddim(LINEAR, GMM, start, steps, clip=clip, rederive=rederive))
    close(walks[False, True], walks[False, False], 1e-4)
    assert (walks[True, True] - walks[True, False]).abs().max() > 0.02


@pytest.mark.parametrize("eta", [0.0, 0.7])
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_equals_diffusers_live(spacing: str, kind: str, eta: float) -> None:
    import diffusers

    scheduler = diffusers.DDIMScheduler(timestep_spacing=spacing, prediction_type=kind)
    scheduler.set_timesteps(25)
    start = torch.randn(2, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    noises = torch.randn(25, 2, 1, 4, 4, generator=torch.Generator().manual_seed(4))
    x, theirs = start, [start]
    for k, t in enumerate(scheduler.timesteps):
        out = MODELS["gmm"](x, t.view(1))
        noise = noises[k] if eta else None
        x = scheduler.step(out, t, x, eta=eta, variance_noise=noise, use_clipped_model_output=True).prev_sample
        theirs.append(x)
    diffusion = replace(LINEAR, prediction={"epsilon": "epsilon", "v_prediction": "v", "sample": "x0"}[kind])  # type: ignore[arg-type]
    steps = diffusers_ddim_steps(1000, 25, spacing)  # type: ignore[arg-type]
    states = ddim(diffusion, GMM, start, steps, noise=lambda k: noises[k], eta=eta)
    close(trajectory(start, states), torch.stack(theirs), 2e-4)


@pytest.mark.parametrize("count", [1000, 30, 1])
def test_eta_1_is_ancestral_sampling_with_the_posteriors_variance(count: int) -> None:
    generator = torch.Generator().manual_seed(1)
    start = torch.randn(2, 1, 4, 4, generator=generator, dtype=torch.float64)
    noises = torch.randn(count, 2, 1, 4, 4, generator=generator, dtype=torch.float64)
    steps, noise = spaced_steps(1000, count, "quadratic"), lambda k: noises[k]
    small = replace(LINEAR, variance="fixed_small")
    one = trajectory(start, ddim(LINEAR, GMM, start, steps, noise=noise, eta=1))
    close(one, trajectory(start, ancestral(small, GMM, start, steps, noise=noise)), 1e-9)
    if count > 1:  # and with another variance it is not
        large = replace(LINEAR, variance="fixed_large")
        assert (one - trajectory(start, ancestral(large, GMM, start, steps, noise=noise))).abs().max() > 0.01


def test_noise_is_asked_for_where_it_is_needed() -> None:
    start, steps = torch.zeros(1, 1, 2, 2), spaced_steps(1000, 4)
    drawn: list[int] = []

    def noise(k: int) -> torch.Tensor:
        drawn.append(k)
        return torch.zeros(1, 1, 2, 2)

    list(ddim(LINEAR, GMM, start, steps, noise=noise))
    assert drawn == []
    list(ddim(LINEAR, GMM, start, steps, noise=noise, eta=0.5))
    assert drawn == [0, 1, 2]  # none at the last step
    with pytest.raises(ValueError, match="eta > 0 needs noise"):
        next(ddim(LINEAR, GMM, start, steps, eta=0.5))


@pytest.mark.parametrize(("file", "c", "tolerance"), [("process.npz", "c3", 1e-3), ("process_f64.npz", "c1", 1e-10)])
def test_noise_from_an_estimate_equals_improved_diffusion(golden: Path, file: str, c: str, tolerance: float) -> None:
    tables = {name: torch.from_numpy(array) for name, array in arrays(golden / file).items()}
    eps = LINEAR.eps_of(tables[f"x0.{c}"], tables[f"q_sample.{c}"], tables["t"] + 1)
    close(eps, tables[f"eps_from_xstart.{c}"], tolerance)


def test_inversion_equals_improved_diffusion(golden: Path) -> None:
    tables, tag = arrays(golden / "samplers_improved.npz"), "ddim_reverse.gmm.spddim20.noclip"
    steps = improved_steps(1000, "ddim20")[:-1]  # theirs calls the image x_1
    net, start = Watched(GMM), torch.from_numpy(0.5 * tables["x_T"])
    states = list(ddim_invert(LINEAR, net, start, steps))
    close(trajectory(start, states), tables[f"{tag}.x"][:-1], 1e-4)
    assert [t - 1 for t in net.times] == tables[f"{tag}.timesteps"].tolist()[:-1]
    # Their last step goes to alpha_bar = 0, which is nowhere in the schedule: pure eps.
    x = states[-1].x
    x0 = LINEAR.denoise(net, x, 951, clip=False)
    close(LINEAR.eps_of(x0, x, 951), tables[f"{tag}.x"][-1], 1e-4)


def test_inversion_leads_to_a_latent_that_leads_back() -> None:
    """The way back misses the image by less the more steps there are, at first order."""
    generator = torch.Generator().manual_seed(2)
    image = 0.8 * torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64).sign()
    image = image + 0.35 * torch.randn(4, 1, 8, 8, generator=generator, dtype=torch.float64)
    missed = {}
    for count in (50, 200, 1000):
        steps = spaced_steps(1000, count)
        *_, latent = ddim_invert(LINEAR, GMM, image, steps)
        assert latent.t == 1000
        assert 0.9 < float(latent.x.std()) < 1.1
        *_, back = ddim(LINEAR, GMM, latent.x, steps, clip=False)
        missed[count] = float((back.x - image).abs().max())
    assert missed[1000] < 0.03
    assert missed[200] < 0.3 * missed[50]
    assert missed[1000] < 0.3 * missed[200]


def test_pure_noise_at_T_is_no_special_case() -> None:
    """alpha_bar[T] = 0, with a network that predicts v."""
    jsd = Diffusion(schedule=make_schedule("jsd", 100), prediction="v")
    x0 = torch.full((1, 1, 2, 2), 0.4)
    eps = torch.randn(1, 1, 2, 2, generator=torch.Generator().manual_seed(0))
    oracle = lambda x, t: jsd.target(x0, eps, x, t.long())  # noqa: E731
    *_, last = ddim(jsd, oracle, eps, spaced_steps(100, 7))
    close(last.x, x0, 1e-6)
