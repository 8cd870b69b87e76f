"""Checkpoints of other wrappers and other times."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ddpm import checkpoint, data
from ddpm.checkpoint import bare_name, load
from ddpm.faults import Faults
from ddpm.generate import load as load_model
from ddpm.generate import sample
from ddpm.run import train
from ddpm.training_loop import build_network, load_weights, new_state, restore_state, training_steps
from tests.reliability.compare import content
from tests.tiny import tiny

GOLDEN = Path(__file__).parent / "golden" / "diffusion-4.pt.gz"
"""Written by `python -m tests.reliability.golden`, which prints what is expected of it."""
EXPECTED = (0.9918201, 0.2271241)
EXPECTED_LEVELS = (132.6875, 139.578125)
CPU = torch.device("cpu")


class Distributed(torch.nn.Module):
    """What DistributedDataParallel does to names."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self.module = module


class Compiled(torch.nn.Module):
    """What torch.compile does to names."""

    def __init__(self, module: torch.nn.Module):
        super().__init__()
        self._orig_mod = module


WRAPPERS: dict[str, Callable[[torch.nn.Module], torch.nn.Module]] = {
    "none": lambda network: network,
    "compiled": Compiled,
    "distributed": Distributed,
    "both": lambda network: Distributed(Compiled(network)),
    "both, the other way": lambda network: Compiled(Distributed(network)),
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_the_wrappers_names_are_torchs_own(tmp_path: Path) -> None:
    network = build_network(tiny())
    compiled = torch.compile(network)
    assert isinstance(compiled, torch.nn.Module)
    assert list(compiled.state_dict()) == list(Compiled(network).state_dict())
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        parallel = torch.nn.parallel.DistributedDataParallel(network)
        assert list(parallel.state_dict()) == list(Distributed(network).state_dict())
    finally:
        torch.distributed.destroy_process_group()


@pytest.mark.parametrize("saved", WRAPPERS)
@pytest.mark.parametrize("loaded", WRAPPERS)
def test_weights_fit_whatever_their_networks_were_wrapped_in(saved: str, loaded: str) -> None:
    ours, theirs = build_network(tiny()), build_network(tiny(training__seed=1))
    names = list(ours.state_dict())
    assert [bare_name(name) for name in names] == names
    source, target = WRAPPERS[saved](ours), WRAPPERS[loaded](theirs)
    assert (list(source.state_dict()) == names) == (saved == "none")
    load_weights(target, source.state_dict(), "here")
    assert all(torch.equal(value, theirs.state_dict()[name]) for name, value in ours.state_dict().items())


def test_what_is_saved_under_a_wrapper_has_plain_names(tmp_path: Path) -> None:
    done = train(tiny(training__steps=1, training__kernels="plain"), tmp_path, device=CPU, progress=False)
    whole = load(done.checkpoint)
    network = Distributed(Compiled(build_network(whole.config)))
    load_weights(network, whole.network, "here")
    checkpoint.save(tmp_path / "wrapped.pt", replace(whole, network=network.state_dict()))
    assert content(tmp_path / "wrapped.pt")["network"].keys() == whole.network.keys()
    # And a file that another program saved with the prefixes.
    foreign = content(done.checkpoint)
    foreign["network"] = network.state_dict()
    foreign["ema"] = {f"module.{name}": value for name, value in foreign["ema"].items()}
    torch.save(foreign, tmp_path / "foreign.pt")
    state = restore_state(load(tmp_path / "foreign.pt"), whole.config, device=CPU)
    assert all(torch.equal(value, whole.network[name]) for name, value in state.network.state_dict().items())
    assert sample(load_model(tmp_path / "foreign.pt", device="cpu"), 1).shape == (1, 8, 8, 1)


@pytest.fixture
def golden_file(tmp_path: Path) -> Path:
    path = tmp_path / "diffusion-4.pt"
    path.write_bytes(gzip.decompress(GOLDEN.read_bytes()))
    return path


def test_a_checkpoint_of_this_version_stays_loadable(golden_file: Path) -> None:
    saved = load(golden_file)
    assert (saved.step, saved.precision, saved.faults) == (4, "float32", Faults(skipped=1))
    assert content(golden_file)["version"] == checkpoint.VERSION
    assert saved.loss_history["counts"].tolist() == [10, 10]
    state = restore_state(saved, saved.config, device=CPU)
    config = saved.config.model_copy(update={"training": saved.config.training.model_copy(update={"steps": 5})})
    (step,) = training_steps(config, state, data.load(config.data, progress=False))
    # Rounding differs from machine to machine; a lost moment or another draw would differ by much more.
    np.testing.assert_allclose([float(step.loss), float(step.grad_norm)], EXPECTED, rtol=1e-4)
    drawn = sample(load_model(golden_file, device="cpu"), 2)
    assert np.abs(drawn.reshape(2, -1).mean(1) - EXPECTED_LEVELS).max() < 1


def test_a_checkpoint_of_version_1_loads(golden_file: Path) -> None:
    """It had no counts of faults, and the earliest no kernels, and kept the optimiser's settings."""
    old = content(golden_file) | {"version": 1}
    for name in ("faults", "kernels", "compiled"):
        del old[name]
    old["optimizer"]["param_groups"] = new_state(load(golden_file).config, device=CPU).optimizer.state_dict()[
        "param_groups"
    ]
    torch.save(old, golden_file)
    saved = load(golden_file)
    assert (saved.faults, saved.kernels, saved.compiled) == (Faults(), "plain", False)
    assert restore_state(saved, saved.config, device=CPU).step == 4
