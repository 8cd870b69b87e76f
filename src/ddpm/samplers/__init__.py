"""Samplers: generators of states, one file a family.

A file may share its name with its function: all are imported here, so that the name always means the function.
"""

from ddpm.samplers.ancestral import ancestral as ancestral
from ddpm.samplers.ddim import ddim as ddim
from ddpm.samplers.ddim import ddim_invert as ddim_invert
from ddpm.samplers.dpm_solver import dpm_solver as dpm_solver
from ddpm.samplers.dpm_solver import dpm_solver_sde as dpm_solver_sde
from ddpm.samplers.editing import edit as edit
from ddpm.samplers.editing import inpaint as inpaint
from ddpm.samplers.editing import interpolate as interpolate
from ddpm.samplers.editing import repaint_walk as repaint_walk
from ddpm.samplers.editing import steps_below as steps_below
from ddpm.samplers.edm import Churn as Churn
from ddpm.samplers.edm import euler as euler
from ddpm.samplers.edm import heun as heun
from ddpm.samplers.guidance import Guided as Guided
from ddpm.samplers.pndm import plms as plms
from ddpm.samplers.pndm import pndm as pndm
from ddpm.samplers.state import Noise as Noise
from ddpm.samplers.state import State as State
from ddpm.samplers.table import by_name as by_name
from ddpm.samplers.table import network_calls as network_calls
from ddpm.samplers.unipc import unipc as unipc
