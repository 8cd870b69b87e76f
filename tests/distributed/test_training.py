"""A step is the same step for any number of processes, however they hold the network."""

from __future__ import annotations

from typing import NamedTuple
from unittest import mock

import pytest
import torch
from torch import Tensor

from ddpm import data, training_loop
from ddpm.errors import ConfigError
from ddpm.images import to_model
from ddpm.noise import normal_of_images
from ddpm.shards import is_split, whole_state
from ddpm.training_loop import new_state, training_steps
from tests.distributed.processes import together
from tests.tiny import tiny

CPU = torch.device("cpu")


class Ran(NamedTuple):
    losses: list[float]
    norms: list[float]
    weights: dict[str, Tensor]
    ema: dict[str, Tensor]
    history: dict[str, Tensor]
    split: bool


def _run(changes: dict[str, object], *, double: bool = True) -> Ran:
    """The tiny run, in float64 from the data on."""
    config = tiny(training__kernels="plain", **changes)
    images = data.load(config.data, "train", progress=False)
    state = new_state(config, device=CPU)
    with mock.patch.multiple(
        training_loop,
        to_model=lambda x: to_model(x).double() if double else to_model(x),
        normal_of_images=lambda *a: normal_of_images(*a).double() if double else normal_of_images(*a),
    ):
        if double:
            state.network.double()
            state.ema.double()
        steps = list(training_steps(config, state, images))
    return Ran(
        [float(s.loss) for s in steps],
        [float(s.grad_norm) for s in steps],
        whole_state(state.network.state_dict()),
        whole_state(state.ema.state_dict()),
        state.loss_history.tensors() if state.loss_history else {},
        any(map(is_split, state.network.parameters())),
    )


def _distance(one: Ran, other: Ran) -> float:
    """The largest difference of any loss, norm or weight."""
    lists = ((one.losses, other.losses), (one.norms, other.norms))
    pairs = [(torch.tensor(a, dtype=torch.float64), torch.tensor(b, dtype=torch.float64)) for a, b in lists]
    for mine, theirs in ((one.weights, other.weights), (one.ema, other.ema), (one.history, other.history)):
        assert mine.keys() == theirs.keys()
        pairs += [(mine[key], theirs[key]) for key in mine]
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)


PLAIN: dict[str, object] = {"network__dropout": 0.0, "training__batch_size": 12}


@pytest.mark.parametrize(
    ("count", "changes"),
    [
        (2, {}),
        (3, {}),
        (2, {"training__accumulation": 3}),
        pytest.param(2, {"training__parallel": "fsdp"}, marks=pytest.mark.slow),
        (2, {"training__parallel": "fsdp", "training__accumulation": 2}),
        (2, {"training__timesteps": "importance", "diffusion__timesteps": 3, "sampling__steps": 3}),
    ],
    ids=str,
)
def test_each_step_is_that_of_one_process(count: int, changes: dict[str, object]) -> None:
    alone = _run(PLAIN | {k: v for k, v in changes.items() if k != "training__accumulation"})
    for found in together(count, _run, PLAIN | changes):
        assert _distance(alone, found) < 1e-9
        assert found.split == ("training__parallel" in changes)
    other = _run(PLAIN | changes | {"training__seed": 1})
    assert _distance(alone, other) > 1e-3


def test_with_dropout_processes_are_parts() -> None:
    parts = _run({"training__accumulation": 2})
    assert _distance(parts, together(2, _run, {})[1]) < 1e-9
    assert _distance(parts, _run({})) > 1e-4  # whole batches draw other dropout


def test_in_float32_the_weights_agree_to_rounding() -> None:
    alone, (found, _) = _run(PLAIN, double=False), together(2, _run_single, PLAIN)
    assert 0 < _distance(alone, found) < 1e-4


def _run_single(changes: dict[str, object]) -> Ran:
    return _run(changes, double=False)


def test_a_batch_that_cannot_be_shared_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"batch_size: 8 cannot be shared equally by 3 processes\. Use 6 or 9"):
        together(3, _run, {})
