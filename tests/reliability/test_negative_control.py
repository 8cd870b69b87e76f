"""Each item of a checkpoint matters: left out, or put back to what a fresh run has, a resumed run is not the same.

The items are those that the checkpoint itself holds.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import torch

from ddpm import checkpoint, training_loop
from ddpm.config import parse_config
from ddpm.errors import CheckpointError, ConfigError
from ddpm.run import train
from tests.reliability.compare import content, leaves, unlike
from tests.reliability.runs import rich
from tests.reliability.worker import with_nan

STEP = 4
CPU = torch.device("cpu")
Key = tuple[Any, ...]


@pytest.fixture(scope="module")
def config(root: Path) -> Any:
    return rich(
        root,
        training__skip_limit=2,
        training__save_every=STEP,
        training__steps=6,
        training__preview_every=3,
        training__log_every=3,
    )


@pytest.fixture(scope="module")
def whole(config: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that was set back once, and skipped a step after that, before its checkpoint."""
    out = tmp_path_factory.mktemp("control") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DDPM_CACHE", f"{config.data.root}.cache")
        nan = with_nan(training_loop._accumulate_gradients, {(0, 1), (0, 2), (1, 3)})
        patch.setattr(training_loop, "_accumulate_gradients", nan)
        train(config, out, device=CPU, progress=False)
    return out


@pytest.fixture(scope="module")
def saved(whole: Path) -> dict[str, Any]:
    return content(whole / f"diffusion-{STEP}.pt")


def resumed(saved: dict[str, Any], whole: Path, config: Any, out: Path) -> list[str]:
    """What differs from `whole` in a run that goes on from this content, in a folder like that of `whole` then."""
    out.mkdir()
    torch.save(saved, out / f"diffusion-{STEP}.pt")
    (out / "samples").mkdir()
    for name in ("diffusion-0.pt", "metrics.jsonl", "samples/step-3.png"):
        (out / name).write_bytes((whole / name).read_bytes())
    train(config, out, device=CPU, progress=False)
    return unlike(whole, out)


def without(saved: dict[str, Any], key: Key) -> dict[str, Any]:
    """A copy that lacks one entry of a dictionary."""
    first, *rest = key
    if not rest:
        return {name: part for name, part in saved.items() if name != first}
    return saved | {first: without(saved[first], tuple(rest))}


def entries(value: Any, key: Key = ()) -> list[Key]:
    """The place of every entry of every dictionary."""
    if not isinstance(value, dict):
        return []
    return [place for name, part in value.items() for place in ((*key, name), *entries(part, (*key, name)))]


def test_as_it_is_it_ends_the_same(saved: dict[str, Any], whole: Path, config: Any, tmp_path: Path) -> None:
    assert saved["faults"] == {"skipped": 3, "in_a_row": 0, "rollbacks": 1}
    assert resumed(saved, whole, config, tmp_path / "run") == []


def test_nothing_may_be_left_out(
    saved: dict[str, Any], config: Any, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each entry left out in turn is refused, or is a setting whose default is what was left out."""
    asked, refused = parse_config(saved["config"], source="saved"), set()
    network = training_loop.build_network(config)
    monkeypatch.setattr(training_loop, "build_network", lambda _: network)  # one is enough to refuse weights
    for place in entries(saved):
        read = without(saved, place)
        monkeypatch.setattr(checkpoint, "_read", lambda path, read=read: read)
        try:
            loaded = checkpoint.load(whole / f"diffusion-{STEP}.pt")
            if place[0] == "config" and loaded.config == asked:
                continue
            assert place[0] == "config" or training_loop.restore_state(loaded, config, device=CPU) is None, place
            assert loaded.config != asked, place
        except (CheckpointError, ConfigError):
            pass
        refused.add(place[0])
    assert refused == saved.keys()
    assert len(entries(saved)) > 300


def stale(saved: dict[str, Any], config: Any) -> dict[str, dict[str, Any]]:
    """Copies in which one kind of item is what it is in a fresh run, by its name."""
    fresh = training_loop.new_state(config, device=CPU)
    weights = {"network": fresh.network.state_dict(), "ema": fresh.ema.state_dict()}
    kinds: dict[str, list[tuple[Key, Any]]] = defaultdict(list)
    for key, value in leaves(saved):
        if key[0] in ("format", "version", "config", "data", "precision", "kernels", "compiled"):
            continue  # facts of the run, the same from its first step on
        match value:
            case torch.Tensor():
                new: Any = weights[key[0]][key[1]] if key[0] in weights else torch.zeros_like(value)
                same = torch.equal(value, new)
            case _:
                new = type(value)() if isinstance(value, int | float) else value
                same = new == value
        if not same:
            kinds[key[0] if key[0] in weights else ".".join((key[0], str(key[-1])))].append((key, new))
    copies = {}
    for kind, changes in kinds.items():
        copies[kind] = copied = copy.deepcopy(saved)
        for key, new in changes:
            holder = copied
            for part in key[:-1]:
                holder = holder[part]
            holder[key[-1]] = new
    return copies


def test_nothing_may_be_begun_anew(saved: dict[str, Any], whole: Path, config: Any, tmp_path: Path) -> None:
    copies = stale(saved, config)
    assert {
        "step.step",
        "network",
        "ema",
        "optimizer.exp_avg",
        "optimizer.exp_avg_sq",
        "optimizer.step",
        "loss_history.losses",
        "loss_history.counts",
        "faults.skipped",
        "faults.rollbacks",
    } <= copies.keys()
    assert {kind.partition(".")[0] for kind in copies} >= saved.keys() - {
        *("format", "version", "config", "data", "precision", "kernels", "compiled", "scaler")
    }
    for kind, copied in copies.items():
        assert resumed(copied, whole, config, tmp_path / kind), f"{kind} makes no difference"
