"""The configuration loader: any text, any setting."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm.config import Config, load_config, plain, to_yaml
from ddpm.errors import ConfigError
from tests.fuzz.guard import cases, one_case
from tests.tiny import tiny

VALID = plain(tiny())
KEYS = [f"{section}.{key}" for section, keys in VALID.items() for key in keys]
WORDS = ["data", "training", "steps", ":", "- ", "{", "}", "[", "]", "&a", "*a", "<<: *a", "!!int", "!x", "|", ">", "#"]
WORDS += ["\n", "\n  ", "\t", "? ", "'", '"', "%YAML 1.1\n", "---\n", "...", "null", "yes", "1e400", "0x" + "f" * 4000]
WORDS += [
    "9" * 5000,
    ".nan",
    "2001-01-01",
    "~",
    ",",
    "\0",
    "\ud7ff",
    "\u2028",
    "digits",
    "source",
    "8",
    "!!python/name:os",
]

values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 40)
    | st.sampled_from([2**31, 2**63, 2**64, -(2**70), 10**4000, 1e300, -0.0, 1e-320, float("nan"), float("inf")])
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["ancestral", "linear", "epsilon", "learned_range", "hybrid", "importance", "all", "pad", "digits"]
    ),
    lambda part: st.lists(part, max_size=4) | st.dictionaries(st.text(max_size=5), part, max_size=3),
    max_leaves=6,
)


def check(path: Path, overrides: list[str]) -> None:
    config = load_config(path, overrides)
    assert isinstance(config, Config)
    path.write_text(to_yaml(config), encoding="utf-8")
    assert load_config(path) == config


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("config") / "c.yaml"


@cases(0.1)
@given(content=st.binary(max_size=200) | st.lists(st.sampled_from(WORDS), max_size=25).map("".join).map(str.encode))
def test_any_file(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with one_case("config: text"):
        check(path, [])


@cases(0.15)
@given(changes=st.dictionaries(st.sampled_from([*KEYS, "data.x", "sampling", "more"]), values, min_size=1, max_size=4))
def test_any_settings(path: Path, changes: dict[str, Any]) -> None:
    content = copy.deepcopy(VALID)
    for key, value in changes.items():
        section, _, name = key.partition(".")
        if name and isinstance(content.get(section), dict):
            content[section][name] = value
        else:
            content[section] = value
    with one_case("config: settings"):
        try:
            text = json.dumps(content)
        except ValueError:  # a number that Python itself will not write
            raise ConfigError("no such file can be written") from None
        path.write_text(text.replace("NaN", ".nan").replace("Infinity", ".inf"), encoding="utf-8", errors="replace")
        check(path, [])


@cases(0.1)
@given(
    override=st.one_of(
        st.text(max_size=20),
        st.tuples(st.sampled_from(KEYS), st.lists(st.sampled_from(WORDS), max_size=8)).map(
            lambda pair: f"{pair[0]}={''.join(pair[1])}"
        ),
        st.tuples(st.sampled_from(KEYS), st.text(max_size=12)).map("=".join),
    )
)
def test_any_override(path: Path, override: str) -> None:
    path.write_text(to_yaml(tiny()))
    with one_case("config: --set"):
        check(path, [override])
