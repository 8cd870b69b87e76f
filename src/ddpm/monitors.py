"""Monitors of a run that speak: one line when something is wrong that no error stops, with what to do about it.

That a loss is no number is not here: it stops the run (`run`).
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch import nn

from ddpm.evaluate.pixels import Pixels
from ddpm.training_loop import TrainingState

EARLY = 500
"""Steps before which samples may look like anything."""
LATE = 0.25
"""Share of the run from which they should not."""
DRIFT = 0.3
"""Difference of means, in standard deviations of the data's pixels, that is too much once sampling error is off."""
NOISE = 0.5
"""How far from the data's roughness to that of white noise samples may be."""
CHANNELS = ("red", "green", "blue")


class Monitors:
    """What is wrong with a run, each kind said once."""

    def __init__(self, state: TrainingState, total: int):
        """
        Args:
            total: steps of the whole run.
        """
        self._total, self._said = total, set[str]()
        self._ema, self._raw, self._since = _digest(state.ema), _digest(state.network), state.step

    def warnings(self, state: TrainingState, samples: Pixels | None, data: Pixels | None) -> list[str]:
        """The lines to show at this step.

        Args:
            samples: of the EMA weights now.
            data: what they should be like.
        """
        found = dict(self._average(state))
        if samples is not None and data is not None and state.step >= max(EARLY, LATE * self._total):
            found |= dict(_noise(samples, data) if _is_noise(samples, data) else _drift(samples, data))
        new = {kind: line for kind, line in found.items() if kind not in self._said}
        self._said |= set(new)
        return [f"step {state.step:,}: {line}" for line in new.values()]

    def _average(self, state: TrainingState) -> Iterator[tuple[str, str]]:
        ema, raw = _digest(state.ema), _digest(state.network)
        if ema == self._ema and raw != self._raw:
            yield (
                "ema",
                f"the moving average of the weights (EMA) has not moved since step {self._since:,}, though the weights "
                "have: samples, previews and checkpoints show a network that does not learn. Where ddpm.train runs, "
                "this is a fault of ddpm: please report it; in a loop of your own, call ddpm.ema.update after each "
                "step. Meanwhile sample with --weights raw",
            )
        self._ema, self._raw, self._since = ema, raw, state.step


def _digest(module: nn.Module) -> tuple[float, ...]:
    """Numbers that change when any weight does, but for rare chance; cheap, and nothing is kept of the weights."""
    return tuple(float(p.detach().cpu().double().sum()) for p in module.parameters())


def _is_noise(samples: Pixels, data: Pixels) -> bool:
    smooth, rough = float(data.roughness.mean()), float(samples.roughness.mean())
    return smooth < 0.8 and rough > smooth + NOISE * (1 - smooth)  # of rough data one cannot tell


def _noise(samples: Pixels, data: Pixels) -> Iterator[tuple[str, str]]:
    yield (
        "noise",
        f"the samples are noise: their roughness is {samples.roughness.mean():.2f} (the data's "
        f"{data.roughness.mean():.2f}, white noise 1). If the loss has long stopped falling, the network does not "
        "learn: try a lower training.learning_rate with a longer training.warmup_steps; if it still falls, train on; "
        "if --weights raw gives pictures, training.ema_decay is too high for so short a run",
    )


def _drift(samples: Pixels, data: Pixels) -> Iterator[tuple[str, str]]:
    shift = samples.mean - data.mean
    excess = np.abs(shift) - DRIFT * data.std - 3 * samples.error
    c = int(excess.argmax())
    if excess[c] > 0:
        what = f"{CHANNELS[c]} is" if len(shift) == 3 else "grey is"
        yield (
            "drift",
            f"the samples' colours have drifted: {what} {shift[c]:+.0f} levels of 0..255 off the data's mean. It often "
            "passes with more steps. If it stays: a lower training.learning_rate, a higher training.ema_decay, or "
            "diffusion.prediction: v with diffusion.zero_terminal_snr: true, which learns the mean brightness too",
        )
