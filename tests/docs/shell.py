"""A pretended shell: the commands of the documentation, run in this process on tiny settings."""

from __future__ import annotations

import re
import shlex
import shutil
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from ddpm.cli import main
from ddpm.config import shipped_configs
from ddpm.lesson import sample_main, train_main

ROOT = Path(__file__).parents[2]
TINY = (
    "training.steps=2",
    "training.batch_size=16",
    "training.preview_samples=2",
    "training.preview_steps=2",
    "training.precision=float32",
    "network.channels=8",
    "network.norm_groups=4",
    "diffusion.timesteps=100",
    "data.held_out=0.1",
)
MOST = {"--num-samples": 12, "--samples": 12, "--images": 12, "--num_samples": 2}
"""Numbers that are made smaller."""


@dataclass(frozen=True)
class Shell:
    """A folder with what the commands of a page find there."""

    folder: Path
    """The current folder."""
    spare: Path
    """A checkpoint for those that a page names and has not made."""

    def run(self, line: str) -> tuple[int, str]:
        """The exit code of a command, and all that it printed."""
        words = shlex.split(line, comments=True)
        out = StringIO()
        with redirect_stdout(out), redirect_stderr(out):
            try:
                code = self._call(words)
            except SystemExit as stopped:
                code = int(stopped.code or 0)
        return code, out.getvalue()

    def _call(self, words: list[str]) -> int:
        match words:
            # torchrun's processes are what tests/distributed is for.
            case ["ddpm", *rest] | ["python", "-m", "ddpm", *rest] | ["torchrun", _, _, "-m", "ddpm", *rest]:
                return main(self._tiny(rest))
            case ["python", script, *rest] if script.startswith(("training/", "sampling/")):
                assert (ROOT / script).is_file()
                if script.startswith("training/"):
                    return train_main(rest)
                given = dict(zip(rest[::2], rest[1::2], strict=True))
                if not (self.folder / given["--checkpoint"]).exists():
                    assert train_main(["--config_path", given["--config_path"]]) == 0
                return sample_main(self._tiny(rest))
            case ["python", "-m", "pytest", *rest]:  # they run anyway
                assert all((ROOT / word).exists() for word in rest if word.startswith("tests/"))
                return 0
            case ["python", "-m", module, *_] if module.startswith("tests."):
                assert (ROOT / module.replace(".", "/")).with_suffix(".py").is_file()
                return 0
            case ["make", target, *_]:  # each has tests of its own
                assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), f"no target {target}"
                return 0
            case ["pip", "install", "-c", "constraints.txt", "-e", what]:
                self._installable(what)
                return 0
            case ["pip", "install", what]:
                self._installable(what)
                return 0
        raise AssertionError(f"the tests do not know how to run {shlex.join(words)!r}")

    def _installable(self, what: str) -> None:
        """Only the extras can be looked at: there is no network."""
        extras = re.search(r"\[(.*)\]", what)
        for extra in extras[1].split(",") if extras else ():
            assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.M), f"no extra {extra}"

    def _tiny(self, words: list[str]) -> list[str]:
        """The same command on tiny settings, with the checkpoints that it names in their places."""
        words = [*words]
        for i, word in enumerate(words):
            previous = words[i - 1] if i else ""
            if previous in MOST and word.isdecimal():
                words[i] = str(min(int(word), MOST[previous]))
            elif previous == "--samples-from" and not (self.folder / word).exists():
                assert main(["sample", str(self.spare), "--num-samples", "12", "--out", word]) == 0
            elif word.startswith("training.steps="):
                words[i] = "training.steps=4"
            name = word.partition("=")[2] if word.startswith("training.init_from=") else word
            if name.endswith(".pt"):
                self._checkpoint(self.folder / name)
        if words[0] == "train":
            sampling = ("sampling.steps=5", *TINY)
            return [*words[:2], *(w for s in sampling for w in ("--set", s)), *words[2:]]
        if words[:2] == ["benchmark", "samplers"]:
            return [*words, "--calls", "2", "--samplers", "ddim"]
        if words[0] == "benchmark":
            return [*words, *(w for s in TINY for w in ("--set", s)), "--most", "2"]
        return words

    def _checkpoint(self, path: Path) -> None:
        """Put a checkpoint where a page says that one is: the folder's own, else a spare one."""
        if not path.exists():
            own = sorted(path.parent.glob("diffusion-*.pt"))
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(own[-1] if own else self.spare, path)

    def plain(self, text: str) -> str:
        """Output without what differs from place to place: folders, step numbers, spaces."""
        for folder in (self.folder, shipped_configs().parent):
            text = text.replace(f"{folder}/", "")
        text = re.sub(r"diffusion-\d+\.pt: ", "", text)
        text = re.sub(r"(?:\S+/)?(?=this run was started)", "", text)
        return "\n".join(" ".join(line.split()) for line in text.splitlines())
