"""`make bench`: everything, into results.md beside this file. `--quick`: two minutes, printed only."""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import platform
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from benchmarks import candidates, growth
from benchmarks.candidates import LESSON, PAPER, SMALL, Call, Network, Work
from benchmarks.memory import peak_gigabytes
from benchmarks.timing import Timing, take_turns
from ddpm.device import choose_precision, describe
from ddpm.errors import DDPMError
from ddpm.files import write_text
from ddpm.ops.select import choose_kernels

RESULTS = Path(__file__).parent / "results.md"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a small part, in about two minutes, printed only")
    parser.add_argument("--compile", action="store_true", help="also time torch.compile (minutes of compiling)")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="counted rounds (default 5)")
    options = parser.parse_args()
    lines: list[str] = []
    for line in _quick(options) if options.quick else _full(options):
        print(line, flush=True)
        lines.append(line)
    if not options.quick:
        write_text(RESULTS, "\n".join(lines) + "\n")
        print(f"written to {RESULTS}", file=sys.stderr)


def _quick(options: argparse.Namespace) -> Iterator[str]:
    yield from _machine()
    yield from _speed(SMALL, "train", 16, rounds=3, compiled=False)
    yield from _speed(SMALL, "call", 16, rounds=3, compiled=False)
    yield from _table(("command", "seconds"), growth.of_a_start())


def _full(options: argparse.Namespace) -> Iterator[str]:
    yield "# Measured speed and memory"
    yield ""
    yield "Written by `make bench`. Candidates take turns in one process; a ratio is the median over the rounds of the"
    yield "pairwise ratios, with the smallest and the largest; peak memory is that of a fresh process each."
    yield ""
    yield from _machine()
    for network, work, batch in (
        (PAPER, "train", 16),
        (LESSON, "train", 16),
        (SMALL, "train", 64),
        (PAPER, "call", 32),
        (SMALL, "call", 64),
    ):
        yield from _speed(network, work, batch, rounds=options.rounds, compiled=options.compile)  # type: ignore[arg-type]
    yield "## Peak memory of a training step, batch 16"
    yield ""
    yield from _table(("network", "diffusers (GB)", "ours, plain", "ours, fused", "fused / diffusers"), _memory())
    yield "## How cost grows"
    yield ""
    yield "Image size, 1.1 M network without attention, batch 4, training:"
    yield from _table(("size", "images/s", "us a pixel"), growth.with_image_size((16, 32, 64, 128)))
    yield "Batch, 1.1 M network, training:"
    yield from _table(("batch", "images/s", "ms a step"), growth.with_batch((1, 2, 4, 8, 16, 32, 64, 128)))
    yield "Parameters, the paper's form, batch 4, training:"
    yield from _table(("parameters", "images/s", "ns a parameter"), growth.with_parameters((32, 64, 96, 128, 160)))
    yield "Data set, 16x16 pictures in IDX files (seconds, and megabytes on top of the process's own):"
    yield from _table(
        ("images", "first start (s)", "(MB)", "second start (s)", "(MB)"),
        growth.with_data((1_000, 10_000, 100_000, 1_000_000)),
    )
    yield "Samples to a folder, a network of a few thousand parameters, two steps:"
    yield from _table(("samples", "seconds", "peak memory (MB)"), growth.with_samples((10**2, 10**3, 10**4, 10**5)))
    yield "Start of the command line:"
    yield from _table(("command", "seconds"), growth.of_a_start())


def _machine() -> Iterator[str]:
    device = candidates.DEVICE
    _, kernels = choose_kernels("auto", device)
    model = next((line for line in _cpuinfo() if line.startswith("model name")), platform.processor())
    matrix = ", AMX" if "amx_tile" in " ".join(_cpuinfo()) else ""
    yield f"- {datetime.date.today()}, {platform.system()}, {model.split(':')[-1].strip()}{matrix}, {describe(device)}"
    yield f"- Python {platform.python_version()}, torch {torch.__version__}, diffusers {_version('diffusers')}"
    yield f"- ours by default here: {choose_precision('auto', device)}, {kernels}"
    yield ""


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def _version(package: str) -> str:
    return importlib.import_module(package).__version__ if importlib.util.find_spec(package) else "not installed"


def _speed(network: Network, work: Work, batch: int, *, rounds: int, compiled: bool) -> Iterator[str]:
    calls = _calls(network, work, batch, compiled=compiled)
    gflop = dict.fromkeys(calls, _gigaflop(network))
    for name, (call, own) in _of_other_networks(network, work, batch).items():
        calls[name], gflop[name] = call, own
    timings = take_turns(calls, rounds)
    what = "training step" if work == "train" else "network call in sampling"
    yield f"## {what}, {network.name}, batch {batch}"
    yield ""
    passes = batch * (3 if work == "train" else 1)
    rivals = [name for name in timings if name.startswith("diffusers")] or ["ours, plain float32"]
    best = min(rivals, key=lambda name: timings[name].median)
    first = rivals[0]
    columns = ("", "ms", "images/s", "GFLOP/s", f"against {first}", *([f"against {best}"] if best != first else []))

    def row(name: str, timing: Timing) -> tuple[str, ...]:
        against = [timing.times_faster_than(timings[rival]) for rival in ((first,) if best == first else (first, best))]
        ratios = (f"{middle:.2f}x ({low:.2f} to {high:.2f})" for middle, low, high in against)
        seconds = timing.median
        return name, f"{seconds * 1e3:.0f}", f"{batch / seconds:.1f}", f"{gflop[name] * passes / seconds:.0f}", *ratios

    yield from _table(columns, (row(name, timing) for name, timing in timings.items()))


def _calls(network: Network, work: Work, batch: int, *, compiled: bool) -> dict[str, Call]:
    calls: dict[str, Call] = {}
    if network.diffusers is not None:
        if importlib.util.find_spec("diffusers"):
            calls["diffusers as documented"] = candidates.diffusers(network, work, batch, best=False)
            calls["diffusers at its best"] = candidates.diffusers(network, work, batch, best=True)
            if compiled:
                calls["diffusers at its best, compiled"] = candidates.diffusers(
                    network, work, batch, best=True, compiled=True
                )
        else:
            print("diffusers is not installed: pip install -r benchmarks/requirements.txt", file=sys.stderr)
    calls["ours, plain float32"] = candidates.ours(network, work, batch, kernels="plain", precision="float32")
    calls["ours"] = candidates.ours(network, work, batch)
    if compiled and work == "train":
        calls["ours, plain, compiled"] = candidates.ours(network, work, batch, kernels="plain", compile="on")
    return calls


def _of_other_networks(network: Network, work: Work, batch: int) -> dict[str, tuple[Call, float]]:
    """Peers whose network is of another form, beside ours of their size: the call, and GFLOP an image."""
    if network is not PAPER:
        return {}
    peer = "denoising-diffusion-pytorch"
    try:
        made = [
            (how, *candidates.denoising_diffusion_pytorch(work, batch, best=best))
            for how, best in (("as documented", False), ("at its best", True))
        ]
        return {f"{peer} {how} (its own network: {own:.1f} GFLOP)": (call, own) for how, call, own in made}
    except (ImportError, RuntimeError) as error:  # torchvision, which it needs, raises RuntimeError beside some torches
        print(f"{peer} is skipped (pip install -r benchmarks/requirements-torchvision.txt): {error}", file=sys.stderr)
        return {}


def _gigaflop(network: Network) -> float:
    from ddpm.cost import cost_of

    return float(cost_of(network.config(1)).gflop_per_image)


def _memory() -> Iterator[tuple[str, ...]]:
    for name in ("PAPER", "SMALL"):
        theirs, plain, fused = (_peak(name, who) for who in ("diffusers", "plain", "fused"))
        ratio = f"{fused / theirs:.2f}x" if fused and theirs else "-"
        yield getattr(candidates, name).name, *(f"{x:.2f}" if x else "-" for x in (theirs, plain, fused)), ratio


def _peak(network: str, who: str) -> float | None:
    if who == "diffusers" and not importlib.util.find_spec("diffusers"):
        return None
    if who == "fused":
        try:
            choose_kernels("fused", candidates.DEVICE)
        except DDPMError:
            return None
    return peak_gigabytes(network, "train", 16, who)


def _table(columns: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * len(columns)
    for row in rows:
        yield "| " + " | ".join(row) + " |"
    yield ""


if __name__ == "__main__":
    main()
