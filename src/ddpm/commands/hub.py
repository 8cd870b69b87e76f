"""`ddpm push` and `ddpm pull`: models on the Hugging Face hub."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

from ddpm.commands.arguments import Commands, add_set
from ddpm.errors import UsageError


def add(commands: Commands) -> None:
    push = commands.add_parser("push", help="upload a checkpoint's weights to the Hugging Face hub, with a model card")
    push.add_argument("checkpoint", type=Path, metavar="CHECKPOINT")
    push.add_argument("repository", metavar="OWNER/NAME")
    push.add_argument(
        "--to", choices=("safetensors", "diffusers"), default="safetensors", help="format (default safetensors)"
    )
    push.add_argument("--weights", choices=("ema", "raw"), default="ema", help="moving average or raw (default ema)")
    push.add_argument("--private", action="store_true", help="if the repository is new, hide it from others")
    push.add_argument("--json", action="store_true", help="print a summary as JSON")
    push.set_defaults(command=_push)
    pull = commands.add_parser("pull", help="make a checkpoint of a model on the Hugging Face hub")
    pull.add_argument("repository", metavar="OWNER/NAME")
    pull.add_argument("--out", type=Path, required=True, metavar="FILE", help="the checkpoint to write")
    pull.add_argument("--revision", metavar="R", help="branch, tag or commit (default: the main branch)")
    add_set(pull)
    pull.add_argument("--json", action="store_true", help="print a summary as JSON")
    pull.set_defaults(command=_pull)


def _push(options: argparse.Namespace) -> None:
    from ddpm import checkpoint
    from ddpm.commands.export import export_checkpoint, without_paths
    from ddpm.config import to_yaml
    from ddpm.files import write_text
    from ddpm.interop import hub
    from ddpm.interop.card import weights_card

    if not hub.is_id(options.repository):
        raise UsageError(f"{options.repository}: is no hub id; expected OWNER/NAME")
    saved = without_paths(checkpoint.load(options.checkpoint))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if options.to == "diffusers":
            export_checkpoint(saved, "diffusers", folder, options.weights)
        else:
            export_checkpoint(saved, "safetensors", folder / hub.BARE, options.weights)
            write_text(folder / "README.md", weights_card(saved, options.weights, hub.BARE))
            write_text(folder / "config.yaml", to_yaml(saved.config))
        message = f"{options.checkpoint.name}, step {saved.step}, {options.weights} weights"
        address = hub.upload(folder, options.repository, private=options.private, message=message)
    if options.json:
        print(json.dumps({"repository": options.repository, "address": address, "to": options.to, "step": saved.step}))
        return
    print(f"pushed     {options.checkpoint}: step {saved.step:,}, {options.weights} weights, as {options.to}")
    print(f"written    {address}")


def _pull(options: argparse.Namespace) -> None:
    from ddpm.commands.import_model import import_source
    from ddpm.interop import hub

    if not hub.is_id(options.repository) or Path(options.repository).exists():
        raise UsageError(f"{options.repository}: is no hub id; expected OWNER/NAME (files: ddpm import)")
    import_source(options.repository, options.out, options.overrides, options.revision, as_json=options.json)
