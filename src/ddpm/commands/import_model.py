"""`ddpm import`: a model of another program as a checkpoint of ours."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from ddpm.commands.arguments import Commands, add_set
from ddpm.errors import UsageError

if TYPE_CHECKING:
    from ddpm.interop.adopt import Adopted


def add(commands: Commands) -> None:
    bring = commands.add_parser("import", help="make a checkpoint of a model of diffusers, xdiffusion, ...")
    bring.add_argument(
        "source",
        metavar="SOURCE",
        help="a diffusers folder or hub id (google/ddpm-cifar10-32), xdiffusion's diffusion-N.pt, improved-diffusion's "
        "ema_*.pt or model*.pt, or a .safetensors file of ddpm export",
    )
    bring.add_argument("--out", type=Path, required=True, metavar="FILE", help="the checkpoint to write")
    add_set(bring)
    bring.add_argument("--revision", metavar="R", help="of a hub id: branch, tag or commit (default: its main branch)")
    bring.add_argument("--json", action="store_true", help="print a summary as JSON")
    bring.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> None:
    import_source(options.source, options.out, options.overrides, options.revision, as_json=options.json)


def import_source(source: str, out: Path, overrides: list[str], revision: str | None, *, as_json: bool) -> None:
    """Read a file, a folder or a repository of the hub, write a checkpoint, and say what it is."""
    from ddpm import checkpoint
    from ddpm.interop import hub
    from ddpm.interop.adopt import adopt

    if out.is_dir():
        raise UsageError(f"--out: {out} is a folder; name the file to write, such as {out / 'model.pt'}")
    path = Path(source)
    if revision is not None and (path.exists() or not hub.is_id(source)):
        raise UsageError(f"--revision: {revision} has no effect on {source}, which is no hub id. Remove it")
    if path.exists() or not hub.is_id(source):
        adopted = adopt(path, overrides)
    else:
        adopted = adopt(hub.download(source, revision), overrides)
    checkpoint.save(out, adopted.checkpoint)
    report(source, out, adopted, as_json=as_json)


def report(source: str, out: Path, adopted: Adopted, *, as_json: bool) -> None:
    """Say what was imported."""
    saved = adopted.checkpoint
    config = saved.config
    h, w = config.data.size
    parameters = sum(value.numel() for value in saved.ema.values())
    if as_json:
        facts = {"source": source, "kind": adopted.kind, "out": str(out), "parameters": parameters, "step": saved.step}
        print(json.dumps(facts | {"assumed": dict(adopted.assumed)}))
        return
    print(f"imported   {source}: {adopted.kind}, {parameters:,} parameters, {h}x{w}, {config.data.channels} channel(s)")
    for key, value in adopted.assumed.items():
        print(f"assumed    {key}: {value} (not said by the file; --set changes it)")
    d, s = config.diffusion, config.sampling
    print(f"process    T = {d.timesteps}, {d.schedule}, predicts {d.prediction}, variance {d.variance}")
    print(f"sampling   {s.sampler}, {s.steps or d.timesteps} steps" + (", as diffusers" if s.conventions else ""))
    print(f"written    {out}: ddpm sample {out}; fine-tune with --set training.init_from={out}")
