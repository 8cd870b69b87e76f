"""`ddpm export`: a checkpoint in another program's format."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ddpm.commands.arguments import Commands
from ddpm.errors import UsageError

if TYPE_CHECKING:
    from ddpm.checkpoint import Checkpoint

FORMATS = ("diffusers", "safetensors", "torch-export", "onnx")


def add(commands: Commands) -> None:
    export = commands.add_parser("export", help="write a checkpoint for diffusers, as safetensors, or for a runtime")
    export.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    export.add_argument("--to", choices=FORMATS, required=True, help="a folder for diffusers; else one file")
    export.add_argument("--out", type=Path, required=True, metavar="PATH", help="the folder or file to write")
    export.add_argument("--weights", choices=("ema", "raw"), default="ema", help="moving average or raw (default ema)")
    export.add_argument("--json", action="store_true", help="print a summary as JSON")
    export.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    from ddpm import checkpoint

    saved = checkpoint.load(options.checkpoint)
    summary = export_checkpoint(saved, options.to, options.out, options.weights)
    if options.json:
        print(json.dumps(summary))
        return
    print(f"exported   {options.checkpoint}: step {saved.step:,}, {options.weights} weights, for {options.to}")
    for line in summary["lost"]:
        print(f"not in it  {line}")
    if summary["difference"] is not None:
        print(f"checked    its outputs differ from ours by at most {summary['difference']:.1g}")
    print(f"written    {options.out}")


def export_checkpoint(saved: Checkpoint, to: str, out: Path, which: Literal["ema", "raw"]) -> dict[str, Any]:
    """Write a checkpoint in one of FORMATS; returns what `--json` prints.

    Raises DDPMError naming what the format cannot express.
    """
    saved = without_paths(saved)
    weights = saved.ema if which == "ema" else saved.network
    lost: list[str] = []
    difference = None
    if to == "diffusers":
        if out.exists() and not out.is_dir():
            raise UsageError(f"--out: {out} is a file; diffusers' format is a folder")
        lost = _to_diffusers(saved, weights, out, which)
    elif out.is_dir():
        raise UsageError(f"--out: {out} is a folder; {to} is one file")
    elif to == "safetensors":
        from ddpm import model_file
        from ddpm.interop.card import weights_card

        card = weights_card(saved, which, out.name)
        model_file.write(out, model_file.from_checkpoint(saved, storage="float32", card=card, kind=which))
    else:
        from ddpm.interop.runtime import write_program
        from ddpm.training_loop import trained_network

        network = trained_network(saved.config, weights, "the checkpoint")
        shape: dict[str, Any] = {"in_channels": saved.config.data.channels, "size": saved.config.data.size}
        difference = write_program(out, network, to, saved.config.diffusion.timesteps, **shape)  # type: ignore[arg-type]
    return {"to": to, "out": str(out), "weights": which, "step": saved.step, "lost": lost, "difference": difference}


def without_paths(saved: Checkpoint) -> Checkpoint:
    """The checkpoint without the names of folders of the machine it was trained on, which are nobody else's."""
    from dataclasses import replace

    from ddpm import model_file

    return replace(saved, config=model_file.without_paths(saved.config))


def _to_diffusers(saved: Checkpoint, weights: Any, out: Path, which: str) -> list[str]:
    from ddpm.interop.card import diffusers_card
    from ddpm.interop.folder import write_folder
    from ddpm.interop.schedulers import scheduler_config
    from ddpm.interop.strict import refuse, unet_arguments
    from ddpm.training_loop import build_diffusion

    if saved.data.crop:
        crop = saved.data.crop
        refuse(
            "the checkpoint",
            [f"crop: samples are padded, and cropped back to {crop.height}x{crop.width}: a pipeline cannot crop"],
            target="diffusers' pipelines",
        )
    config, schedule = saved.config, build_diffusion(saved.config).schedule
    sections = {"diffusion": config.diffusion.model_dump(), "sampling": config.sampling.model_dump()}
    _, lost = scheduler_config(**sections, schedule=schedule)
    return write_folder(
        out,
        settings=unet_arguments(config),
        weights=weights,
        **sections,
        schedule=schedule,
        card=diffusers_card(saved, which, lost),
    )
