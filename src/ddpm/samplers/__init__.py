"""Samplers: generators of states, one file a family."""

from ddpm.samplers.ancestral import ancestral as ancestral
from ddpm.samplers.state import Noise as Noise
from ddpm.samplers.state import State as State
