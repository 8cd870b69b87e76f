"""The checkpoint loader: damaged bytes, and whole files that hold something else."""

from __future__ import annotations

import copy
import gzip
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ddpm import checkpoint, training_loop
from ddpm.generate import load as load_model
from tests.fuzz.damage import Edit, damaged, edits
from tests.fuzz.guard import cases, one_case
from tests.reliability.compare import content as content_of
from tests.reliability.compare import different, leaves
from tests.reliability.test_ages import GOLDEN

SOUND = gzip.decompress(GOLDEN.read_bytes())
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoints") / "sound.pt"
    path.write_bytes(SOUND)
    return path


@cases(0.06)
@given(changes=edits)
def test_damaged_bytes(sound: Path, changes: list[Edit]) -> None:
    path = sound.with_name("damaged.pt")
    path.write_bytes(damaged(SOUND, changes))
    with one_case("checkpoint: bytes"):
        checkpoint.load(path)
        assert different(sound, path) == []  # what is accepted is what was saved


odd = (
    st.none()
    | st.booleans()
    | st.integers(-2, 5)
    | st.sampled_from([2**40, 2**63, -(2**64), 1.5, float("nan"), "", "x", "float16", [], [1, 2], {}, {"a": 1}, {1: 2}])
    | st.sampled_from(
        [
            torch.zeros(0),
            torch.zeros(()),
            torch.zeros(1).expand(2**30),
            torch.zeros(3, dtype=torch.int8),
            torch.tensor([float("nan")]),
            torch.zeros(2, 2).to_sparse(),
            torch.zeros(3, dtype=torch.complex64),
            torch.nn.Parameter(torch.ones(2)),
        ]
    )
)


@cases(0.06)
@given(data=st.data())
def test_other_content(sound: Path, data: st.DataObject) -> None:
    content = copy.deepcopy(content_of(sound))
    for _ in range(data.draw(st.integers(1, 3))):
        places = [path[: data.draw(st.integers(1, len(path)))] for path, _ in leaves(content)]
        places = [path for path in places if path and path[0] != "config"]
        *way, last = data.draw(st.sampled_from(places))
        holder: Any = content
        for key in way:
            holder = holder[key]
        if data.draw(st.booleans()) and isinstance(holder, dict):
            del holder[last]
        else:
            holder[last] = data.draw(odd)
    path = sound.with_name("other.pt")
    torch.save(content, path)
    with one_case("checkpoint: content"):
        saved = checkpoint.load(path)
        load_model(path, device="cpu")
        training_loop.restore_state(saved, saved.config, device=CPU)


@cases(0.03)
@given(
    key=st.sampled_from(("channels", "multipliers", "heads", "blocks", "classes")),
    value=st.integers(0, 5) | st.sampled_from([2**20, 2**31, 2**62, [1] * 30, [2**30]]),
)
def test_settings_that_do_not_fit_the_weights(sound: Path, key: str, value: Any) -> None:
    content = copy.deepcopy(content_of(sound))
    content["config"]["network"][key] = value
    path = sound.with_name("settings.pt")
    torch.save(content, path)
    with one_case("checkpoint: settings"):
        load_model(path, device="cpu")
