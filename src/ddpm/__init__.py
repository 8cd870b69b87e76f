"""Denoising Diffusion Probabilistic Models (Ho, Jain, Abbeel 2020, arXiv 2006.11239).

    import ddpm

    config = ddpm.load_config("image/mnist/ddpm_cpu")
    finished = ddpm.train(config, "output/mine")
    model = ddpm.load(finished.checkpoint)
    images = ddpm.sample(model, 16)        # uint8 (16, 28, 28, 1)

Names are imported when they are first used, so that `import ddpm` is cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ddpm.config import Config as Config
    from ddpm.config import load_config as load_config
    from ddpm.diffusion import Diffusion as Diffusion
    from ddpm.diffusion import Dynamic as Dynamic
    from ddpm.errors import DDPMError as DDPMError
    from ddpm.gaussian import Gaussian as Gaussian
    from ddpm.generate import Model as Model
    from ddpm.generate import load as load
    from ddpm.generate import sample as sample
    from ddpm.run import train as train
    from ddpm.samplers import Churn as Churn
    from ddpm.samplers import State as State
    from ddpm.samplers import ancestral as ancestral
    from ddpm.samplers import ddim as ddim
    from ddpm.samplers import ddim_invert as ddim_invert
    from ddpm.samplers import dpm_solver as dpm_solver
    from ddpm.samplers import dpm_solver_sde as dpm_solver_sde
    from ddpm.samplers import euler as euler
    from ddpm.samplers import heun as heun
    from ddpm.samplers import plms as plms
    from ddpm.samplers import pndm as pndm
    from ddpm.samplers import unipc as unipc
    from ddpm.schedule import NoiseSchedule as NoiseSchedule
    from ddpm.schedule import karras_steps as karras_steps
    from ddpm.schedule import make_schedule as make_schedule
    from ddpm.schedule import sampling_steps as sampling_steps
    from ddpm.schedule import spaced_steps as spaced_steps
    from ddpm.shipped import pretrained as pretrained
    from ddpm.training_loop import TrainingState as TrainingState
    from ddpm.training_loop import training_steps as training_steps
    from ddpm.unet import UNet as UNet

_HOME = {
    "Config": "config",
    "load_config": "config",
    "Diffusion": "diffusion",
    "Dynamic": "diffusion",
    "DDPMError": "errors",
    "Gaussian": "gaussian",
    "Model": "generate",
    "load": "generate",
    "sample": "generate",
    "train": "run",
    "State": "samplers",
    "Churn": "samplers",
    "ancestral": "samplers",
    "ddim": "samplers",
    "ddim_invert": "samplers",
    "dpm_solver": "samplers",
    "dpm_solver_sde": "samplers",
    "euler": "samplers",
    "heun": "samplers",
    "plms": "samplers",
    "pndm": "samplers",
    "unipc": "samplers",
    "NoiseSchedule": "schedule",
    "karras_steps": "schedule",
    "make_schedule": "schedule",
    "sampling_steps": "schedule",
    "spaced_steps": "schedule",
    "pretrained": "shipped",
    "TrainingState": "training_loop",
    "training_steps": "training_loop",
    "UNet": "unet",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ddpm' has no attribute {name!r}")
    value = getattr(import_module(f"ddpm.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
