"""The command line: any arguments end in success or in one readable error with its exit code."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ddpm import cli, run
from ddpm.config import to_yaml
from ddpm.run import Finished
from tests.data.files import save
from tests.fuzz.guard import assert_readable, cases, one_case, outcomes
from tests.reliability.test_ages import GOLDEN
from tests.tiny import tiny

RUN_FOR_REAL = {"train", "sample", "config", "info", "interpolate", "inpaint", "edit"}
"""Commands that are quick on a tiny model; of the others the arguments are parsed."""

FILES = (
    "sound.pt",
    "damaged.pt",
    "absent.pt",
    ".",
    "c.yaml",
    "grey.png",
    "image/digits/ddpm_8x8",
    "x" * 300,
    "a/b",
    "new",
)
VALUES = (
    "0",
    "1",
    "2",
    "3",
    "-1",
    "1e3",
    "nan",
    "inf",
    "-inf",
    "0.5",
    "",
    " ",
    "x",
    "é",
    "%s",
    "../..",
    "a,b",
    "0,1",
    "1,0",
)
VALUES += (
    "1,2,3,4",
    "0,0,2,2",
    "all",
    "none",
    "ddim",
    "heun",
    "karras",
    "cpu",
    "cuda:99",
    "tpu",
    "9" * 30,
    "٣",
    "0x10",
    "--",
)
VALUES += (
    "training.steps=3",
    "training.steps=0",
    "network.channels=6",
    "data.source=1",
    "=",
    "a.b.c=1",
    "dynamic",
    "off",
)


def _parsers() -> dict[str, argparse.ArgumentParser]:
    (commands,) = (a for a in cli._parser()._actions if isinstance(a, argparse._SubParsersAction))
    return dict(commands.choices)


PARSERS = _parsers()
OPTIONS = {
    name: sorted({option for action in parser._actions for option in action.option_strings} - {"-h", "--help"})
    for name, parser in PARSERS.items()
}


@pytest.fixture(scope="module", autouse=True)
def _here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    here = tmp_path_factory.mktemp("here")
    sound = gzip.decompress(GOLDEN.read_bytes())
    (here / "sound.pt").write_bytes(sound)
    (here / "damaged.pt").write_bytes(sound[:999])
    (here / "c.yaml").write_text(to_yaml(tiny()))
    save(here / "grey.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        patch.setenv("DDPM_DEVICE", "cpu")
        # Training itself has tests of its own, and would not end for some numbers of steps.
        patch.setattr(run, "train", lambda config, out, **options: Finished(Path(out), Path(out) / "x", 1))
        patch.setattr("ddpm.device.limit_memory", lambda device: None)
        yield


word = (
    st.sampled_from(FILES)
    | st.sampled_from(VALUES)
    | st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=6)
)


@cases(0.2)
@given(data=st.data())
def test_any_arguments(data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(RUN_FOR_REAL)) | st.sampled_from(sorted(PARSERS)))
    arguments = [name]
    first = "c.yaml" if name in ("train", "config") else "sound.pt"
    arguments += data.draw(st.just([first]) | st.just([first, "grey.png"]) | st.lists(word, max_size=3))
    for option in data.draw(st.lists(st.sampled_from(OPTIONS[name]), max_size=4) if OPTIONS[name] else st.just([])):
        arguments += [option, *data.draw(st.lists(word, max_size=1) | st.lists(word, min_size=1, max_size=2))]
    if name in ("sample", "interpolate", "inpaint", "edit"):
        arguments += ["--out", data.draw(st.sampled_from(("out", "out-2", "c.yaml", "c.yaml/x")))]
    ended(arguments)


@cases(0.04)
@given(arguments=st.lists(word | st.sampled_from(sorted(PARSERS)), max_size=5))
def test_any_words(arguments: list[str]) -> None:
    ended([word for word in arguments if word not in PARSERS.keys() - RUN_FOR_REAL - {"--"}])


def ended(arguments: list[str]) -> None:
    said, told = io.StringIO(), io.StringIO()
    with (
        one_case("command line"),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(told),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            if arguments[:1] and arguments[0] not in RUN_FOR_REAL:
                cli._parser().parse_args(arguments)
                code = 0
            else:
                code = cli.main(arguments)
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        assert code in (0, 1, 2), code
        if code:
            assert_readable(said.getvalue())
            outcomes["command line", "a readable error"] += 1
            outcomes["command line", "success"] -= 1
    assert not list(Path.cwd().rglob(".*.tmp")), "half-written output"
