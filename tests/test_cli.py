"""The command line as a user meets it: exit codes, messages, no traceback, quick help."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from ddpm.cli import main
from ddpm.config import load_config, to_yaml
from tests.tiny import tiny


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "configs" / "image" / "digits" / "tiny.yaml"
    path.parent.mkdir(parents=True)
    path.write_text(to_yaml(tiny()))
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _run(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as error:  # argparse's own exits
        return int(error.code or 0)


def test_train_then_sample(config: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("train", str(config), "--device", "cpu") == 0
    run = here / "output" / "image" / "digits" / "tiny.yaml"
    assert (run / "diffusion-6.pt").is_file()
    checkpoint = str(run / "diffusion-6.pt")
    assert _run("sample", checkpoint, "--num-samples", "3", "--gif", "--device", "cpu") == 0
    folder = here / "output" / "image" / "digits" / "sample" / "tiny.yaml"
    assert {"grid.png", "00002.png", "samples.npz", "reverse-process.gif"} <= {p.name for p in folder.iterdir()}
    assert str(folder.relative_to(here)) in capsys.readouterr().out
    # Another seed does not mix with the first set, nor replace it.
    assert _run("sample", checkpoint, "--num-samples", "3", "--seed", "1", "--device", "cpu") == 0
    assert (folder.with_name("tiny.yaml-2") / "grid.png").is_file()
    # A named folder is never guessed around.
    assert _run("sample", checkpoint, "--num-samples", "3", "--seed", "1", "--out", str(folder)) == 2
    assert "seed: 0 -> 1" in capsys.readouterr().err


def test_sample_json(config: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run("train", str(config), "--out", "run")
    capsys.readouterr()
    arguments = ["--num-samples", "2", "--start-index", "5", "--steps", "4", "--weights", "raw", "--json"]
    assert _run("sample", "run/diffusion-6.pt", "--out", "s", *arguments) == 0
    summary = json.loads(capsys.readouterr().out)
    assert (summary["count"], summary["steps"], summary["weights"], summary["made"]) == (2, 4, "raw", 2)
    assert {p.name for p in Path("s").glob("0*.png")} == {"00005.png", "00006.png"}
    assert np.load("s/samples.npz")["arr_0"].shape == (2, 8, 8, 1)


def test_samplers_by_name(config: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run("train", str(config), "--out", "run")
    capsys.readouterr()
    common = ("sample", "run/diffusion-6.pt", "--num-samples", "1", "--steps", "5")
    for name, calls in (("ddim", 5), ("heun", 9), ("pndm", 14), ("plms", 6), ("dpm_solver", 5)):
        assert _run(*common, "--sampler", name, "--spacing", "trailing", "--out", name, "--json") == 0
        summary = json.loads(capsys.readouterr().out)
        assert (summary["sampler"], summary["steps"], summary["network_calls"]) == (name, 5, calls)
    options = ("--order", "3", "--clip", "dynamic")
    assert _run(*common, "--sampler", "unipc", *options, "--out", "u") == 0
    assert _run(*common, "--sampler", "euler", "--churn", "2.5", "--clip", "off", "--out", "e") == 0
    assert _run(*common, "--sampler", "heun", "--out", "h") == 0
    assert "heun, 5 steps (9 network calls an image)" in capsys.readouterr().out
    assert json.loads(Path("e/settings.json").read_text())["churn"] == 2.5
    assert _run(*common, "--sampler", "heun", "--eta", "0.5", "--out", "x") == 2
    assert "eta: 0.5 has no effect on the sampler heun" in capsys.readouterr().err
    assert not Path("x").exists()


def test_set_and_config(config: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("config", str(config), "--set", "training.steps=77") == 0
    printed = capsys.readouterr().out
    assert "--set training.steps=77" in printed
    assert "line " in printed
    assert "parameters" in printed
    assert _run("config", "image/cifar10/ddpm_32x32", "--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["parameters"] == 35_746_307
    # The paper's network: about 6 billion multiply-adds an image, twice as many operations.
    assert shown["gflop_per_image"] == pytest.approx(12.1, abs=0.4)
    assert shown["images"] == 800_000 * 128
    assert _run("config", "image/mnist/ddpm_32x32_epsilon_discrete", "--json") == 0
    assert json.loads(capsys.readouterr().out)["parameters"] == 35_204_480


def test_defaults_are_called_defaults(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("config", "image/digits/ddpm_8x8") == 0
    line = next(x for x in capsys.readouterr().out.splitlines() if "training.grad_clip" in x)
    assert line.split()[-1] == "default"


def test_info(config: Path, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run("train", str(config), "--out", "run")
    capsys.readouterr()
    assert _run("info", "run/diffusion-6.pt", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["step"] == 6
    assert facts["training_images"] == 1617
    assert len(facts["sha256"]) == 64
    assert facts["config"]["training"]["batch_size"] == 8
    assert _run("info", "run/diffusion-6.pt") == 0
    assert "batch_size: 8" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "absent.yaml"], 2, "no such file"),
        (["train", "image/digits/ddpm_8x8", "--set", "training.stepz=3"], 2, "Did you mean training.steps?"),
        (["train", "image/digits/ddpm_8x8", "--device", "tpu"], 2, "device 'tpu'"),
        (["train", "image/digits/ddpm_8x8", "--set", "training.precision=float16", "--device", "cpu"], 2, "float16"),
        (["train", "image/folder/template"], 1, "no such folder"),
        (["sample", "absent.pt"], 1, "no such checkpoint"),
        (["sample", "x.pt", "--num-samples", "0"], 2, "--num-samples"),
        (["sample", "x.pt", "--steps", "-4"], 2, "--steps"),
        (["sample", "x.pt", "--sampler", "dadim"], 2, "dpm_solver"),
        (["sample", "x.pt", "--spacing", "even"], 2, "karras"),
        (["sample", "x.pt", "--eta", "nan"], 2, "expected a number, 0 or more"),
        (["info", "absent.pt"], 1, "no such checkpoint"),
        (["fly"], 2, "invalid choice"),
        ([], 2, "COMMAND"),
    ],
)
def test_mistakes_have_a_code_and_a_reason(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], code: int, words: str
) -> None:
    assert _run(*arguments) == code
    captured = capsys.readouterr()
    assert words in captured.err
    assert "Traceback" not in captured.err


def test_an_interrupt_is_130(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("ddpm.checkpoint.load", interrupted)
    assert _run("info", "x.pt") == 130
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", [[], ["train"], ["sample"], ["config"], ["info"], ["benchmark"], ["edit"], ["inpaint"]]
)
def test_help_answers_without_heavy_imports(command: list[str]) -> None:
    code = (
        "import sys; from ddpm.cli import main\n"
        f"try: main({[*command, '--help']})\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'numpy', 'pydantic', 'PIL'} & set(sys.modules)))"
    )
    started = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: ddpm" in result.stdout
    assert result.stdout.splitlines()[-1] == "[]"
    print(f"{time.perf_counter() - started:.2f} s")  # a figure to look at, no threshold


def test_module_and_version() -> None:
    result = subprocess.run([sys.executable, "-m", "ddpm", "--version"], capture_output=True, text=True, check=True)
    assert result.stdout.startswith("ddpm 0.")


def test_the_readme_api(config: Path, here: Path) -> None:
    import ddpm

    finished = ddpm.train(load_config(config), "run", progress=False)
    images = ddpm.sample(ddpm.load(finished.checkpoint), 4)
    assert images.shape == (4, 8, 8, 1)
