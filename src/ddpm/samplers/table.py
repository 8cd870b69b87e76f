"""From a sampler's name and settings to its states: what the configuration and the command line select by."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

from ddpm.choices import EFFECTIVE, SamplerName
from ddpm.diffusion import Clip, Diffusion, Net
from ddpm.samplers.ancestral import ancestral
from ddpm.samplers.ddim import ddim
from ddpm.samplers.dpm_solver import Order, dpm_solver, dpm_solver_sde
from ddpm.samplers.edm import Churn, euler, heun
from ddpm.samplers.line import PURE
from ddpm.samplers.pndm import plms, pndm
from ddpm.samplers.state import Noise, State
from ddpm.samplers.unipc import unipc
from ddpm.schedule import NoiseSchedule, Steps


def network_calls(name: SamplerName, schedule: NoiseSchedule, steps: Steps) -> int:
    """How often each image goes through the network on the way of `steps`."""
    count = len(steps)
    costly = [k for k, (t, s) in enumerate(steps) if s > 0 and schedule.sigma(t) ** 2 < 1 / PURE - 1]
    match name:
        case "heun":
            return count + len(costly)
        case "pndm":
            return count + 3 * sum(k < 3 for k in costly)
        case "plms":
            return count + sum(k == 0 for k in costly)
        case _:
            return count


def by_name(
    name: SamplerName,
    diffusion: Diffusion,
    net: Net,
    x: Tensor,
    steps: Steps,
    *,
    noise: Noise,
    clip: Clip = True,
    eta: float | None = None,
    order: Order | None = None,
    churn: float | None = None,
) -> Iterator[State]:
    """The states of the sampler called `name`; see it for the arguments.

    Args:
        eta: of ddim (None: 0).
        order: of dpm_solver, dpm_solver_sde and unipc (None: 2).
        churn: S_churn of heun and euler (None: 0).

    Raises:
        ValueError: an unknown name, or a setting that has no effect on the sampler.
    """
    if name not in EFFECTIVE:
        raise ValueError(f"unknown sampler {name!r}; expected {', '.join(EFFECTIVE)}")
    given = {key for key, value in {"eta": eta, "order": order, "churn": churn}.items() if value is not None}
    if idle := sorted(given - set(EFFECTIVE[name])):
        raise ValueError(f"{idle[0]} has no effect on the sampler {name!r}")
    match name:
        case "ancestral":
            return ancestral(diffusion, net, x, steps, noise=noise, clip=clip)
        case "ddim":
            return ddim(diffusion, net, x, steps, noise=noise, eta=eta or 0.0, clip=clip)
        case "dpm_solver":
            return dpm_solver(diffusion, net, x, steps, order=order or 2, clip=clip)
        case "dpm_solver_sde":
            return dpm_solver_sde(diffusion, net, x, steps, noise=noise, order=order or 2, clip=clip)
        case "unipc":
            return unipc(diffusion, net, x, steps, order=order or 2, clip=clip)
        case "heun":
            return heun(diffusion, net, x, steps, noise=noise, churn=Churn(churn or 0.0), clip=clip)
        case "euler":
            return euler(diffusion, net, x, steps, noise=noise, churn=Churn(churn or 0.0), clip=clip)
        case "pndm":
            return pndm(diffusion, net, x, steps, clip=clip)
        case "plms":
            return plms(diffusion, net, x, steps, clip=clip)
