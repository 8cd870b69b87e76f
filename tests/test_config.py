"""The configuration: what is wrong is said, all of it, in a person's words."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest

from ddpm.config import (
    Config,
    differences,
    find_config,
    flatten,
    load_config,
    load_config_with_origins,
    parse_config,
    plain,
    shipped_configs,
    to_yaml,
)
from ddpm.errors import ConfigError
from tests.tiny import tiny

GOOD = """\
data:
  source: digits
  image_size: 8
  channels: 1
network:
  channels: 32
  multipliers: [1, 2]
  attention: [4]
training:
  steps: 10
"""


@pytest.fixture
def good(tmp_path: Path) -> Path:
    path = tmp_path / "good.yaml"
    path.write_text(GOOD)
    return path


def _complaint(tmp_path: Path, text: str, *overrides: str) -> str:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(path, overrides)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_good_file_loads(good: Path) -> None:
    config = load_config(good)
    assert config.data.size == (8, 8)
    assert config.network.multipliers == (1, 2)
    assert config.training.learning_rate == 2e-4


def test_exponents_without_a_point_are_numbers(good: Path) -> None:
    good.write_text(GOOD + "  learning_rate: 1e-3\n")
    assert load_config(good).training.learning_rate == 1e-3


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "steps: 10",
            "stepps: 10",
            ["line 10: training.stepps: unknown key (found: 10). Did you mean training.steps?"],
        ),
        ("steps: 10", "steps: ten", ["training.steps: found 'ten', expected integer"]),
        ("steps: 10", "steps: 10.5", ["training.steps: found 10.5"]),
        ("steps: 10", "steps: true", ["training.steps: found true"]),
        ("steps: 10", "steps: -1", ["training.steps: found -1, expected greater than 0"]),
        ("steps: 10", "steps: 10\n  epochs: 2", ["steps or epochs, not both"]),
        ("steps: 10", "batch_size: 4", ["either steps or epochs"]),
        ("steps: 10", "steps: 10\n  dropout: 0.1", ["training.dropout: unknown key", "network.dropout"]),
        ("steps: 10", "steps: 10\n  batch_size: 10\n  accumulation: 3", ["10", "accumulation: 3"]),
        ("steps: 10", "steps: 10\n  decay_steps: 5", ["decay_steps has no effect"]),
        ("source: digits", "source: dgits", ["data.source: found 'dgits'", "'mnist'", "'folder'"]),
        ("channels: 1", "channels: 2", ["data.channels: found 2, expected 1 or 3"]),
        ("image_size: 8", "image_size: 7", ["image_size: 7", "multiples of 2", "6 or 8"]),
        ("image_size: 8", "image_size: [8, 9]", ["image_size: 9", "8 or 10"]),
        ("image_size: 8", "image_size: [8]", ["data.image_size"]),
        ("attention: [4]", "attention: [16]", ["no feature map has the size 16", "8, 4"]),
        ("channels: 32", "channels: 30", ["norm_groups: 32"]),
        ("channels: 32", "channels: 32\n  heads: 3", ["heads: 3"]),
        (
            "channels: 32",
            "channels: 32\n  resample: pooled\n  padding: symmetric",
            ["padding: symmetric has no effect"],
        ),
        ("network:", "netwrok:", ["netwrok: unknown key", "Did you mean network?"]),
        ("data:", "dat:\n", ["data: is missing"]),
        ("network:", "diffusion:\n  schedule: jsd\nnetwork:", ["alpha_bar[T] = 0", "prediction: v", "x0"]),
        ("network:", "diffusion:\n  schedule: cosine\n  beta_end: 0.1\nnetwork:", ["no effect", "linear"]),
        ("network:", "diffusion:\n  timesteps: 5\nsampling:\n  steps: 6\nnetwork:", ["sampling.steps: 6", "5"]),
        ("training:", "training: 3\nx:", ["training"]),
        *(
            ("network:", f"sampling: {{{settings}}}\nnetwork:", expected)
            for settings, expected in (
                ("eta: 0.5", ["sampling: eta: 0.5 has no effect on the sampler ancestral", "belongs to ddim"]),
                ("sampler: ddim, order: 3", ["order: 3 has no effect", "dpm_solver, dpm_solver_sde, unipc"]),
                ("sampler: unipc, churn: 3.0", ["churn: 3.0 has no effect", "heun, euler"]),
                ("sampler: ddim, eta: 1.5", ["sampling.eta: found 1.5"]),
                ("sampler: ddmi", ["sampling.sampler: found 'ddmi'", "'plms'"]),
                ("spacing: trailing", ["spacing: trailing has no effect", "Set steps"]),
                ("sampler: plms, steps: 9, spacing: karras", ["karras does not suit", "trailing"]),
                ("clip_quantile: 0.9", ["clip_quantile: 0.9 has no effect with clip: true"]),
                ("clip: both", ["sampling.clip"]),
            )
        ),
        (
            "network:",
            "diffusion: {schedule: jsd, prediction: v}\nsampling: {spacing: karras}\nnetwork:",
            ["karras needs a finite sigma"],
        ),
    ],
)
def test_mistakes_are_explained(tmp_path: Path, old: str, new: str, expected: list[str]) -> None:
    message = _complaint(tmp_path, GOOD.replace(old, new, 1))
    assert "bad.yaml" in message
    for part in expected:
        assert part in message


def test_all_mistakes_at_once(tmp_path: Path) -> None:
    text = GOOD.replace("steps: 10", "stepps: 10").replace("source: digits", "source: 3")
    message = _complaint(tmp_path, text)
    assert "stepps" in message
    assert "data.source: found 3" in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("data: [1, 2", "is not valid YAML"),
        ("a: 1\na: 2", "is not valid YAML"),
        ("", "expected sections"),
        ("- 1", "expected sections"),
        ("data: !!python/object/apply:os.system ['true']\n", "data"),
        ("data: &a [*a]\n", "data"),
    ],
)
def test_what_is_no_configuration(tmp_path: Path, text: str, expected: str) -> None:
    assert expected in _complaint(tmp_path, text)


def test_binary_and_absent_files(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="UTF-8"):
        load_config(path)
    with pytest.raises(ConfigError, match="no such file") as caught:
        load_config("image/mnist/ddpm_gpu")
    assert "Did you mean image/mnist/ddpm_cpu?" in str(caught.value)


def test_a_name_cannot_leave_the_shipped_folder() -> None:
    with pytest.raises(ConfigError, match="no such file"):
        find_config("../pyproject")


def test_overrides_win_and_are_remembered(good: Path) -> None:
    loaded = load_config_with_origins(good, ["training.steps=20", "network.multipliers=[1, 1]", "data.root=a b"])
    assert loaded.config.training.steps == 20
    assert loaded.config.network.multipliers == (1, 1)
    assert loaded.config.data.root == "a b"
    assert loaded.origins["training.steps"] == "--set training.steps=20"
    assert loaded.origins["data.source"] == "line 2"
    assert "training.batch_size" not in loaded.origins


@pytest.mark.parametrize("override", ["training.steps", "steps=3", "a.b.c=1", "training.steps=[", "training.stepz=3"])
def test_bad_overrides(good: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load_config(good, [override])


@pytest.mark.parametrize("override", ["{}", "data.source={}", "data.source={}: *", "data.{}=1"])
def test_a_long_override_is_not_said_whole(good: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set") as error:
        load_config(good, [override.format("f" * 30_000)])
    assert len(str(error.value)) < 1000


def test_an_empty_section_is_its_defaults(good: Path) -> None:
    good.write_text(GOOD + "sampling:\n")
    assert load_config(good).sampling.sampler == "ancestral"


@pytest.mark.parametrize("path", sorted(shipped_configs().rglob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configurations_load_and_survive_a_round_trip(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    assert parse_config(plain(config), source="again") == config
    written = tmp_path / "written.yaml"
    written.write_text(to_yaml(config))
    assert load_config(written) == config
    assert load_config(str(path.relative_to(shipped_configs()).with_suffix(""))) == config


def test_differences_name_both_values(good: Path) -> None:
    a, b = load_config(good), load_config(good, ["training.steps=11"])
    assert differences(a, b) == ["training.steps: 10 -> 11"]
    assert differences(a, b, keys=["data.source"]) == []


def test_the_record_is_frozen(good: Path) -> None:
    from pydantic import ValidationError

    with pytest.raises(ValidationError):
        load_config(good).training.steps = 3  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    for section, field in Config.model_fields.items():
        for key, setting in field.annotation.model_fields.items():  # type: ignore[union-attr]
            assert setting.description, f"{section}.{key}"
    assert len(flatten(load_config("image/mnist/ddpm_32x32_epsilon_discrete"))) > 40


def _objective(**changes: object) -> Config:
    return tiny(**{"sampling__steps": None} | changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"diffusion__variance": "learned"}, ["variance: learned", "untrained", "hybrid or bound"]),
        ({"diffusion__variance": "learned_range"}, ["variance: learned_range", "untrained"]),
        ({"training__loss": "hybrid"}, ["no effect with diffusion.variance: fixed_large", "learned_range"]),
        ({"training__vlb_weight": 0.1}, ["vlb_weight has no effect with loss: simple", "hybrid"]),
        ({"training__min_snr_gamma": 3.0}, ["min_snr_gamma has no effect with weighting: none"]),
        ({"training__weighting": "min_snr", "training__loss": "bound"}, ["weights of its own"]),
        ({"training__loss": "bound", "diffusion__timesteps": 1}, ["timesteps: 2 or more"]),
        (
            {"diffusion__zero_terminal_snr": True},
            ["zero_terminal_snr: true", "'epsilon' says nothing", "prediction: v"],
        ),
        ({"diffusion__zero_terminal_snr": True, "diffusion__prediction": "mu"}, ["'mu' says nothing"]),
        (
            {"diffusion__zero_terminal_snr": True, "diffusion__prediction": "v", "diffusion__schedule": "jsd"},
            ["no effect on the schedule 'jsd'"],
        ),
        (
            {"diffusion__zero_terminal_snr": True, "diffusion__prediction": "v", "training__weighting": "min_snr"},
            ["weight 0", "weighting: none"],
        ),
        (
            {"diffusion__variance": "learned", "training__loss": "bound", "sampling__steps": 5},
            ["sampling.steps: 5", "longer steps", "learned_range"],
        ),
    ],
)
def test_objectives_without_a_meaning_are_refused(changes: dict[str, object], expected: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        _objective(**changes)
    for part in expected:
        assert part in str(caught.value)


def test_objectives_with_a_meaning_are_accepted() -> None:
    """All combinations of the choices: just the listed reasons refuse one."""
    accepted = 0
    for prediction, variance, loss, weighting, times, zero in itertools.product(
        ("epsilon", "x0", "v", "mu"),
        ("fixed_small", "fixed_large", "learned", "learned_range"),
        ("simple", "bound", "hybrid"),
        ("none", "min_snr"),
        ("uniform", "importance"),
        (False, True),
    ):
        meaningful = (
            not (variance.startswith("learned") and loss == "simple")
            and not (variance.startswith("fixed") and loss == "hybrid")
            and not (weighting == "min_snr" and (loss == "bound" or zero))
            and not (zero and prediction in ("epsilon", "mu"))
        )
        changes = {
            "diffusion__prediction": prediction,
            "diffusion__variance": variance,
            "diffusion__zero_terminal_snr": zero,
            "training__loss": loss,
            "training__weighting": weighting,
            "training__timesteps": times,
        }
        if not meaningful:
            with pytest.raises(ConfigError):
                _objective(**changes)
            continue
        config = _objective(**changes)
        assert parse_config(plain(config), source="again") == config
        accepted += 1
    assert accepted == 128


def test_the_example_of_the_objectives_page(tmp_path: Path) -> None:
    page = (Path(__file__).parents[1] / "docs" / "objectives.md").read_text()
    example = page.split("```yaml\n")[1].split("```")[0]
    path = tmp_path / "improved.yaml"
    path.write_text(GOOD.replace("training:\n", "").replace("  steps: 10\n", "") + example + "  steps: 10\n")
    config = load_config(path)
    assert (config.diffusion.variance, config.training.loss) == ("learned_range", "hybrid")
    for section, settings in {"diffusion": config.diffusion, "training": config.training}.items():
        for key in re.findall(rf"`{section}\.(\w+)`", page):
            assert key in type(settings).model_fields


def test_numbers_too_long_to_print_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config("image/digits/ddpm_8x8", ["sampling.batch_size=0x" + "f" * 4000])
    path = tmp_path / "c.yaml"
    path.write_text(f"sampling: {{batch_size: 0x{'f' * 4000}}}")
    with pytest.raises(ConfigError, match="hundreds of digits"):
        load_config(path)
