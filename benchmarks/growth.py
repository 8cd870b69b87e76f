"""How cost grows: with image, batch, network, data set and number of samples; and what a start costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.candidates import SMALL, Network, ours
from benchmarks.timing import take_turns

Row = tuple[str, ...]


def with_image_size(sizes: tuple[int, ...]) -> Iterator[Row]:
    """Training steps of the 1.1 M network (attention left out, which grows with the square of the pixels)."""
    for size in sizes:
        network = replace(SMALL, ours=SMALL.ours | {"attention": ()}, image_size=size)
        seconds = take_turns({"": ours(network, "train", 4)}, 3)[""].median
        yield f"{size}x{size}", f"{4 / seconds:.1f}", f"{seconds / 4 / size**2 * 1e6:.2f}"


def with_batch(sizes: tuple[int, ...]) -> Iterator[Row]:
    for batch in sizes:
        seconds = take_turns({"": ours(SMALL, "train", batch)}, 3)[""].median
        yield str(batch), f"{batch / seconds:.1f}", f"{seconds * 1e3:.0f}"


def with_parameters(channels: tuple[int, ...]) -> Iterator[Row]:
    from ddpm.training_loop import build_network

    for width in channels:
        network = Network("", {"channels": width, "attention": (16,)}, None)
        count = sum(p.numel() for p in build_network(network.config(4)).parameters())
        seconds = take_turns({"": ours(network, "train", 4)}, 3)[""].median
        yield f"{count / 1e6:.1f} M", f"{4 / seconds:.1f}", f"{seconds / 4 / count * 1e9:.1f}"


def with_data(counts: tuple[int, ...]) -> Iterator[Row]:
    """First and second start of a data set of 16x16 pictures, each in a fresh process."""
    script = """
        import json, sys, time
        from benchmarks.memory import resident_gigabytes
        from ddpm import data
        from ddpm.config import DataSection
        section = DataSection(source="mnist", root=sys.argv[1], image_size=16, channels=1)
        before, began = resident_gigabytes(), time.perf_counter()
        images = data.load(section, "train", progress=False)
        next(data.batches(images, 128, seed=0))
        print(json.dumps([time.perf_counter() - began, resident_gigabytes() - before]))
    """
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            _write_idx(folder, count)
            first, second = (_fresh(script, str(folder), cache=folder / "cache") for _ in range(2))
        yield f"{count:,}", f"{first[0]:.2f}", f"{first[1] * 1e3:.0f}", f"{second[0]:.3f}", f"{second[1] * 1e3:.0f}"


def with_samples(counts: tuple[int, ...]) -> Iterator[Row]:
    """Sampling a tiny untrained model to a folder, in a fresh process: memory must not grow."""
    script = """
        import json, sys, time
        from pathlib import Path
        import ddpm
        from benchmarks.memory import resident_gigabytes
        from ddpm.generate import sample_to_folder, sampling_settings
        out, count = Path(sys.argv[1]), int(sys.argv[2])
        small = ["network.channels=8", "network.multipliers=[1]", "network.blocks=1", "network.attention=[]"]
        config = ddpm.load_config("image/digits/ddpm_8x8", ["training.steps=1", "network.norm_groups=4", *small])
        model = ddpm.load(ddpm.train(config, out / "run", progress=False).checkpoint)
        settings = sampling_settings(model, steps=2, batch_size=500)
        began = time.perf_counter()
        sample_to_folder(model, out / "samples", count, settings=settings, progress=False)
        print(json.dumps([time.perf_counter() - began, resident_gigabytes()]))
    """
    for count in counts:
        with tempfile.TemporaryDirectory() as name:
            seconds, memory = _fresh(script, name, str(count), cache=Path(name) / "cache")
        yield f"{count:,}", f"{seconds:.1f}", f"{memory * 1e3:.0f}"


def of_a_start() -> Iterator[Row]:
    """The command line's answer, median of five."""
    for words in (["--help"], ["train", "--help"], ["--version"], ["config", "image/mnist/ddpm_cpu"]):
        command = [sys.executable, "-m", "ddpm", *words]
        timing = take_turns({"": lambda c=command: subprocess.run(c, check=True, capture_output=True)}, 5)[""]  # type: ignore[misc]
        yield f"`ddpm {' '.join(words)}`", f"{timing.median:.2f}"


def _fresh(script: str, *arguments: str, cache: Path) -> Any:
    command = [sys.executable, "-c", textwrap.dedent(script), *arguments]
    environment = {**os.environ, "DDPM_CACHE": str(cache)}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    return json.loads(done.stdout.splitlines()[-1])


def _write_idx(folder: Path, count: int) -> None:
    """MNIST's file format with random 16x16 pictures."""
    random = np.random.default_rng(0)
    with (folder / "train-images-idx3-ubyte").open("wb") as file:
        file.write(b"\x00\x00\x08\x03" + np.array([count, 16, 16], ">u4").tobytes())
        for start in range(0, count, 10_000):
            file.write(random.bytes(256 * min(10_000, count - start)))
    with (folder / "train-labels-idx1-ubyte").open("wb") as file:
        file.write(b"\x00\x00\x08\x01" + np.array([count], ">u4").tobytes())
        file.write(random.integers(0, 10, count, dtype=np.uint8).tobytes())
