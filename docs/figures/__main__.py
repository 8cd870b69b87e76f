"""`make figures`: draw the lesson's figures into docs/assets/lesson, each with the numbers that it shows.

`make figures FIGURES="02 07"` draws those whose names begin so.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

from docs.figures import forward, fresh, models, theory
from docs.figures.draw import Drawn

OUT = Path(__file__).parents[1] / "assets" / "lesson"
FIGURES = {**forward.FIGURES, **theory.FIGURES, **models.FIGURES, **fresh.FIGURES}
"""By name: functions that draw them."""


def main() -> None:
    from ddpm.files import write_json
    from ddpm.images import save_png

    parser = argparse.ArgumentParser(prog="python -m docs.figures", description=__doc__)
    parser.add_argument("names", nargs="*", help="beginnings of names (default: all)")
    chosen = tuple(parser.parse_args().names)
    for name, draw in sorted(FIGURES.items()):
        if chosen and not name.startswith(chosen):
            continue
        began = time.perf_counter()
        drawn: Drawn = draw()
        save_png(OUT / f"{name}.png", drawn.picture)
        write_json(OUT / f"{name}.json", drawn.numbers)
        print(f"{OUT / name}.png  {time.perf_counter() - began:.0f} s", file=sys.stderr)


if __name__ == "__main__":
    main()
