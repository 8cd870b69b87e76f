"""Nothing that is loaded can run code, write elsewhere, or fill the memory."""

from __future__ import annotations

import ast
import gzip
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import ddpm
from ddpm import checkpoint
from ddpm.cli import main
from ddpm.config import load_config, to_yaml
from ddpm.data import cifar, folder, idx
from ddpm.errors import CheckpointError, ConfigError, DamagedError, DataError, DDPMError
from ddpm.evaluate.extractor import load_extractor
from ddpm.evaluate.inception import load_weights
from ddpm.interop import xdiffusion
from ddpm.interop.bare import bare_checkpoint
from ddpm.training_loop import build_network, restore_state
from tests.data.files import noise, quiet, save, section
from tests.tiny import tiny


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch '{self.marker}'",)


@pytest.fixture
def marker(tmp_path: Path) -> Path:
    return tmp_path / "pwned"


@pytest.fixture(params=["torch", "pickle", "legacy"])
def malicious(request: pytest.FixtureRequest, tmp_path: Path, marker: Path) -> Path:
    """A file that looks like a checkpoint and runs a command where it is unpickled."""
    path, content = tmp_path / "diffusion-3.pt", {"format": checkpoint.FORMAT, "step": 3, "x": Payload(marker)}
    match request.param:
        case "torch":
            torch.save(content, path)
        case "legacy":
            torch.save(content, path, _use_new_zipfile_serialization=False)
        case "pickle":
            path.write_bytes(pickle.dumps(content, protocol=2))
    return path


def test_the_payload_is_real(malicious: Path, marker: Path) -> None:
    try:
        torch.load(malicious, weights_only=False)
    except Exception:
        pickle.loads(malicious.read_bytes())
    assert marker.exists()


def test_checkpoints_do_not_run(malicious: Path, marker: Path) -> None:
    loaders: list[Callable[[Path], object]] = [
        checkpoint.load,
        xdiffusion.load,
        lambda path: load_weights(torch.nn.Linear(1, 1), path),  # type: ignore[arg-type]
        load_extractor,
    ]
    for load in loaders:
        with pytest.raises(DDPMError, match=r"diffusion-3\.pt"):
            load(malicious)
    assert not marker.exists()


def test_commands_do_not_run_it(malicious: Path, marker: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = malicious.parent / "c.yaml"
    config.write_text(to_yaml(tiny(training__init_from=str(malicious))))
    for command in (
        ["info", str(malicious)],
        ["sample", str(malicious)],
        ["train", str(config), "--out", str(malicious.parent / "new")],
        ["train", "image/digits/ddpm_8x8", "--out", str(malicious.parent)],
    ):
        assert main(command) == 1, command
        printed = capsys.readouterr().err
        assert "diffusion-3.pt" in printed
        assert "Traceback" not in printed
    assert not marker.exists()


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.system", "!!python/object/new:os.system"])
def test_configurations_do_not_run(tmp_path: Path, marker: Path, tag: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(f"data: {tag} ['touch {marker}']\n")
    with pytest.raises(ConfigError, match=r"c\.yaml"):
        load_config(path)
    with pytest.raises(ConfigError, match="--set"):
        load_config("image/digits/ddpm_8x8", [f"data.root={tag} ['touch {marker}']"])
    assert not marker.exists()


def _calls(tree: ast.AST) -> list[tuple[str, dict[str, str]]]:
    """Every call of a dotted name with its keyword arguments."""
    return [
        (ast.unparse(node.func), {word.arg: ast.unparse(word.value) for word in node.keywords if word.arg})
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    ]


def test_every_loader_in_the_source_is_a_safe_one() -> None:
    """What no test can feed: each call in the code itself."""
    seen = []
    for path in Path(ddpm.__file__).parent.rglob("*.py"):
        for name, words in _calls(ast.parse(path.read_text())):
            seen.append(name)
            where = f"{path}: {name}"
            if name == "torch.load":
                assert words["weights_only"] == "True", where
            if name == "np.load":
                assert words.get("allow_pickle", "False") == "False", where
            if name == "YAML":
                assert words["typ"] in ("'rt'", "'safe'"), where
                assert words["pure"] == "True", where
            assert name not in ("pickle.load", "pickle.loads", "eval", "exec", "yaml.load", "marshal.loads"), where
            assert not name.endswith((".extractall", ".unpack_archive")), where
            if name.endswith(".extract"):
                assert name == "ExifTags.extract", where
    assert {"torch.load", "np.load", "YAML"} <= set(seen)


def test_members_of_archives_stay_where_they_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside = tmp_path / "in" / "side"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    names = ["../../up.png", "/absolute.png", "c:\\windows.png", "a/../../b.png", "plain.png"]
    save(inside / "x.png")
    pixels = (inside / "x.png").read_bytes()
    with zipfile.ZipFile(inside / "x.zip", "w") as archive:
        for name in names:
            archive.writestr(name, pixels)
    with tarfile.open(inside / "cifar-10-python.tar.gz", "w:gz") as tar:
        for name in [*names, "cifar-10-batches-py/../../../evil"]:
            info = tarfile.TarInfo(name)
            info.size = len(pixels)
            tar.addfile(info, io.BytesIO(pixels))
        link = tarfile.TarInfo("cifar-10-batches-py/data_batch_1")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
    before = {path for path in tmp_path.rglob("*")}
    assert len(quiet(section("folder", root=inside / "x.zip"))) >= 3
    with pytest.raises(DataError, match=r"has no cifar-10-batches-py/data_batch_1"):
        quiet(section("cifar10", root=inside, channels=3))
    assert {path for path in tmp_path.rglob("*")} == before
    assert not Path("/absolute.png").exists()


def test_shipped_names_do_not_lead_out_of_their_folder(tmp_path: Path) -> None:
    for name in ("image/../../../../../../../etc/passwd", "../pyproject", "configs/../../secret"):
        with pytest.raises(ConfigError, match="nor a shipped configuration"):
            load_config(name)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("cut", b"\x10"),
        ("length", struct.pack("<Q", 2**60) + b"{}"),
        ("no json", struct.pack("<Q", 4) + b"{{{{"),
        ("deep", struct.pack("<Q", 200_000) + b'{"a":' * 40_000),
        (
            "offsets",
            struct.pack("<Q", 64)
            + json.dumps({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}).encode().ljust(64),
        ),
    ],
)
def test_headers_of_safetensors_are_checked_before_they_are_believed(tmp_path: Path, name: str, content: bytes) -> None:
    path = tmp_path / f"{name}.safetensors"
    path.write_bytes(content)
    with pytest.raises(DDPMError, match=f"{name}.safetensors: is not a digit extractor"):
        load_extractor(path)


def test_a_checkpoint_that_unpacks_to_more_than_it_is(tmp_path: Path) -> None:
    """torch itself would unpack a compressed member of any size."""
    path, bomb = tmp_path / "x.pt", tmp_path / "bomb.pt"
    torch.save({"format": checkpoint.FORMAT, "x": torch.zeros(300_000)}, path)
    with zipfile.ZipFile(path) as sound, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for member in sound.infolist():
            archive.writestr(member.filename, sound.read(member))
    assert bomb.stat().st_size < 10_000
    with pytest.raises(DamagedError, match="a member is compressed"):
        checkpoint.load(bomb)


def test_a_tensor_marked_as_a_folder(tmp_path: Path) -> None:
    """Its checksum is right, and torch would read memory that nobody has written."""
    path, saved = tmp_path / "x.pt", torch.rand(300)  # kept, so that the memory that is read is not its own, freed
    torch.save({"format": checkpoint.FORMAT, "x": saved}, path)
    content = bytearray(path.read_bytes())
    with zipfile.ZipFile(path) as sound:
        place = content.index(b"PK\x01\x02", sound.start_dir)
    while b"data/0" not in content[place + 46 : place + 46 + content[place + 28]]:
        place = content.index(b"PK\x01\x02", place + 4)
    content[place + 38] = 0x10  # external attributes
    path.write_bytes(content)
    assert not torch.equal(torch.load(path, weights_only=True)["x"], saved)  # the control
    with pytest.raises(DamagedError, match="marked as a folder"):
        checkpoint.load(path)


@pytest.mark.parametrize("moments", [torch.zeros(0), torch.zeros(2), None, [1], {}, {0: torch.zeros(1)}], ids=str)
def test_moments_that_are_none(tmp_path: Path, moments: object) -> None:
    saved = bare_checkpoint(build_network(tiny()).state_dict(), tiny())
    saved = replace(saved, step=3, optimizer={"state": moments})
    checkpoint.save(tmp_path / "odd.pt", saved)
    with pytest.raises(CheckpointError, match="the checkpoint's optimiser: its moments are not those"):
        restore_state(checkpoint.load(tmp_path / "odd.pt"), tiny())


def test_settings_that_claim_a_larger_network_cost_no_memory(tmp_path: Path) -> None:
    network = build_network(tiny())
    claimed = tiny(network__channels=2**15, network__norm_groups=1)  # more than a terabyte
    checkpoint.save(tmp_path / "large.pt", bare_checkpoint(network.state_dict(), claimed))
    for take in (ddpm.load, lambda path: restore_state(checkpoint.load(path), claimed)):
        with pytest.raises(CheckpointError, match=r"do not fit the network\n  conv_in"):
            take(tmp_path / "large.pt")
    with pytest.raises(ConfigError, match="131,072 channels; at most 65,536"):
        tiny(network__channels=2**16, network__norm_groups=1)


def test_archives_that_unpack_to_more_than_a_data_set_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(idx, "_MAX_BYTES", 10_000)
    path = tmp_path / "x.gz"
    path.write_bytes(gzip.compress(bytes(20_000)))
    with pytest.raises(DataError, match="it has more than 10,000 bytes"):
        idx.read_idx(path, 3)
    monkeypatch.setattr(cifar, "_MAX_BYTES", 10_000)
    with tarfile.open(tmp_path / "cifar-10-python.tar.gz", "w:gz") as archive:
        for number in range(5):
            info = tarfile.TarInfo(f"other/{number}")
            info.size = 9_000
            archive.addfile(info, io.BytesIO(bytes(9_000)))
    with pytest.raises(DataError, match="it unpacks to more than 40,000 bytes"):
        quiet(section("cifar10", root=tmp_path, channels=3))
    monkeypatch.setattr(folder, "_MAX_MEMBER", 10_000)
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as zipped:
        zipped.writestr("bomb.png", bytes(20_000))
    with pytest.raises(DataError, match="unpacks to 20,000 bytes"):
        quiet(section("folder", root=tmp_path / "x.zip"))


def test_aliases_of_aliases(tmp_path: Path) -> None:
    lines = ["a: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    lines += [f"b{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    (tmp_path / "c.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match="holds more than 10,000 values"):
        load_config(tmp_path / "c.yaml")
    bomb = "&a [1,1,1,1,1,1,1,1,1]"
    for name in "bcdefgh":
        bomb = f"&{name} [{bomb}{f', *{chr(ord(name) - 1)}' * 8}]"
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_config("image/digits/ddpm_8x8", [f"data.root={bomb}"])


def test_downloads_are_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a checksum nothing is accepted, and other content is not kept (see also tests/data/test_download.py)."""
    from ddpm.data.download import fetch

    class Downloader:
        def __init__(self, **_: object) -> None: ...

        def __call__(self, url: str, target: str, _: object) -> None:
            Path(target).write_bytes(b"something")

    monkeypatch.setattr("pooch.HTTPDownloader", Downloader)
    for checks in ({}, {"file_md5": "0" * 32}, {"file_sha256": "0" * 64}):
        with pytest.raises(DDPMError, match="wrong content"):
            fetch(["http://nowhere/x"], tmp_path / "x", progress=False, **checks)  # type: ignore[arg-type]
        assert not (tmp_path / "x").exists()


def test_weights_in_odd_layouts_are_refused(tmp_path: Path) -> None:
    from ddpm.run import train

    done = train(tiny(training__steps=1, training__kernels="plain"), tmp_path, device="cpu", progress=False)
    content = torch.load(done.checkpoint, weights_only=True)
    huge = torch.zeros(1).expand(2**40)
    for value in (huge, torch.zeros(3, 3).to_sparse(), torch.zeros(()), "text", None, [1]):
        torch.save(content | {"ema": content["ema"] | {"conv_in.weight": value}}, tmp_path / "x.pt")
        with pytest.raises(CheckpointError, match=r"x\.pt"):
            ddpm.load(tmp_path / "x.pt")


def test_noise_is_no_picture_of_any_kind(tmp_path: Path) -> None:
    for end in sorted(folder.EXTENSIONS):
        (tmp_path / f"x{end}").write_bytes(noise(500).tobytes())
    with pytest.raises(DataError, match="no picture can be read"):
        quiet(section("folder", root=tmp_path, image_size=np.int64(8).item()))
