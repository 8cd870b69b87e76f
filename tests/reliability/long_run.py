"""A long run in a process of its own: `python -m tests.reliability.long_run [STEPS]` prints memory and open files.

One JSON line a checkpoint: the step, resident bytes, open files and threads at that moment.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ddpm import kept
from ddpm.run import train
from tests.tiny import tiny

CHECKPOINTS = 20


def main() -> None:
    torch.set_num_threads(1)
    steps = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    save = kept.save
    page = os.sysconf("SC_PAGE_SIZE")

    def watched(folder: Path, content: kept.Checkpoint, score: float | None) -> Path:
        path = save(folder, content, score)
        row = {
            "step": content.step,
            "resident": int(Path("/proc/self/statm").read_text().split()[1]) * page,
            "files": len(os.listdir("/proc/self/fd")),
            "threads": threading.active_count(),
        }
        print(json.dumps(row), flush=True)
        return path

    kept.save = watched  # type: ignore[assignment]
    with TemporaryDirectory() as folder:
        config = tiny(training__steps=steps, training__save_every=steps // CHECKPOINTS, training__kernels="plain")
        train(config, Path(folder) / "run", device="cpu", progress=False)


if __name__ == "__main__":
    main()
