"""The configuration: one YAML file, checked whole before anything else is loaded.

`load_config` reads a file (or the name of a shipped configuration), applies `--set` overrides and
returns a frozen `Config`. Every mistake is reported at once, with the file, the line, the key, what
was found and what is allowed.
"""

from __future__ import annotations

import difflib
import io
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from ddpm.choices import EFFECTIVE, PARTICULAR, SamplerName, Spacing, TrackerName
from ddpm.errors import ConfigError

# YAML has lists; a frozen record wants tuples.
_tuple = BeforeValidator(lambda value: tuple(value) if isinstance(value, list) else value)
PositiveInt = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, lt=1)]
Natural = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(ge=0, le=1)]


class Section(BaseModel):
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class DataSection(Section):
    source: Literal["digits", "mnist", "fashion_mnist", "kmnist", "cifar10", "folder", "huggingface", "webdataset"]
    """Where the images come from; `folder` is any tree of image files (sub-folder = class), `huggingface` a data set
    of the hub or of the library `datasets`, `webdataset` tar files that are streamed (docs/howto/large-data.md)."""
    root: str | None = None
    """Folder that holds the files; empty: the folder named by DDPM_DATA_ROOT, else a download. Of huggingface: the
    name on the hub, or a path. Of webdataset: a folder of shards, or paths or URLs with {brace..ranges}, :: between."""
    streaming: bool = False
    """Read a data set of huggingface while training, instead of packing it on the disk first."""
    workers: PositiveInt | None = None
    """Processes that decode what is streamed, for each process that trains (empty: one a core, 4 at most)."""
    image_column: str | None = None
    """Column of the pictures in a data set of huggingface, ending of their files in webdataset (empty: the only one
    that holds some)."""
    label_column: str | None = None
    """Column of the classes there (empty: the one with named classes, or one called label, ...; of webdataset: cls)."""
    image_size: PositiveInt | Annotated[tuple[PositiveInt, PositiveInt], _tuple]
    """Side of the square images, or [height, width]."""
    channels: Literal[1, 3]
    """1 (grey) or 3 (RGB); images of the other kind are converted."""
    resize: Literal["crop", "stretch", "pad"] = "crop"
    """How other sizes become `image_size`: crop (shortest side to size, centre crop), stretch, or
    pad (shrunk only if too large, black border; samples are cropped back)."""
    horizontal_flip: bool = False
    """Mirror each training image with probability 1/2."""
    held_out: Share = 0.0
    """Share of the training images kept aside, always the same ones, for the validation loss."""
    max_broken: Share = 0.01
    """Share of unreadable files that is tolerated (each is reported) before loading stops."""

    @model_validator(mode="after")
    def _consistent(self) -> DataSection:
        for key in ("image_column", "label_column"):
            if getattr(self, key) is not None and self.source not in ("huggingface", "webdataset"):
                raise ValueError(
                    f"{key}: {getattr(self, key)!r} has no effect on the source {self.source}; it belongs to "
                    "huggingface and webdataset. Remove it"
                )
        if self.streaming and self.source != "huggingface":
            always = "is streamed always" if self.source == "webdataset" else "is packed once and read from there"
            raise ValueError(f"streaming: true has no effect on the source {self.source}, which {always}. Remove it")
        if self.workers is not None and not self.streamed:
            raise ValueError(
                f"workers: {self.workers} has no effect on data that are packed; it belongs to the source webdataset, "
                "and to huggingface with streaming: true. Remove it"
            )
        if self.streamed and self.held_out:
            raise ValueError(
                f"held_out: {self.held_out:g} is a share of a set that is counted, which a stream is not. Remove it; "
                "shards that are to be kept aside are left out of root"
            )
        if self.streamed and self.resize == "pad":
            raise ValueError(
                "resize: pad crops samples back to where all pictures lie in their frames, which is not known of a "
                "stream. Use crop or stretch"
            )
        return self

    @property
    def streamed(self) -> bool:
        """Whether the images are read while training, and never all of them kept."""
        return self.source == "webdataset" or self.streaming

    @property
    def size(self) -> tuple[int, int]:
        """(height, width) in pixels."""
        side = self.image_size
        return side if isinstance(side, tuple) else (side, side)


_BETA_SCHEDULES = ("linear", "quad", "const", "warmup10", "warmup50")


class DiffusionSection(Section):
    timesteps: PositiveInt = 1000
    """T, the number of noising steps."""
    schedule: Literal["linear", "quad", "const", "jsd", "warmup10", "warmup50", "cosine", "sigmoid"] = "linear"
    """How the noise grows with t."""
    beta_start: Annotated[float, Field(gt=0, lt=1)] | None = None
    """First beta of the beta schedules (default 0.0001)."""
    beta_end: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Last beta of the beta schedules (default 0.02)."""
    prediction: Literal["epsilon", "x0", "v", "mu"] = "epsilon"
    """What the network predicts."""
    variance: Literal["fixed_small", "fixed_large", "learned", "learned_range"] = "fixed_large"
    """Variance of the reverse steps: the posterior's (beta-tilde), beta, its logarithm as learned, or a learned place
    between the first two."""
    zero_terminal_snr: bool = False
    """Stretch the schedule so that x_T is noise alone."""

    @model_validator(mode="after")
    def _consistent(self) -> DiffusionSection:
        if self.schedule not in _BETA_SCHEDULES and (self.beta_start, self.beta_end) != (None, None):
            raise ValueError(
                f"beta_start and beta_end have no effect on the schedule '{self.schedule}'; "
                f"they belong to {', '.join(_BETA_SCHEDULES)}. Remove them"
            )
        if self.zero_terminal_snr and self.schedule == "jsd":
            raise ValueError("zero_terminal_snr: true has no effect on the schedule 'jsd', which ends so. Remove it")
        if self.zero_terminal_snr and self.timesteps < 2:
            raise ValueError("zero_terminal_snr: true needs timesteps: 2 or more")
        if self.ends_in_noise and self.prediction in ("epsilon", "mu"):
            what = "the schedule 'jsd'" if self.schedule == "jsd" else "a schedule with zero_terminal_snr: true"
            raise ValueError(
                f"{what} ends in pure noise (alpha_bar[T] = 0), where a prediction of "
                f"'{self.prediction}' says nothing about x0. Use prediction: v or prediction: x0"
            )
        return self

    @property
    def ends_in_noise(self) -> bool:
        """Whether alpha_bar[T] = 0."""
        return self.schedule == "jsd" or self.zero_terminal_snr

    @property
    def learns_variance(self) -> bool:
        """Whether the network answers with a variance too."""
        return self.variance in ("learned", "learned_range")


MOST_CHANNELS = 2**16
"""Of a level: with the other limits of a network, so that even a hostile configuration is soon built and refused."""


class NetworkSection(Section):
    channels: Annotated[int, Field(ge=4, multiple_of=2)] = 128
    """Feature maps at full resolution (even: half are sines, half cosines of the timestep)."""
    multipliers: Annotated[tuple[PositiveInt, ...], _tuple, Field(min_length=1, max_length=16)] = (1, 2, 2, 2)
    """Feature maps of each resolution level, as multiples of `channels`; each level halves the size."""
    blocks: Annotated[int, Field(gt=0, le=64)] = 2
    """Residual blocks a level (one more on the way up)."""
    attention: Annotated[tuple[PositiveInt, ...], _tuple] = (16,)
    """Feature-map sizes (shorter side) at which self-attention is applied."""
    heads: PositiveInt = 1
    """Attention heads."""
    dropout: Share = 0.0
    """Dropout inside the residual blocks."""
    time: Literal["add", "scale_shift"] = "add"
    """How the timestep enters a block: added (the paper), or as scale and shift of the norm."""
    resample: Literal["strided", "pooled"] = "strided"
    """Strided convolution down and convolution up (the paper), or pooling and repetition alone."""
    padding: Literal["same", "symmetric"] = "same"
    """Padding of the strided convolution: TensorFlow's SAME (the paper) or one pixel all round."""
    embedding: Literal["paper", "improved"] = "paper"
    """Timestep embedding: [sin, cos] with frequencies over half-1, or [cos, sin] over half."""
    patch: PositiveInt = 1
    """Squares of this many pixels a side become channels before the first convolution."""
    norm_groups: PositiveInt = 32
    """Groups of the group normalisation."""
    norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    """Epsilon of the group normalisation."""
    outer_bias: bool = True
    """Whether the first and the last convolution have a bias."""
    time_scale: Annotated[float, Field(gt=0)] = 1.0
    """Factor of the times that are embedded: improved-diffusion's `rescale_timesteps` is 1000 / T."""
    classes: Annotated[int, Field(ge=2, le=10**6)] | None = None
    """Classes that the network is told, as many as the data have (empty: none, unconditional)."""

    @model_validator(mode="after")
    def _consistent(self) -> NetworkSection:
        for width in {self.channels * m for m in self.multipliers}:
            if width > MOST_CHANNELS:
                raise ValueError(f"a level of {width:,} channels; at most {MOST_CHANNELS:,} are possible")
            if width % self.norm_groups:
                raise ValueError(
                    f"a level of {width} channels cannot be split into norm_groups: {self.norm_groups}; "
                    f"use a divisor such as {math.gcd(width, self.norm_groups)}"
                )
            if width % self.heads:
                raise ValueError(f"a level of {width} channels cannot be split into heads: {self.heads}")
        if self.resample == "pooled" and self.padding != "same":
            raise ValueError(f"padding: {self.padding} has no effect with resample: pooled. Remove it")
        return self


class TrainingSection(Section):
    steps: PositiveInt | None = None
    """Optimiser steps; give this or `epochs`."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the data; give this or `steps`."""
    batch_size: PositiveInt = 128
    """Images a step."""
    accumulation: PositiveInt = 1
    """Parts into which a batch is split to save memory; the gradients are summed."""
    loss: Literal["simple", "bound", "hybrid"] = "simple"
    """What is minimised: the prediction's squared error (L_simple), the variational bound, or L_simple plus a little of
    the bound for the sake of a learned variance."""
    vlb_weight: Annotated[float, Field(gt=0)] | None = None
    """lambda of the hybrid loss, L_simple + lambda L_vlb (default 0.001)."""
    weighting: Literal["none", "min_snr"] = "none"
    """Weights of L_simple over time; min_snr caps the weight that an error of x0 has by its SNR."""
    min_snr_gamma: Annotated[float, Field(gt=0)] | None = None
    """The cap of min_snr (default 5)."""
    timesteps: Literal["uniform", "importance"] = "uniform"
    """How t is drawn: uniformly, or in proportion to its latest losses, with weights that make up for it."""
    label_dropout: Annotated[float, Field(gt=0, lt=1)] | None = None
    """Share of the images whose class is withheld, by which the network learns to predict without one (default 0.1)."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Adam's step size after the warm-up."""
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    """Steps over which the learning rate grows from 0."""
    decay: Literal["constant", "linear", "cosine"] = "constant"
    """What the learning rate does after the warm-up."""
    decay_steps: PositiveInt | None = None
    """Step at which the decay reaches 0 (default: `steps`, as first started with)."""
    betas: Annotated[tuple[Share, Share], _tuple] = (0.9, 0.999)
    """Adam's decay rates."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Decoupled weight decay (AdamW); 0 is Adam."""
    grad_clip: Annotated[float, Field(gt=0)] | None = 1.0
    """Largest norm of the gradient; empty: not clipped."""
    skip_limit: PositiveInt = 10
    """Steps in a row whose loss or gradient is not finite, all skipped, after which the run goes back to its last good
    checkpoint and on at half the learning rate; the second time it stops."""
    ema_decay: Share = 0.9999
    """Decay of the moving average of the weights, approached as (1 + step) / (10 + step)."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """What the network computes in; weights, moments and EMA are float32 always."""
    kernels: Literal["auto", "plain", "fused"] = "auto"
    """The network's operations as torch has them, or fused ones compiled here (CPU); both float32-exact."""
    compile: Literal["auto", "on", "off"] = "auto"
    """torch.compile; auto: on NVIDIA GPUs, for runs of 1,000 steps and more."""
    parallel: Literal["ddp", "fsdp"] = "ddp"
    """How several processes (docs/scaling.md) hold the network: each a whole copy, or each a share of it."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """All randomness is a function of this and the step."""
    log_every: PositiveInt = 50
    """Steps between rows of metrics.jsonl."""
    save_every: PositiveInt = 1000
    """Steps between checkpoints."""
    keep_last: PositiveInt | None = None
    """How many checkpoints to keep (empty: all)."""
    preview_every: PositiveInt | None = None
    """Steps between preview grids and validation losses (default: `save_every`)."""
    preview_samples: PositiveInt = 16
    """Images in a preview grid."""
    preview_measured: Natural = 64
    """Samples that a preview's figures are measured on, 4 at least; 0: none are."""
    preview_steps: PositiveInt = 50
    """Sampling steps of a preview."""
    trackers: Annotated[tuple[TrackerName, ...], _tuple] = ()
    """Where metrics, previews and settings go besides TensorBoard: wandb, mlflow, or both (extras of those names)."""
    init_from: str | None = None
    """Checkpoint whose (EMA) weights training starts from: fine-tuning."""

    @model_validator(mode="after")
    def _consistent(self) -> TrainingSection:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either steps or epochs" + (", not both" if self.steps else ""))
        if self.batch_size % self.accumulation:
            raise ValueError(
                f"batch_size {self.batch_size} cannot be split into accumulation: {self.accumulation} equal parts"
            )
        if 0 < self.preview_measured < 4:
            raise ValueError(
                f"preview_measured: {self.preview_measured} samples are too few to measure anything on. Use 4 or more, "
                "or 0 to measure nothing"
            )
        if self.decay == "constant" and self.decay_steps is not None:
            raise ValueError("decay_steps has no effect with decay: constant. Remove it or set decay")
        if self.vlb_weight is not None and self.loss != "hybrid":
            raise ValueError(f"vlb_weight has no effect with loss: {self.loss}. Remove it or set loss: hybrid")
        if self.min_snr_gamma is not None and self.weighting != "min_snr":
            raise ValueError("min_snr_gamma has no effect with weighting: none. Remove it or set weighting: min_snr")
        if self.weighting != "none" and self.loss == "bound":
            raise ValueError(
                f"weighting: {self.weighting} belongs to L_simple; loss: bound has weights of its own. "
                "Remove it, or set loss: simple or hybrid"
            )
        return self


ClassesWord = Literal["all", "random", "none"]
"""What may stand in the place of class numbers."""
ABOUT_CLASSES = ("classes", "guidance", "guidance_interval")
"""Settings of sampling that belong to class-conditional networks."""


class SamplingSection(Section):
    sampler: SamplerName = "ancestral"
    """The solver: ancestral is Algorithm 2 of the paper; docs/samplers.md describes each."""
    steps: PositiveInt | None = None
    """The solver's steps (empty: all T). Network calls an image: as many, but up to 2 K - 1 for heun, K + 9 for pndm,
    K + 1 for plms."""
    spacing: Spacing | None = None
    """Which timesteps the steps visit (empty: trailing)."""
    eta: Annotated[float, Field(ge=0, le=1)] | None = None
    """Noise of ddim: 0 (empty) is deterministic, 1 ancestral."""
    order: Literal[1, 2, 3] | None = None
    """Order of dpm_solver, dpm_solver_sde and unipc (empty: 2)."""
    churn: Annotated[float, Field(ge=0)] | None = None
    """Noise that heun and euler add and remove on the way, S_churn (empty: 0)."""
    conventions: Literal["diffusers"] | None = None
    """Whose way to treat the ends (empty: ours). diffusers: the times that its DDPMScheduler and DDIMScheduler visit,
    noise in the last step of spacing: trailing, and in ddim the noise that the network meant where x0 was clipped."""
    clip: bool | Literal["dynamic"] = True
    """Clip each estimate of x0 to [-1, 1] (true), not at all (false), or to a quantile of its own pixels that is then
    scaled to 1 (dynamic)."""
    clip_quantile: Annotated[float, Field(gt=0, le=1)] | None = None
    """The quantile of clip: dynamic (empty: 0.995)."""
    classes: Annotated[tuple[Natural, ...], _tuple, Field(min_length=1)] | ClassesWord | None = None
    """Classes that the images have in turn, by number: image i has the class i mod their number. Empty or all: every
    class in turn; random: each image's is drawn from the seed; none: drawn unconditionally."""
    guidance: Annotated[float, Field(gt=0)] | None = None
    """Scale of classifier-free guidance: 1 (empty) is off, more is truer to the class and less varied."""
    guidance_interval: Annotated[tuple[Fraction, Fraction], _tuple] | None = None
    """[low, high]: guided only where low < t / T <= high (empty: [0, 1], everywhere)."""
    batch_size: PositiveInt = 64
    """Images sampled at a time; the images do not depend on it."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Sample number i is a function of this and i."""

    @model_validator(mode="after")
    def _effective(self) -> SamplingSection:
        for key in PARTICULAR:
            if getattr(self, key) is not None and key not in EFFECTIVE[self.sampler]:
                users = ", ".join(name for name, keys in EFFECTIVE.items() if key in keys)
                raise ValueError(
                    f"{key}: {getattr(self, key)} has no effect on the sampler {self.sampler}; it belongs to {users}. "
                    "Remove it or change sampler"
                )
        if self.spacing not in (None, "karras") and self.steps is None:
            raise ValueError(
                f"spacing: {self.spacing} has no effect while all timesteps are visited. Set steps, or remove it"
            )
        if self.sampler in ("pndm", "plms") and self.spacing in ("quadratic", "karras"):
            raise ValueError(
                f"spacing: {self.spacing} does not suit the sampler {self.sampler}, whose rules take the steps for "
                "equally long. Use trailing, linspace or leading"
            )
        if self.conventions is not None and self.spacing in ("quadratic", "karras"):
            raise ValueError(
                f"spacing: {self.spacing} is none of conventions: {self.conventions}. Use trailing, linspace "
                "or leading, or remove conventions"
            )
        if self.clip_quantile is not None and self.clip != "dynamic":
            raise ValueError(
                f"clip_quantile: {self.clip_quantile} has no effect with clip: {str(self.clip).lower()}. "
                "Set clip: dynamic, or remove it"
            )
        if self.guided and self.classes == "none":
            raise ValueError(f"guidance: {self.guidance} has no effect with classes: none. Remove one of them")
        if self.guidance_interval is not None:
            low, high = self.guidance_interval
            if not self.guided:
                raise ValueError(
                    f"guidance_interval: [{low}, {high}] has no effect without guidance. Set guidance, or remove it"
                )
            if low >= high:
                raise ValueError(f"guidance_interval: [{low}, {high}] is empty; expected [low, high] with low < high")
        return self

    @property
    def guided(self) -> bool:
        """Whether guidance changes the predictions."""
        return self.guidance not in (None, 1)


class Config(Section):
    """A run, whole: what is learned, by which network, how it is trained and sampled."""

    data: DataSection
    diffusion: DiffusionSection = DiffusionSection()
    network: NetworkSection = NetworkSection()
    training: TrainingSection
    sampling: SamplingSection = SamplingSection()

    @model_validator(mode="after")
    def _consistent(self) -> Config:
        if self.diffusion.timesteps < (self.sampling.steps or 1):
            raise ValueError(
                f"sampling.steps: {self.sampling.steps} is more than diffusion.timesteps: {self.diffusion.timesteps}"
            )
        if self.diffusion.ends_in_noise and self.sampling.spacing == "karras":
            raise ValueError(
                "sampling.spacing: karras needs a finite sigma at T, but the schedule ends in pure noise. "
                "Use another spacing"
            )
        self._check_objective()
        self._check_classes()
        self._check_stream()
        network = self.network
        factor = network.patch * 2 ** (len(network.multipliers) - 1)
        bad = [side for side in self.data.size if side % factor]
        if bad:
            side = bad[0]
            near = [s for s in (side // factor * factor, (side // factor + 1) * factor) if s]
            patches = f" after patches of {network.patch}" if network.patch > 1 else ""
            raise ValueError(
                f"data.image_size: {side} does not fit the network, which halves it {len(network.multipliers) - 1} "
                f"times{patches}: sides must be multiples of {factor} (the nearest: {' or '.join(map(str, near))})"
            )
        short = min(self.data.size) // network.patch
        sizes = [short >> level for level in range(len(network.multipliers))]
        missing = [a for a in network.attention if a not in sizes]
        if missing:
            raise ValueError(
                f"network.attention: {list(network.attention)}: no feature map has the size "
                f"{missing[0]}; the sizes are {', '.join(map(str, sizes))}"
            )
        return self

    def _check_objective(self) -> None:
        """Refuse combinations of prediction, variance and loss that have no meaning."""
        diffusion, training, sampling = self.diffusion, self.training, self.sampling
        if diffusion.learns_variance and training.loss == "simple":
            raise ValueError(
                f"training.loss: simple says nothing of the variance, so that diffusion.variance: {diffusion.variance} "
                "would stay untrained. Use training.loss: hybrid or bound, or diffusion.variance: fixed_large"
            )
        if training.loss == "hybrid" and not diffusion.learns_variance:
            raise ValueError(
                "training.loss: hybrid adds a loss for the variance alone, which has no effect with "
                f"diffusion.variance: {diffusion.variance}. Use training.loss: simple or bound, or "
                "diffusion.variance: learned_range"
            )
        if training.loss != "simple" and diffusion.timesteps < 2:
            raise ValueError(f"training.loss: {training.loss} needs diffusion.timesteps: 2 or more")
        if training.weighting == "min_snr" and diffusion.ends_in_noise:
            raise ValueError(
                "training.weighting: min_snr gives t = T the weight 0 where the schedule ends in pure noise, so that "
                "the first sampling step would never be learned. Use training.weighting: none or another schedule"
            )
        shortened = (sampling.steps or diffusion.timesteps) < diffusion.timesteps
        if diffusion.variance == "learned" and sampling.sampler == "ancestral" and shortened:
            raise ValueError(
                f"sampling.steps: {sampling.steps}: diffusion.variance: learned is learned for t -> t-1 and says "
                f"nothing of longer steps. Leave sampling.steps empty (all {diffusion.timesteps}), or use "
                "diffusion.variance: learned_range"
            )

    def _check_classes(self) -> None:
        """Refuse what needs classes where the network has none, and classes that it has not."""
        count, sampling = self.network.classes, self.sampling
        given = {"training.label_dropout": self.training.label_dropout}
        given |= {f"sampling.{key}": getattr(sampling, key) for key in ABOUT_CLASSES}
        for key, value in given.items():
            if count is None and value is not None:
                raise ValueError(
                    f"{key}: {value} has no effect on an unconditional network. Set network.classes to the number of "
                    "classes in the data, or remove it"
                )
        if count is not None and isinstance(sampling.classes, tuple) and max(sampling.classes) >= count:
            raise ValueError(
                f"sampling.classes: {max(sampling.classes)} is no class: network.classes: {count} has 0 to {count - 1}"
            )

    def _check_stream(self) -> None:
        """Refuse what would need to know the images of a stream beforehand, and labels that nobody reads."""
        data, training = self.data, self.training
        if not data.streamed:
            return
        if training.epochs is not None:
            raise ValueError(
                f"training.epochs: {training.epochs:g}: the images of a stream are not counted beforehand. Set "
                "training.steps instead (epochs x images / batch_size)"
            )
        if data.label_column is not None and self.network.classes is None:
            raise ValueError(
                f"data.label_column: {data.label_column!r} has no effect: labels of a stream are read only for a "
                "network that is told them. Set network.classes to their number, or remove it"
            )

    @field_validator("*", mode="before")
    @classmethod
    def _empty_section(cls, value: Any) -> Any:
        return {} if value is None else value  # "sampling:" with all its keys commented out


@dataclass(frozen=True)
class LoadedConfig:
    """A configuration with the place each of its settings came from."""

    config: Config
    path: Path
    origins: Mapping[str, str]
    """By dotted key: "line 12" or "--set ..."; a key that is absent has its default."""


def shipped_configs() -> Path:
    """The folder of the configurations that come with the package."""
    packaged = Path(str(resources.files("ddpm"))) / "configs"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "configs"


def find_config(name: str | Path) -> Path:
    """The file that `name` means: a path, or a shipped configuration such as `image/mnist/ddpm_cpu`.

    Raises ConfigError with the nearest names when there is none.
    """
    path = Path(name)
    if path.is_file():
        return path
    root = shipped_configs()
    relative = Path(*path.parts[1:]) if path.parts[:1] == ("configs",) else path
    for candidate in (root / relative, (root / relative).with_name(relative.name + ".yaml")):
        if candidate.is_file() and root.resolve() in candidate.resolve().parents:
            return candidate
    known = sorted(str(p.relative_to(root).with_suffix("")) for p in root.rglob("*.yaml"))
    near = difflib.get_close_matches(str(relative).removesuffix(".yaml"), known, n=1, cutoff=0.5)
    hint = f" Did you mean {near[0]}?" if near else ""
    raise ConfigError(
        f"{name}: no such file, nor a shipped configuration.{hint}\nShipped configurations: {', '.join(known)}"
    )


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read, check and resolve a configuration.

    Args:
        path: a YAML file, or the name of a shipped configuration ("image/mnist/ddpm_cpu").
        overrides: settings as "section.key=value", which win over the file.

    Raises:
        ConfigError: anything wrong, all mistakes in one message.
    """
    return load_config_with_origins(path, overrides).config


def load_config_with_origins(path: str | Path, overrides: Sequence[str] = ()) -> LoadedConfig:
    """`load_config` that also says where each setting came from."""
    file = find_config(path)
    values, origins = _read_yaml(file)
    origins |= override_values(values, overrides)
    return LoadedConfig(parse_config(values, source=str(file), origins=origins), file, origins)


def override_values(values: dict[str, Any], overrides: Sequence[str]) -> dict[str, str]:
    """Apply "section.key=value" to plain values, in place; returns the origin of each key. Raises ConfigError."""
    origins = {}
    for override in overrides:
        key, value = parse_override(override)
        section, _, name = key.partition(".")
        if not isinstance(values.setdefault(section, {}), dict):
            values[section] = {}
        values[section][name] = value
        origins[key] = f"--set {_short(override)}"
    return origins


def parse_config(values: Mapping[str, Any], *, source: str, origins: Mapping[str, str] | None = None) -> Config:
    """Check plain values (as YAML or a checkpoint holds them).

    Raises ConfigError whose lines begin with `source`.
    """
    try:
        return Config.model_validate(dict(values))
    except ValidationError as error:
        lines = (_explain(e, origins or {}) for e in error.errors(include_url=False))
        raise ConfigError("\n".join(f"{source}: {line}" for line in lines)) from None


def plain(config: Config) -> dict[str, Any]:
    """The configuration as plain nested dictionaries and lists (for YAML, JSON and checkpoints)."""
    return json.loads(config.model_dump_json())  # type: ignore[no-any-return]


def to_yaml(config: Config) -> str:
    """The configuration, every key written out, as YAML that `load_config` reads back."""
    from ruamel.yaml import YAML

    yaml, buffer = YAML(typ="rt", pure=True), io.StringIO()
    yaml.default_flow_style = False
    yaml.dump(plain(config), buffer)
    return buffer.getvalue()


def flatten(config: Config) -> dict[str, Any]:
    """Settings by dotted key, in the order of the schema."""
    return {f"{section}.{key}": value for section, settings in plain(config).items() for key, value in settings.items()}


def differences(old: Config, new: Config, *, keys: Iterable[str] | None = None) -> list[str]:
    """Lines "key: old -> new" for every setting that differs (of `keys`, if given)."""
    before, after = flatten(old), flatten(new)
    return [
        f"{key}: {before[key]} -> {after[key]}"
        for key in (keys if keys is not None else before)
        if before[key] != after[key]
    ]


def _read_yaml(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    from ruamel.yaml import YAML
    from ruamel.yaml.comments import CommentedMap

    try:
        # The round-trip loader keeps line numbers and builds no objects of its own accord.
        tree = YAML(typ="rt", pure=True).load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not a UTF-8 text file (byte {error.start})") from error
    except Exception as error:  # YAMLError for bad syntax; odd tags and numbers can raise anything
        mark = getattr(error, "problem_mark", None)
        place = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{path}{place}: is not valid YAML: {getattr(error, 'problem', None) or error}") from error
    if not isinstance(tree, CommentedMap):
        raise ConfigError(f"{path}: found {_show(tree)}, expected sections: {', '.join(Config.model_fields)}")
    values: dict[str, Any] = {}
    origins: dict[str, str] = {}
    seen = itertools.count(1)
    for section, settings in tree.items():
        try:
            values[str(section)] = _plain(settings, seen=seen)
        except ValueError as error:
            raise ConfigError(f"{path}: {error}; a configuration has about a hundred") from None
        origins[str(section)] = f"line {tree.lc.key(section)[0] + 1}"
        if isinstance(settings, CommentedMap):
            for key in settings:
                # A merge key (<<) has no line of its own.
                line = settings.lc.data.get(key)
                if line is not None:
                    origins[f"{section}.{key}"] = f"line {line[0] + 1}"
    return values, origins


_MOST = 10_000
"""Values that a file may hold; aliases of aliases make billions out of a few lines."""


def _plain(value: Any, depth: int = 0, seen: Iterator[int] | None = None) -> Any:
    """ruamel's scalars and containers as Python's own; anything else stays, to be refused by the schema.

    Raises ValueError for too many values, and for numbers of more digits than Python prints.
    """
    seen = seen or itertools.count(1)
    if next(seen) > _MOST:
        raise ValueError(f"holds more than {_MOST:,} values")
    if depth > 8:
        return "... nested too deeply"
    if isinstance(value, dict):
        return {str(k): _plain(v, depth + 1, seen) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v, depth + 1, seen) for v in value]
    if isinstance(value, int) and value.bit_length() > 1024:
        raise ValueError("holds a number of hundreds of digits")
    for kind in (bool, int, float, str):
        if isinstance(value, kind):
            return kind(value)
    return value


def parse_override(text: str) -> tuple[str, Any]:
    """The key and the value of "section.key=value". Raises ConfigError."""
    from ruamel.yaml import YAML

    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or key.count(".") != 1:
        raise ConfigError(f"--set {_short(text)}: expected section.key=value, for example training.steps=1000")
    try:
        return key, _plain(YAML(typ="safe", pure=True).load(value))
    except Exception as error:  # as in `_read_yaml`
        raise ConfigError(f"--set {_short(text)}: the value is not valid YAML") from error


def _explain(error: Any, origins: Mapping[str, str]) -> str:
    """One pydantic error in a person's words."""
    parts = [str(p) for p in error["loc"]]
    # A union (image_size: a number or a pair) adds its branch's name to the path; a person wants the key.
    key = ".".join(parts[:2])
    origin = origins.get(key) or origins.get(parts[0] if parts else "")
    place = f"{origin}: " if origin else ""
    kind, found = error["type"], _show(error.get("input"))
    if kind == "extra_forbidden":
        return f"{place}{_short(key)}: unknown key (found: {found}).{_nearest(parts)}"
    if kind == "missing":
        return f"{place}{key}: is missing" + (
            f"; one of {', '.join(_sections_of(parts[0]))}" if len(parts) == 1 else ""
        )
    if kind == "value_error":
        message = str(error["ctx"]["error"])
        return f"{place}{key}: {message}" if key else message
    message = error["msg"].removeprefix("Input should be ").removeprefix("a valid ")
    return f"{place}{key}: found {found}, expected {message}"


def _sections_of(section: str) -> list[str]:
    field = Config.model_fields.get(section)
    annotation = field.annotation if field else None
    return list(annotation.model_fields) if isinstance(annotation, type) and issubclass(annotation, BaseModel) else []


def _nearest(parts: list[str]) -> str:
    """ " Did you mean ...?" with the nearest valid key, first in the same section, then anywhere."""
    if len(parts) == 1:
        near = difflib.get_close_matches(parts[0], list(Config.model_fields), n=1)
        return f" Did you mean {near[0]}?" if near else f" Allowed: {', '.join(Config.model_fields)}"
    section, name = parts[0], parts[-1]
    here = _sections_of(section)
    elsewhere = {key: s for s in Config.model_fields for key in _sections_of(s)}
    near = [] if name in elsewhere else difflib.get_close_matches(name, here, n=1)
    if near:
        return f" Did you mean {section}.{near[0]}?"
    near = difflib.get_close_matches(name, list(elsewhere), n=1)
    if near:
        return f" Did you mean {elsewhere[near[0]]}.{near[0]}?"
    return f" Allowed: {', '.join(here)}"


def _show(value: Any) -> str:
    try:
        text = json.dumps(value, default=str) if not isinstance(value, str) else f"'{value}'"
    except (ValueError, TypeError, RecursionError):  # a number of thousands of digits, a list in itself
        text = f"something of type {type(value).__name__}"
    return _short(text, 60)


def _short(text: str, most: int = 200) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
