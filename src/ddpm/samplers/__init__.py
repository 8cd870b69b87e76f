"""Samplers: generators of states, one file a family."""

from ddpm.samplers.ancestral import ancestral as ancestral
from ddpm.samplers.editing import edit as edit
from ddpm.samplers.editing import inpaint as inpaint
from ddpm.samplers.editing import interpolate as interpolate
from ddpm.samplers.editing import repaint_walk as repaint_walk
from ddpm.samplers.editing import steps_below as steps_below
from ddpm.samplers.state import Noise as Noise
from ddpm.samplers.state import State as State
