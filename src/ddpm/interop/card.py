"""The model card: README.md beside an exported model, of what the checkpoint itself knows."""

from __future__ import annotations

from collections.abc import Sequence

from ddpm.checkpoint import Checkpoint
from ddpm.config import to_yaml


def diffusers_card(saved: Checkpoint, which: str, lost: Sequence[str]) -> str:
    """Of a folder for diffusers."""
    T = saved.config.diffusion.timesteps
    lines = [
        "## Use",
        "",
        "```python",
        "import diffusers",
        "",
        'pipeline = diffusers.DDPMPipeline.from_pretrained("THIS_FOLDER")',
        f"image = pipeline(num_inference_steps={T}).images[0]",
        "",
        'fewer = diffusers.DDIMPipeline.from_pretrained("THIS_FOLDER")',
        f"image = fewer(num_inference_steps={min(50, T)}, use_clipped_model_output=True).images[0]",
        "```",
        "",
        "`use_clipped_model_output` is DDIM as ddpm and improved-diffusion take it.",
    ]
    if lost:
        lines += ["", "Of the checkpoint's sampling settings, diffusers does not have:", ""]
        lines += [f"- {line}" for line in lost]
    return _card(saved, which, "diffusers", lines)


def weights_card(saved: Checkpoint, which: str, file: str) -> str:
    """Of a safetensors file of ours."""
    lines = [
        "## Use",
        "",
        "```",
        f"ddpm import {file} --out model.pt",
        "ddpm sample model.pt",
        "```",
    ]
    return _card(saved, which, "ddpm", lines)


def _card(saved: Checkpoint, which: str, library: str, use: Sequence[str]) -> str:
    config, data = saved.config, saved.data
    h, w = config.data.size
    colours = "grey" if config.data.channels == 1 else "RGB"
    weights = "moving average (EMA) of the weights" if which == "ema" else "raw weights"
    trained = [
        f"- images: {h} x {w}, {colours}",
        f"- process: {config.diffusion.timesteps} steps, schedule `{config.diffusion.schedule}`, "
        f"prediction `{config.diffusion.prediction}`, variance `{config.diffusion.variance}`",
        f"- parameters: {sum(value.numel() for value in saved.ema.values()):,} ({weights})",
        f"- training: {saved.step:,} steps" + (f" of batch {config.training.batch_size}" if data.fingerprint else ""),
    ]
    if data.fingerprint:
        trained.append(f"- data: `{config.data.source}`, {data.amount} (SHA-256 {data.fingerprint[:16]})")
    if data.class_names:
        trained.append(f"- classes in the data: {', '.join(data.class_names)}")
    return "\n".join(
        [
            "---",
            f"library_name: {library}",
            "pipeline_tag: unconditional-image-generation",
            "tags:",
            "- ddpm",
            "- diffusion",
            "---",
            "",
            "# A denoising diffusion model",
            "",
            "DDPM (Ho, Jain, Abbeel 2020, arXiv 2006.11239), trained and exported with ddpm.",
            "",
            *trained,
            "",
            *use,
            "",
            "## Limits",
            "",
            "The licence of the images it was trained on, and what it is fit for, are not known to this program: "
            "say them here before you publish it.",
            "",
            "## Configuration",
            "",
            "```yaml",
            to_yaml(config).rstrip(),
            "```",
            "",
        ]
    )
