"""The table and the picture of "is my loss normal?" (docs/training.md), from runs of shipped configurations.

    python docs/figures/loss_curves.py output/image/digits/ddpm_8x8.yaml [other run folders] --out docs/assets

prints the rows of the table (Markdown) and draws the curves, for each folder that a run left: its metrics.jsonl and
config.yaml. Another seed, machine or precision changes the last digits, not the picture.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ddpm.charts import Line, Panel, chart
from ddpm.config import Config, load_config
from ddpm.evaluate.report import rows_of_run
from ddpm.images import save_png

SHARES = (0.02, 0.1, 0.25, 0.5, 1.0)
"""Of the run, at which the loss is told."""

CURVES = {"loss": "Loss", "preview/distance": "Preview: distance", "preview/kid": "Preview: KID"}


def around(rows: list[dict[str, Any]], key: str, step: float, total: int) -> float | None:
    """The mean of a figure over the tenth of the steps up to `step` that have it; None if none has."""
    near = [row[key] for row in rows if key in row and 0.9 * step - 0.005 * total <= row["step"] <= step]
    return sum(near) / len(near) if near else None


def cell(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def row(folder: Path, config: Config, rows: list[dict[str, Any]]) -> str:
    """A row of the table."""
    total = max(each["step"] for each in rows)
    losses = [cell(around(rows, "loss", share * total, total)) for share in SHARES]
    last = next((each for each in reversed(rows) if "validation_loss" in each), {})
    measured = next((each for each in reversed(rows) if "preview/distance" in each), {})
    ends = [
        cell(last.get("validation_loss")),
        cell(measured.get("preview/distance")),
        cell(measured.get("preview/kid")),
    ]
    name = f"`{config.data.source}`, {folder.name.removesuffix('.yaml')}"
    return f"| {name} | {total:,} x {config.training.batch_size} | {' | '.join([*losses, *ends])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    options = parser.parse_args()
    for folder in options.folders:
        rows, config = rows_of_run(folder), load_config(folder / "config.yaml")
        print(row(folder, config, rows))
        panels = []
        for key, title in CURVES.items():
            points = [(each["step"], each[key]) for each in rows if key in each]
            if len(points) > 1:
                panels.append(Panel(title, "step", key, [Line(*map(list, zip(*points, strict=True)))]))
        name = folder.name.removesuffix(".yaml")
        note = f"seed {config.training.seed}, {config.training.batch_size} images a step"
        path = options.out / f"training_{name}.png"
        save_png(path, chart(panels, title=f"{name} ({config.data.source})", note=note))
        print(f"written {path}")


if __name__ == "__main__":
    main()
