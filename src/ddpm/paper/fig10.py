"""Figure 10: the quality of the estimates of x_0 along the reverse process."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.charts import Line, Panel, chart, require_matplotlib
from ddpm.files import atomic_write
from ddpm.images import to_arrays
from ddpm.paper.chain import chain
from ddpm.paper.made import Made
from ddpm.paper.scores import ABSENT, scorer
from ddpm.paper.subject import finish, open_subject
from ddpm.progress import progress_bar

BATCH = 64


def make(
    source: Path,
    out: Path,
    *,
    samples: int | None = None,
    steps: int | None = None,
    seed: int = 0,
    quick: bool = False,
    data_root: str | None = None,
    device: torch.device | str | None = None,
) -> Made:
    """`ddpm paper fig10 CHECKPOINT`.

    The estimates themselves are written too (`estimates.npz`), so that they can be scored elsewhere.

    Args:
        samples: images to sample (default 2,048; 128 where it is to be quick).
        steps: sampling steps; None: all timesteps.
    """
    require_matplotlib()
    subject = open_subject(source, seed=seed, data_root=data_root, device=device)
    T, crop = subject.T, subject.model.data.crop
    wanted = [max(0, T - round(T * n / 10)) for n in range(1, 11)]
    count = samples or (128 if quick else 2048)
    walk = chain(subject, steps=steps, quick=quick, at=[t for t in wanted if t], classes=subject.classes(count))
    shown = walk.near(wanted)
    kept: dict[int, list[np.ndarray]] = {t: [] for t in shown}
    with progress_bar("sampling", -(-count // BATCH) * len(walk.steps), "step", show=True) as bar:
        for start in range(0, count, BATCH):
            for moment in walk.run(range(start, min(start + BATCH, count))):
                bar.update(moment.t > 0)
                if moment.t in kept:
                    kept[moment.t].append(to_arrays(moment.x0, crop))
    estimates = {t: np.concatenate(parts) for t, parts in kept.items()}
    final = estimates[0].astype(np.float64)
    rmse = [float(np.sqrt(np.mean((array - final) ** 2))) for array in estimates.values()]
    reverse = [T - t for t in shown]
    numbers = subject.facts(**walk.facts(), samples=count, t=shown, reverse_steps=reverse, rmse_to_sample=rmse)
    panels = [Panel("Distance to the finished sample", "reverse steps T - t", "RMSE (0..255)", [Line(reverse, rmse)])]
    extractor = scorer(subject)
    rows: list[tuple[Any, ...]] = list(zip(reverse, rmse, strict=True))
    numbers |= {"extractor": None, "fid": None, "inception_score": None}
    note = f"{ABSENT[0].upper()}{ABSENT[1:]}"
    if extractor:
        scores = [extractor.score(array) for array in estimates.values()]
        fid, inception = [s.fid for s in scores], [s.inception_score for s in scores]
        panels[:0] = [
            Panel("Inception Score", "reverse steps T - t", "IS", [Line(reverse, inception)]),
            Panel("FID", "reverse steps T - t", "FID", [Line(reverse, fid)]),
        ]
        numbers |= {"extractor": extractor.extractor, "fid": fid, "inception_score": inception}
        rows = list(zip(reverse, rmse, inception, fid, strict=True))
        note = f"Scores by {extractor.extractor}"
    data = subject.model.config.data.source
    page = chart(
        panels,
        title=f"Progressive quality ({data})",
        note=f"{count:,} samples. {note}. {subject.words}; {walk.words}",
    )
    with atomic_write(out / "estimates.npz") as file:
        np.savez(file, t=np.array(list(estimates)), images=np.stack(list(estimates.values())))
    head = f"{'T - t':>8}{'RMSE':>10}" + (f"{'IS':>10}{'FID':>10}" if extractor else "")
    lines = [head, *(f"{row[0]:8}" + "".join(f"{value:10.2f}" for value in row[1:]) for row in rows), note]
    made = finish(out, "fig10", page, numbers, "\n".join(lines))
    return Made((made.files[0], out / "estimates.npz", made.files[1]), made.numbers, made.text)
