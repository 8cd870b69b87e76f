"""The forward process's noise schedule, and which timesteps a sampler visits.

Time is indexed as in the paper: t = 0..T, alpha_bar[0] = 1, x_0 is data and x_T is noise.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from ddpm.choices import DEFAULT_SPACING, Spacing

ScheduleName = Literal["linear", "quad", "const", "jsd", "warmup10", "warmup50", "cosine", "sigmoid"]
Time = int | float | Tensor
Pair = tuple[int, int]
Steps = Sequence[tuple[float, float]]
"""What a sampler visits: (t, s) pairs, from t to s; a time may lie between two integers."""


@dataclass(frozen=True)
class NoiseSchedule:
    """alpha_bar[t] = prod_{i<=t} (1 - beta_i): the share of the image's variance left at t (Section 2)."""

    alpha_bar: Tensor
    """(T+1,) float64 on the CPU, alpha_bar[0] = 1, not increasing."""

    def __post_init__(self) -> None:
        a = self.alpha_bar
        if a.dtype != torch.float64 or a.ndim != 1 or len(a) < 2:
            raise ValueError(f"alpha_bar must be a float64 vector of T+1 >= 2 entries, got {a.dtype} {tuple(a.shape)}")
        if a[0] != 1 or not bool((a[1:] <= a[:-1]).all()) or not bool((a >= 0).all()):
            raise ValueError("alpha_bar must start at 1 and never increase nor fall below 0")

    @property
    def T(self) -> int:
        """The number of noising steps."""
        return len(self.alpha_bar) - 1

    @property
    def betas(self) -> Tensor:
        """(T,) float64: beta_1..beta_T, the variance added at each step (Equation 2)."""
        return 1 - self.alpha_bar[1:] / self.alpha_bar[:-1]

    def at(self, t: Time, like: Tensor) -> Tensor | float:
        """alpha_bar at time t, in 0..T; between two integers log sigma is a straight line (see `sigma`).

        A number gives a float; a tensor of shape (B,) gives a float64 tensor on `like`'s device (the
        CPU's own where there is no float64), shaped to multiply `like` (B, ...).
        """
        if not isinstance(t, Tensor):
            if not 0 <= t <= self.T:
                raise IndexError(f"time {t} is not in 0..{self.T}")
            whole = int(t)
            return float(self.alpha_bar[whole]) if t == whole else _between(self.alpha_bar, t)
        table = _table(self.alpha_bar, like.device)
        t = t.to(table.device)
        if t.is_floating_point() and bool((t != t.round()).any()):
            values = torch.tensor([self.at(float(one), like) for one in t], dtype=torch.float64, device=table.device)
        else:
            values = table[t.long()]
        return values.view(-1, *[1] * (like.ndim - 1))

    def sigma(self, t: float) -> float:
        """sqrt(1 / alpha_bar_t - 1), the noise's size beside an image of size 1 (arXiv 2206.00364); infinite at 0."""
        a = self.at(t, self.alpha_bar)
        assert isinstance(a, float)
        return math.sqrt(1 / a - 1) if a > 0 else math.inf

    def time_of(self, sigma: float) -> float:
        """The time, 0..T and mostly between two integers, at which `sigma` is reached; T for all that is larger."""
        times = range(self.T + 1)
        above = bisect.bisect_left(times, sigma, key=self.sigma)
        if above > self.T:
            return float(self.T)
        high, low = self.sigma(above), self.sigma(above - 1) if above else 0.0
        if high == sigma or math.isinf(high):
            return float(above)
        if low == 0:
            return above - 1 + sigma / high
        return above - 1 + math.log(sigma / low) / math.log(high / low)


def _between(alpha_bar: Tensor, t: float) -> float:
    """alpha_bar at a time that is no integer: log sigma is linear there, or sigma itself below t = 1."""
    below = math.floor(t)
    low, high = (math.sqrt(1 / float(a) - 1) if a > 0 else math.inf for a in alpha_bar[below : below + 2])
    if math.isinf(high):
        raise ValueError(f"there is no time {t}: alpha_bar is 0 at {below + 1}, where log sigma is infinite")
    share = t - below
    sigma = low ** (1 - share) * high**share if low > 0 else share * high
    return 1 / (1 + sigma**2)


_tables: dict[tuple[int, torch.device], tuple[Tensor, Tensor]] = {}


def _table(alpha_bar: Tensor, device: torch.device) -> Tensor:
    """`alpha_bar` on the device, copied once; it stays on the CPU where the device has no float64."""
    if device.type in ("cpu", "mps"):
        return alpha_bar
    key = (id(alpha_bar), device)
    if key not in _tables or _tables[key][0] is not alpha_bar:
        _tables[key] = (alpha_bar, alpha_bar.to(device))
    return _tables[key][1]


def from_betas(betas: Tensor) -> NoiseSchedule:
    """The schedule whose step t adds variance betas[t-1]; betas: (T,) float64 in [0, 1]."""
    return NoiseSchedule(torch.cat([torch.ones(1, dtype=torch.float64), torch.cumprod(1 - betas.double(), 0)]))


def make_schedule(
    name: ScheduleName, T: int, *, beta_start: float | None = None, beta_end: float | None = None
) -> NoiseSchedule:
    """A schedule by name; see `beta_table` for the names and arguments."""
    return from_betas(beta_table(name, T, beta_start=beta_start, beta_end=beta_end))


def zero_terminal_snr(schedule: NoiseSchedule) -> NoiseSchedule:
    """The schedule with sqrt(alpha_bar) shifted and stretched to end at 0: x_T is noise alone (arXiv 2305.08891).

    alpha_bar at t = 1 stays as it is. Raises ValueError where T < 2: there is nothing to stretch.
    """
    root = schedule.alpha_bar[1:].sqrt()
    if len(root) < 2:
        raise ValueError("rescaling to zero terminal SNR needs T >= 2")
    rescaled = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    return NoiseSchedule(torch.cat([torch.ones(1, dtype=torch.float64), rescaled.square()]))


def beta_table(name: ScheduleName, T: int, *, beta_start: float | None = None, beta_end: float | None = None) -> Tensor:
    """beta_1..beta_T of a named schedule, (T,) float64.

    Args:
        name: `linear` is the paper's (Section 4); `quad`, `const`, `jsd`, `warmup10` and `warmup50` are the
            authors' code's others; `cosine` is Improved DDPM's (arXiv 2102.09672, Equation 17);
            `sigmoid` falls along a sigmoid in alpha_bar (arXiv 2212.11972, start -3, end 3).
        T: number of steps, at least 1.
        beta_start: first beta (default 1e-4); not for jsd, cosine and sigmoid.
        beta_end: last beta (default 0.02); likewise.

    Raises:
        ValueError: unknown name, T < 1, or a beta given to a schedule that has none.
    """
    if T < 1:
        raise ValueError(f"T must be at least 1, got {T}")
    if name in ("jsd", "cosine", "sigmoid") and (beta_start, beta_end) != (None, None):
        raise ValueError(f"beta_start and beta_end have no effect on the schedule {name!r}")
    lo = 1e-4 if beta_start is None else beta_start
    hi = 0.02 if beta_end is None else beta_end
    f64 = torch.float64
    match name:
        case "linear":
            return torch.linspace(lo, hi, T, dtype=f64)
        case "quad":
            return torch.linspace(lo**0.5, hi**0.5, T, dtype=f64) ** 2
        case "const":
            return torch.full((T,), hi, dtype=f64)
        case "warmup10" | "warmup50":
            betas = torch.full((T,), hi, dtype=f64)
            warm = int(T * int(name[-2:]) / 100)
            betas[:warm] = torch.linspace(lo, hi, warm, dtype=f64)
            return betas
        case "jsd":  # beta_t = 1/(T-t+1), so that alpha_bar[t] = 1 - t/T
            return 1 / torch.arange(T, 0, -1, dtype=f64)
        case "cosine":
            return _betas_along(lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2, T)
        case "sigmoid":
            return _betas_along(_sigmoid_alpha_bar, T)
        case _:
            raise ValueError(f"unknown schedule {name!r}")


def _betas_along(f: Callable[[float], float], T: int) -> Tensor:
    """Betas whose alpha_bar follows f on [0, 1], each at most 0.999 (Improved DDPM, Section 3.2)."""
    betas = [min(1 - f((i + 1) / T) / f(i / T), 0.999) for i in range(T)]
    return torch.tensor(betas, dtype=torch.float64)


def _sigmoid_alpha_bar(u: float, start: float = -3.0, end: float = 3.0) -> float:
    def sigmoid(x: float) -> float:
        return 1 / (1 + math.exp(-x))

    return (sigmoid(end) - sigmoid(start + u * (end - start))) / (sigmoid(end) - sigmoid(start))


def spaced_steps(T: int, count: int | None = None, spacing: Spacing = DEFAULT_SPACING) -> list[Pair]:
    """The (t, s) pairs of a sampler with `count` steps: integers from T down to 0.

    With count = T (or None) every timestep is visited, whatever the spacing.

    Args:
        spacing: `linspace` spaces the times T..1 evenly, so that the step 1 -> 0 is always taken;
            `trailing` spaces T..0 evenly (arXiv 2305.08891); `leading` takes multiples of T // count
            from t = 1 upwards, and T instead of the largest; `quadratic` grows with the square
            (arXiv 2010.02502, Appendix D.2), dense near the image.

    Raises:
        ValueError: count is not in 1..T, or the spacing is not one of these (see `karras_steps`).
    """
    count = T if count is None else count
    if not 1 <= count <= T:
        raise ValueError(f"the number of steps must be in 1..{T}, got {count}")
    last = max(count - 1, 1)
    match spacing:
        case "linspace":
            times = [1 + round(i * (T - 1) / last) for i in range(count)]
        case "trailing":
            times = [round(i * T / count) for i in range(1, count + 1)]
        case "leading":
            times = [1 + i * (T // count) for i in range(count)]
        case "quadratic":
            times = [1 + round((i / last) ** 2 * (T - 1)) for i in range(count)]
            times = list(itertools.accumulate(times, lambda before, t: max(before + 1, t)))
        case _:
            raise ValueError(f"{spacing!r} is no spacing of integers; expected linspace, trailing, leading, quadratic")
    return pairs([*times[:-1], T])


def karras_steps(schedule: NoiseSchedule, count: int, rho: float = 7.0) -> list[tuple[float, float]]:
    """`count` steps whose sigmas, to the power 1/rho, are evenly spaced (arXiv 2206.00364, Equation 5).

    From T down to t = 1, then 0; the times between lie between two integers.

    Raises ValueError for count < 1, and where alpha_bar[T] = 0: sigma is infinite there.
    """
    largest, smallest = schedule.sigma(schedule.T), schedule.sigma(1)
    if not 1 <= count <= schedule.T:
        raise ValueError(f"the number of steps must be in 1..{schedule.T}, got {count}")
    if math.isinf(largest):
        raise ValueError("the spacing 'karras' needs a finite sigma at T, but alpha_bar[T] = 0")
    ends = largest ** (1 / rho), smallest ** (1 / rho)
    sigmas = [(ends[0] + i / (count - 1) * (ends[1] - ends[0])) ** rho for i in range(1, count - 1)]
    times = [float(schedule.T), *map(schedule.time_of, sigmas), *([1.0] if count > 1 else [])]
    return list(itertools.pairwise([*times, 0.0]))


def sampling_steps(schedule: NoiseSchedule, count: int | None = None, spacing: Spacing = DEFAULT_SPACING) -> Steps:
    """The pairs of a sampler with `count` steps (None: T) in any of the spacings.

    Raises ValueError as `spaced_steps` and `karras_steps` do.
    """
    if spacing == "karras":
        return karras_steps(schedule, schedule.T if count is None else count)
    return spaced_steps(schedule.T, count, spacing)


def pairs(times: Sequence[int]) -> list[Pair]:
    """The descending (t, s) pairs that visit `times` (any order, without 0) and end at 0."""
    descending = [*sorted(set(times), reverse=True), 0]
    if not times or len(descending) != len(times) + 1 or descending[-2] < 1:
        raise ValueError("times must be distinct and at least 1")
    return list(itertools.pairwise(descending))
