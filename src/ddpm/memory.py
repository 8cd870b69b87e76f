"""What to do when a training step does not fit into memory."""

from __future__ import annotations

import torch

from ddpm.config import Config
from ddpm.device import autocast, describe, is_out_of_memory
from ddpm.training_loop import TrainingState


def memory_advice(config: Config, state: TrainingState) -> str:
    """What to do when a training step does not fit, found by trying smaller ones."""
    training = config.training
    size = training.batch_size // training.accumulation
    tried = f"out of memory: a training step with {size} images at a time does not fit {describe(state.device)}."
    while size > 1:
        size = max(k for k in range(1, size // 2 + 1) if training.batch_size % k == 0)
        if _fits(config, state, size):
            break
    else:
        return f"{tried} Not even one image does: use a smaller network or image"
    advice = [
        f"{size} images do: --set training.accumulation={training.batch_size // size} gives the same batch of "
        f"{training.batch_size} in parts, --set training.batch_size={size} a smaller batch"
    ]
    if state.precision == "float32" and state.device.type == "cuda":
        advice.append("--set training.precision=bfloat16 needs about half the memory")
    return f"{tried} {'; '.join(advice)}"


def _fits(config: Config, state: TrainingState, size: int) -> bool:
    """Whether forward and backward of `size` images run without exhausting the memory."""
    state.network.zero_grad(set_to_none=True)
    if state.device.type == "cuda":
        torch.cuda.empty_cache()
    try:
        x = torch.zeros(size, config.data.channels, *config.data.size, device=state.device)
        with autocast(state.precision, state.device):
            state.network(x, torch.ones(size, device=state.device)).float().sum().backward()
    except (RuntimeError, MemoryError) as error:
        if is_out_of_memory(error):
            return False
        raise
    return True
