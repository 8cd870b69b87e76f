"""`make demo`: from nothing to readable digits in three minutes on two CPU cores.

Trains on scikit-learn's 1,797 scans of handwritten digits, samples, draws the reverse process and
says how good the samples are.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from ddpm.cli import run_command

OUT = Path("output") / "demo"
SAMPLES = 100


def main() -> int:
    """Run the demo; returns the exit code."""
    import argparse

    parser = argparse.ArgumentParser(prog="ddpm.demo", description="Train, sample and judge 8x8 digits.")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder (default {OUT})")
    parser.set_defaults(command=lambda options: demo(options.out))
    return run_command(parser, None)


def demo(out: Path) -> None:
    """Train into `out`, sample into `out/drawn` and print a verdict."""
    import numpy as np

    from ddpm import data
    from ddpm.config import load_config
    from ddpm.evaluate.digits import judge
    from ddpm.generate import load, sample_to_folder, sampling_settings
    from ddpm.run import train

    began = time.perf_counter()
    config = load_config("image/digits/ddpm_8x8")
    finished = train(config, out)
    model = load(finished.checkpoint)
    made = sample_to_folder(model, out / "drawn", SAMPLES, settings=sampling_settings(model), gif=True)
    samples = np.load(made.folder / "samples.npz")["arr_0"]
    scans = data.load(config.data, "train")
    assert scans.labels is not None
    verdict = judge(samples, scans.take(np.arange(len(scans))), scans.labels)
    print(f"\n{verdict}\n")
    print(f"samples    {made.folder / 'grid.png'}")
    print(f"animation  {made.gif}")
    print(f"checkpoint {finished.checkpoint}")
    print(f"{time.perf_counter() - began:.0f} s in all")


if __name__ == "__main__":
    sys.exit(main())
