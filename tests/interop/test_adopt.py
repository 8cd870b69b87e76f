"""Files from elsewhere as checkpoints: told apart, read without running code, sampled by their own conventions."""

from __future__ import annotations

import copy
import json
import math
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ddpm import checkpoint, generate, model_file
from ddpm.checkpoint import DataFacts
from ddpm.config import plain
from ddpm.errors import CheckpointError, ConfigError, DDPMError, UsageError
from ddpm.images import Crop
from ddpm.interop.adopt import adopt
from ddpm.interop.bare import bare_checkpoint
from ddpm.interop.xdiffusion import diffusion_settings
from ddpm.model_file import ModelFile
from ddpm.training_loop import build_diffusion, build_network
from tests.interop.test_improved import small
from tests.reference import arrays
from tests.tiny import tiny

XDIFFUSION = "unet/xdiffusion_tiny/diffusion-10.pt"


def test_the_lessons_checkpoint_samples_by_its_conventions(golden: Path, tmp_path: Path) -> None:
    """Its sampler's step at several times, the last one included: the variance beta, and x_0 at the end."""
    adopted = adopt(golden / XDIFFUSION)
    assert (adopted.kind, adopted.checkpoint.step) == ("xdiffusion", 10)
    checkpoint.save(tmp_path / "model.pt", adopted.checkpoint)
    model = generate.load(tmp_path / "model.pt", device="cpu")
    tables = {key: torch.from_numpy(a) for key, a in arrays(golden / "unet/xdiffusion_tiny/io.npz").items()}
    x, noise = tables["p_sample.x"], tables["p_sample.noise"]
    for theirs, expected in zip(tables["p_sample.t"].tolist(), tables["p_sample.out"], strict=True):
        t = theirs + 1
        with torch.no_grad():
            gaussian, _ = model.diffusion.p(model.network, x, t, t - 1, clip=True)
        drawn = gaussian.mean if t == 1 else gaussian.sample(noise)
        assert (drawn - expected).abs().max() < 1e-4
    recorded = tables["xdiffusion_posterior_log_variance_clipped"]
    for t in (2, 500, 1000):
        log_var = model.diffusion.posterior(x, x, t, t - 1).log_var
        assert float(log_var) == pytest.approx(float(recorded[t - 1]), abs=1e-4)
    assert float(recorded[0]) == pytest.approx(math.log(1e-20))  # where ours is -inf, and neither is used
    images = generate.sample(model, 2, steps=4)
    assert images.shape == (2, 16, 16, 1)


CHANGED: list[tuple[tuple[str, ...], Any, str]] = [
    (("parameterization",), "rectified_flow", "parameterization: found 'rectified_flow'"),
    (("sampling", "target"), "xdiffusion.samplers.ddim.DDIMSampler", "target: found 'xdiffusion.samplers.ddim"),
    (("sampling", "params"), {"eta": 1}, "params: found {'eta': 1}"),
    (("noise_scheduler", "target"), "xdiffusion.scheduler.ContinuousNoiseScheduler", "target: found 'xdiffusion.sched"),
    (("noise_scheduler", "params", "schedule_type"), "sigmoid", "schedule_type: found 'sigmoid'"),
    (("noise_scheduler", "params", "min_snr"), 5, "min_snr: unknown field (found: 5)"),
    (("context_preprocessing",), [], "context_preprocessing: found []"),
    (("classifier_free_guidance", "classifier_free_guidance"), 2.0, "classifier_free_guidance: found 2.0"),
    (("latent_encoder",), {}, "latent_encoder: unknown field"),
    (("noise_scheduler", "params", "schedule_type"), "cosine", "alphas_cumprod is not that of schedule_type cosine"),
    (("noise_scheduler", "params", "num_scales"), 500, "alphas_cumprod is not that of schedule_type linear"),
]


@pytest.mark.parametrize(("path", "value", "message"), CHANGED, ids=lambda v: str(v)[:50])
def test_what_is_not_followed_of_its_process_is_refused(
    golden: Path, tmp_path: Path, path: tuple[str, ...], value: Any, message: str
) -> None:
    content = torch.load(golden / XDIFFUSION, weights_only=True)
    section = content["config"]["diffusion"]
    for name in path[:-1]:
        section = section[name]
    section[path[-1]] = value
    torch.save(content, tmp_path / "changed.pt")
    with pytest.raises(DDPMError, match=re.escape(message)):
        adopt(tmp_path / "changed.pt")


def test_its_other_processes_are_ours(golden: Path) -> None:
    config = torch.load(golden / XDIFFUSION, weights_only=True)["config"]
    other = copy.deepcopy(config)
    other["diffusion"]["parameterization"] = "v"
    other["diffusion"]["noise_scheduler"]["params"] |= {"schedule_type": "quadratic", "num_scales": 50}
    assert diffusion_settings(other) == {
        "timesteps": 50,
        "schedule": "quad",
        "prediction": "v",
        "variance": "fixed_large",
    }


def test_improved_diffusions_file_needs_what_it_does_not_say(tmp_path: Path) -> None:
    path = tmp_path / "ema_0.9999_010000.pt"
    torch.save(small(True), path)
    with pytest.raises(UsageError, match=r"do not say how large the images are: give --set data\.image_size=N"):
        adopt(path)
    adopted = adopt(path, ["data.image_size=16", "diffusion.timesteps=4000", "diffusion.schedule=cosine"])
    config = adopted.checkpoint.config
    assert config.network.time_scale == 0.25  # its rescale_timesteps
    assert (config.diffusion.schedule, config.diffusion.variance) == ("cosine", "fixed_large")
    assert adopted.assumed == {"network.heads": 4, "network.time_scale": 0.25}
    assert adopt(path, ["data.image_size=16"]).checkpoint.config.network.time_scale == 1
    # Its linear schedule is scaled with T, so that any T ends alike.
    short = adopt(path, ["data.image_size=16", "diffusion.timesteps=100", "network.heads=2"]).checkpoint.config
    betas = build_diffusion(short).schedule.betas
    assert betas[0] == pytest.approx(1e-3)
    assert betas[-1] == pytest.approx(0.2)
    assert short.network.heads == 2
    rectangular = adopt(path, ["data.image_size=[8, 16]"]).checkpoint.config
    assert rectangular.data.size == (8, 16)
    with pytest.raises(UsageError, match=r"--set network\.heads: found 'two'"):
        adopt(path, ["data.image_size=16", "network.heads=two"])
    with pytest.raises(UsageError, match=r"--set network\.blocks: .* says 1"):
        adopt(path, ["data.image_size=16", "network.blocks=3"])
    with pytest.raises(ConfigError, match="found 'spiral'"):
        adopt(path, ["data.image_size=16", "diffusion.schedule=spiral"])
    with pytest.raises(ConfigError, match=r"data\.image_siz: unknown key"):
        adopt(path, ["data.image_size=16", "data.image_siz=3"])


def test_improved_diffusions_learned_variance(tmp_path: Path) -> None:
    weights = small(True)
    weights["out.2.weight"] = weights["out.2.weight"].repeat(2, 1, 1, 1)
    weights["out.2.bias"] = weights["out.2.bias"].repeat(2)
    torch.save(weights, tmp_path / "model.pt")
    config = adopt(tmp_path / "model.pt", ["data.image_size=16"]).checkpoint.config
    assert (config.diffusion.variance, config.training.loss) == ("learned_range", "hybrid")
    with pytest.raises(CheckpointError, match=r"conv_out\.weight: found \(2, 32, 3, 3\), expected \(1, 32, 3, 3\)"):
        adopt(tmp_path / "model.pt", ["data.image_size=16", "diffusion.variance=fixed_small", "training.loss=simple"])


def test_our_safetensors_come_back_whole(tmp_path: Path) -> None:
    config = tiny(sampling__sampler="ddim", sampling__eta=0.5)
    weights = build_network(config).state_dict()
    facts = DataFacts(1617, "ab" * 32, ("0", "1"), Crop(1, 2, 3, 4))
    path = tmp_path / "w.safetensors"
    model_file.write(path, ModelFile(config, facts, 12, weights, "float32", "a card"))
    back = adopt(path).checkpoint
    assert (back.step, back.config, back.data) == (12, config, facts)
    assert back.ema.keys() == weights.keys()
    assert all(torch.equal(value, back.ema[name]) for name, value in weights.items())
    with pytest.raises(UsageError, match=re.escape("holds its whole configuration; leave data.source out")):
        adopt(path, ["data.source=digits"])
    save_file({"w": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(CheckpointError, match="a diffusers model is imported as a folder"):
        adopt(tmp_path / "other.safetensors")
    broken = {"format": "ddpm", "config": json.dumps(plain(config)), "data": "{}", "step": "1"}
    save_file({"w": torch.zeros(1)}, tmp_path / "broken.safetensors", metadata=broken)
    with pytest.raises(CheckpointError, match="its metadata lack or misstate"):
        adopt(tmp_path / "broken.safetensors")
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="damaged or not safetensors"):
        adopt(path)


class Evil:
    """A pickle that runs a command when it is loaded."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.mark}",)


@pytest.mark.parametrize("place", ["xdiffusion", "improved", "diffusers"])
def test_no_code_in_a_foreign_file_is_run(golden: Path, tmp_path: Path, place: str) -> None:
    mark, path = tmp_path / "was-here", tmp_path / "model.pt"
    if place == "xdiffusion":
        torch.save(torch.load(golden / XDIFFUSION, weights_only=True) | {"loss": Evil(mark)}, path)
    elif place == "improved":
        torch.save({**small(False), "evil": Evil(mark)}, path)
    else:
        from tests.interop.test_folder import theirs_saved

        path = theirs_saved(tmp_path / "folder")
        (path / "unet/diffusion_pytorch_model.safetensors").unlink()
        torch.save({"w": Evil(mark)}, path / "unet/diffusion_pytorch_model.bin")
    with pytest.raises(CheckpointError, match="more than tensors and plain types"):
        adopt(path, ["data.image_size=16"] if place == "improved" else [])
    assert not mark.exists()
    if place == "improved":  # the control: this file does run code where it is trusted
        torch.load(path, weights_only=False)
        assert mark.exists()


def test_files_of_no_known_kind(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        adopt(tmp_path / "absent.pt")
    torch.save({"optimizer": {}}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"neither a checkpoint of xdiffusion .* found \['optimizer'\]"):
        adopt(tmp_path / "a.pt")
    checkpoint.save(tmp_path / "b.pt", bare_checkpoint(build_network(tiny()).state_dict(), tiny()))
    with pytest.raises(UsageError, match="is a checkpoint of ddpm already"):
        adopt(tmp_path / "b.pt")
    (tmp_path / "c.pt").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(CheckpointError, match=r"c\.pt: cannot be read"):
        adopt(tmp_path / "c.pt")
