"""The command line: `ddpm COMMAND`, `python -m ddpm COMMAND` and the lesson's two scripts.

Only the standard library is imported before a command runs, so that --help answers at once.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ddpm.errors import DDPMError

if TYPE_CHECKING:
    from ddpm.config import Config

EXIT_CODES = """exit codes: 0 done; 1 failed, with the reason; 2 wrong usage or configuration;
130 or 143 interrupted, after saving"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; returns its exit code."""
    return run_command(_parser(), arguments)


def run_command(parser: argparse.ArgumentParser, arguments: Sequence[str] | None) -> int:
    """Parse, run the command the parser chose, and turn errors for people into a line and an exit code."""
    # Threads that wait by spinning for long make a run 20 times slower beside one busy neighbour; a short spin
    # costs an undisturbed run 6 %. Read when torch is imported, which no command has done yet.
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "5000")
    options = parser.parse_args(arguments)
    command: Callable[[argparse.Namespace], None] = options.command
    try:
        command(options)
    except DDPMError as error:
        print(f"ddpm: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print("ddpm: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        sys.stderr.close()
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="ddpm",
        description="Denoising Diffusion Probabilistic Models (arXiv 2006.11239): train, sample, look inside.",
        epilog=EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action=_Version)
    commands = parser.add_subparsers(metavar="COMMAND", required=True)

    train = commands.add_parser("train", help="train a model; the same command again continues it")
    train.add_argument("config", metavar="CONFIG", help="a YAML file or a shipped name such as image/mnist/ddpm_cpu")
    _add_set(train)
    train.add_argument("--out", type=Path, metavar="DIR", help="run folder (default: output/<path below configs/>)")
    train.add_argument("--fresh", action="store_true", help="start anew in a numbered folder; nothing is overwritten")
    _add_device(train)
    train.set_defaults(command=_train)

    sample = commands.add_parser("sample", help="draw images from a checkpoint; again: completes an interrupted set")
    sample.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    sample.add_argument("--num-samples", type=positive, default=16, metavar="N", help="images (default 16)")
    sample.add_argument("--start-index", type=natural, default=0, metavar="I", help="number of the first image")
    sample.add_argument("--weights", choices=("ema", "raw"), default="ema", help="moving average or raw (default ema)")
    sample.add_argument("--sampler", choices=("ancestral",), help="default: the checkpoint's")
    sample.add_argument(
        "--steps", type=positive, metavar="K", help="network calls an image (default: the checkpoint's)"
    )
    sample.add_argument("--seed", type=natural, metavar="S", help="image I depends on S and I alone")
    sample.add_argument("--batch-size", type=positive, metavar="B", help="images at a time")
    sample.add_argument("--out", type=Path, metavar="DIR", help="default: sample/<run> beside the run's folder")
    sample.add_argument("--gif", action="store_true", help="also animate the reverse process")
    sample.add_argument("--json", action="store_true", help="print a summary as JSON")
    _add_device(sample)
    sample.set_defaults(command=_sample)

    config = commands.add_parser("config", help="show resolved settings, parameters and cost; trains nothing")
    config.add_argument("config", metavar="CONFIG")
    _add_set(config)
    config.add_argument("--json", action="store_true", help="print as JSON")
    config.set_defaults(command=_config)

    info = commands.add_parser("info", help="what a checkpoint holds")
    info.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    info.add_argument("--json", action="store_true", help="print as JSON")
    info.set_defaults(command=_info)
    return parser


def _add_set(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        dest="overrides",
        help="change a setting, e.g. training.steps=500 (repeatable)",
    )


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1 or mps (default: DDPM_DEVICE, else auto)")


class _Version(argparse.Action):
    def __init__(self, option_strings: Sequence[str], dest: str):
        super().__init__(option_strings, dest, nargs=0, help="print the version")

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        from importlib.metadata import version

        print(f"ddpm {version('ddpm')}")
        parser.exit()


def natural(text: str) -> int:
    """Type of an argument that is a whole number, 0 or more."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r}: expected a whole number, 0 or more")
    return int(text)


def positive(text: str) -> int:
    """Type of an argument that is a whole number, 1 or more."""
    if not natural(text):
        raise argparse.ArgumentTypeError("expected 1 or more")
    return int(text)


def _train(options: argparse.Namespace) -> None:
    from ddpm.config import load_config
    from ddpm.run import folder_of

    config = load_config(options.config, options.overrides)
    train_command(config, options.out or folder_of(options.config), fresh=options.fresh, device=options.device)


def train_command(config: Config, out: Path, *, device: str | None = None, **options: Any) -> None:
    """Train in a process of our own, whose memory may be limited to what there is."""
    from ddpm.device import choose_device, limit_memory
    from ddpm.run import train

    chosen = choose_device(device)
    limit_memory(chosen)
    train(config, out, device=chosen, **options)


def _sample(options: argparse.Namespace) -> None:
    sample_command(
        options.checkpoint,
        count=options.num_samples,
        start=options.start_index,
        weights=options.weights,
        out=options.out,
        gif=options.gif,
        as_json=options.json,
        device=options.device,
        sampler=options.sampler,
        steps=options.steps,
        seed=options.seed,
        batch_size=options.batch_size,
    )


def sample_command(
    path: Path,
    *,
    count: int,
    start: int = 0,
    weights: Any = "ema",
    out: Path | None = None,
    default_out: Path | None = None,
    gif: bool = False,
    as_json: bool = False,
    device: str | None = None,
    **changes: Any,
) -> None:
    """Sample a checkpoint into a folder and say where everything is.

    `out` is the folder itself; `default_out` is numbered if it holds a set made with other settings.
    """
    from ddpm.device import choose_device, describe, limit_memory
    from ddpm.generate import claimable, load, sample_to_folder, sampling_settings
    from ddpm.run import sample_folder_of

    chosen = choose_device(device)
    limit_memory(chosen)
    model = load(path, weights=weights, device=chosen)
    settings = sampling_settings(model, **changes)
    folder = out or claimable(model, default_out or sample_folder_of(path), settings)
    steps = settings.steps or model.diffusion.schedule.T
    if not as_json:
        print(f"model      {path}: step {model.step:,}, {weights} weights, on {describe(model.device)}")
        print(f"sampling   {count} images from number {start}, {settings.sampler}, {steps} steps, seed {settings.seed}")
    began = time.perf_counter()
    made = sample_to_folder(model, folder, count, start=start, settings=settings, gif=gif)
    seconds = time.perf_counter() - began
    if as_json:
        summary = {
            "folder": str(folder),
            "grid": str(folder / "grid.png"),
            "samples": str(folder / "samples.npz"),
            "gif": str(made.gif) if made.gif else None,
            "count": count,
            "start_index": start,
            "made": made.made,
            "seconds": round(seconds, 3),
            "weights": weights,
            "step": model.step,
            "sampler": settings.sampler,
            "steps": steps,
            "seed": settings.seed,
        }
        print(json.dumps(summary))
        return
    print(f"made       {made.made} images in {seconds:.1f} s ({count - made.made} were there already)")
    print(f"written    {folder}: grid.png, numbered PNGs, samples.npz" + (f", {made.gif.name}" if made.gif else ""))


def _config(options: argparse.Namespace) -> None:
    from ddpm.config import flatten, load_config_with_origins, plain
    from ddpm.run import folder_of

    loaded = load_config_with_origins(options.config, options.overrides)
    cost = _cost(loaded.config)
    if options.json:
        print(json.dumps({"config": plain(loaded.config), "origins": dict(loaded.origins), **cost}))
        return
    print(f"{loaded.path}")
    settings = flatten(loaded.config)
    width = max(map(len, settings))
    for key, value in settings.items():
        print(f"  {key:{width}}  {_value(value):24}  {loaded.origins.get(key, 'default')}")
    print(f"run folder            {folder_of(options.config)}")
    print(f"parameters            {cost['parameters']:,}")
    print(f"one network call      {cost['gflop_per_image']:.3f} GFLOP an image")
    if cost["train_pflop"] is not None:
        times = ", ".join(f"{_duration(cost['train_pflop'] * 1e15 / speed)} on {name}" for name, speed in _SPEEDS)
        print(f"training              {cost['images']:,} images, {cost['train_pflop']:.3g} PFLOP: about {times}")


# Operations a second that a training step of such networks reaches; the first measured on a Xeon without AMX.
_SPEEDS = (("two CPU cores", 1.5e11), ("a GPU that gives 30 TFLOP/s", 3e13))


def _duration(seconds: float) -> str:
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{max(1, round(seconds))} s"


def _value(value: Any) -> str:
    return "-" if value is None else str(value)


def _cost(config: Config) -> dict[str, Any]:
    """Parameters and floating-point operations, counted on a network without storage."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    from ddpm.training_loop import build_network

    with torch.device("meta"):
        network = build_network(config)
        x = torch.zeros(1, config.data.channels, *config.data.size)
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            network(x, torch.ones(1))
    flop = counter.get_total_flops()
    training = config.training
    images = training.steps * training.batch_size if training.steps else None
    return {
        "parameters": sum(p.numel() for p in network.parameters()),
        "gflop_per_image": flop / 1e9,
        "images": images,
        # Backward costs twice the forward.
        "train_pflop": 3 * flop * images / 1e15 if images else None,
    }


def _info(options: argparse.Namespace) -> None:
    from ddpm import checkpoint
    from ddpm.config import plain, to_yaml
    from ddpm.generate import file_sha256

    saved = checkpoint.load(options.checkpoint)
    facts = {
        "file": str(options.checkpoint),
        "bytes": options.checkpoint.stat().st_size,
        "sha256": file_sha256(options.checkpoint),
        "step": saved.step,
        "parameters": sum(value.numel() for value in saved.ema.values()),
        "precision": saved.precision,
        "training_images": saved.data.count,
        "data_sha256": saved.data.fingerprint,
        "classes": list(saved.data.class_names),
        "crop": saved.data.crop and [*saved.data.crop],
    }
    if options.json:
        print(json.dumps(facts | {"config": plain(saved.config)}))
        return
    for key, value in facts.items():
        print(f"{key:16} {f'{value:,}' if isinstance(value, int) else _value(value)}")
    print("config")
    print("".join(f"  {line}\n" for line in to_yaml(saved.config).splitlines()), end="")
