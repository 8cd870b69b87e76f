"""In the shell: completion, output without a terminal, no colours, the version, exit codes."""

from __future__ import annotations

import io
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ddpm import progress
from ddpm.cli import COMMANDS, main
from ddpm.progress import Lines, progress_bar

ROOT = Path(__file__).parents[2]


def script(shell: str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main(["completion", shell]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "offered", "not_offered"),
    [
        (["ddpm", "s"], {"sample"}, {"train"}),
        (["ddpm", "sample", "--sam"], {"--sampler"}, {"--steps"}),
        (["ddpm", "sample", "--sampler", "d"], {"ddim", "dpm_solver", "dpm_solver_sde"}, {"heun"}),
        (["ddpm", "train", "image/mn"], {"image/mnist/ddpm_cpu"}, {"image/cifar10/ddpm_32x32"}),
        (["ddpm", "export", "model.pt", "--to", ""], {"diffusers", "safetensors", "torch-export", "onnx"}, {"pickle"}),
        (["ddpm", "extractor", ""], {"train", "info"}, set()),
        (["ddpm", "info", "mo"], {"model.pt"}, {"notes.txt"}),
    ],
)
def test_bash_completes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], typed: list[str], offered: set[str], not_offered: set[str]
) -> None:
    """The script, run by bash itself."""
    if not (bash := shutil.which("bash")):
        pytest.skip("there is no bash")
    for name in ("model.pt", "notes.txt"):
        (tmp_path / name).touch()
    words = " ".join(f"'{word}'" for word in typed)
    test = f"\nCOMP_WORDS=({words}); COMP_CWORD={len(typed) - 1}; _ddpm; printf '%s\\n' \"${{COMPREPLY[@]}}\""
    ran = subprocess.run(
        [bash, "-c", script("bash", capsys) + test], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    found = set(ran.stdout.split())
    assert offered <= found
    assert not not_offered & found


def test_zsh_and_fish(capsys: pytest.CaptureFixture[str]) -> None:
    assert script("zsh", capsys).startswith("autoload -U +X bashcompinit && bashcompinit\n_ddpm() {")
    fish = script("fish", capsys)
    assert 'complete -c ddpm -n "__fish_seen_subcommand_from sample" -l sampler -x -a "ancestral ddim' in fish
    assert re.search(r"-n __fish_use_subcommand -f -a \".*\btrain\b.*\bimport\b.*\"", fish)
    assert len(COMMANDS) <= len(set(re.findall(r"__fish_seen_subcommand_from (\w+)", fish)))


def test_a_bar_in_a_log_file_is_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first, then one every quarter of a minute, and the last."""
    stream, clock = io.StringIO(), [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: clock[0])
    lines = Lines(stream)
    for second in range(40):
        clock[0] = float(second)
        lines.write(f"\rtraining: {second}/40   ")
    lines.write("\n")
    assert stream.getvalue() == "".join(f"training: {n}/40\n" for n in (0, 15, 30, 39))


def test_a_bar_without_a_terminal_rewrites_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress_bar("sampling", 3, "step", show=True) as bar:
        for _ in range(3):
            bar.update()
    written = capsys.readouterr().err
    assert "\r" not in written
    assert written.endswith("\n")
    assert "3/3" in written.splitlines()[-1]
    with progress_bar("sampling", 3, "step", show=False) as bar:
        bar.update()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("variable", ["NO_COLOR", "FORCE_COLOR"])
def test_no_colours_ever(variable: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """So that NO_COLOR is kept, on a terminal too, and a log file is plain."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(variable, "1")
    for stream in (sys.stdout, sys.stderr):
        monkeypatch.setattr(stream, "isatty", lambda: True)
    for arguments, code in ((["--help"], 0), (["train", "absent.yaml"], 2), (["fly"], 2), (["config", "absent"], 2)):
        try:
            found: object = main(arguments)
        except SystemExit as stopped:
            found = stopped.code
        assert found == code
    captured = capsys.readouterr()
    assert "usage: ddpm" in captured.out
    assert "absent.yaml: no such file" in captured.err
    assert "\x1b" not in captured.out + captured.err


def test_exit_codes_are_written_down(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    said = " ".join(capsys.readouterr().out.split())
    assert "exit codes: 0 done; 1 failed, with the reason; 2 wrong usage or configuration; 130 or 143" in said
    assert "Exit codes: 0 done, 1 failed with the reason, 2 wrong usage" in (ROOT / "README.md").read_text()
