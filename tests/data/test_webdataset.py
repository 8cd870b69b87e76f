"""Shards of tar files: named by folder, pattern or URL; their pictures and labels; what is wrong with them."""

from __future__ import annotations

import bz2
import functools
import gzip
import http.server
import io
import lzma
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Iterator
from itertools import islice, pairwise
from pathlib import Path

import numpy as np
import pytest

from ddpm import data
from ddpm.config import DataSection
from ddpm.data import ImageStream, webdataset
from ddpm.data.records import Sample
from ddpm.errors import DataError
from tests.data.files import level_png, level_shards, quiet, section, shard


@pytest.fixture(scope="module", autouse=True)
def library() -> None:
    pytest.importorskip("webdataset", reason="an extra: pip install 'ddpm[webdataset]'")


def config(root: Path | str, **changes: object) -> DataSection:
    return section("webdataset", root=root, workers=1, **changes)


def opened(root: Path | str, classes: int | None = None, **changes: object) -> ImageStream:
    return data.open_stream(config(root, **changes), classes)


def samples(stream: ImageStream) -> list[Sample]:
    return [sample for number in range(len(stream.shards)) for sample in stream.read(number)]


def keys(stream: ImageStream) -> list[str]:
    return [sample.key for sample in samples(stream)]


def test_a_folder_a_pattern_or_several(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = level_shards(tmp_path / "shards", (3, 2, 4))
    (root / "notes.txt").touch()
    expected = ["0000", "0001", "0002", "1000", "1001", "2000", "2001", "2002", "2003"]
    folder = opened(root, 3)
    assert keys(folder) == expected
    assert [sample.label for sample in samples(folder)] == [0, 1, 2] * 3
    assert [sample.content for sample in samples(folder)] == [level_png(level) for level in range(9)]
    assert folder.class_names == ("0", "1", "2")
    for pattern in (
        f"{root}/{{000..002}}.tar",
        f"{root}/{{000,001}}.tar::{root}/002.tar",
        f"file://{root}/{{000..2}}.tar",
    ):
        assert keys(opened(pattern.replace("..2}", "..002}"))) == expected
    assert opened(f"{root}/{{000..002}}.tar").fingerprint == folder.fingerprint
    assert all(sample.label is None for sample in samples(opened(root)))
    monkeypatch.setenv("DDPM_DATA_ROOT", str(root))
    assert keys(data.open_stream(section("webdataset"), None)) == expected


def test_compressed_shards(tmp_path: Path) -> None:
    level_shards(tmp_path, (3,))
    content = (tmp_path / "000.tar").read_bytes()
    (tmp_path / "000.tar").unlink()
    (tmp_path / "001.tar.gz").write_bytes(gzip.compress(content))
    assert keys(opened(tmp_path)) == ["0000", "0001", "0002"]
    # A server may give it any name.
    for kind in (gzip, bz2, lzma):
        (tmp_path / "photos").write_bytes(kind.compress(content))
        assert keys(opened(tmp_path / "photos")) == ["0000", "0001", "0002"]


class Server(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; of those called cut* only the first half, of those called slow* the beginning."""

    def copyfile(self, source: io.BufferedIOBase, outputfile: io.BufferedIOBase) -> None:  # type: ignore[override]
        content = source.read()
        if "cut" in self.path:
            content = content[: content.index(b"0001.png")]  # between two members
        if "slow" in self.path:
            outputfile.write(content[: 2**16])
            outputfile.flush()
            STOP.wait(60)
        else:
            outputfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


STOP = threading.Event()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[str]:
    if shutil.which("curl") is None:
        pytest.skip("webdataset fetches by curl, which is not installed")
    STOP.clear()
    handler = functools.partial(Server, directory=str(tmp_path / "served"))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        running.daemon_threads = True
        thread = threading.Thread(target=running.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        STOP.set()
        running.shutdown()
        thread.join()


def test_urls(tmp_path: Path, server: str) -> None:
    root = level_shards(tmp_path / "served", (3, 2))
    there, here = opened(f"{server}/{{000..001}}.tar", 3), opened(root, 3)
    assert samples(there) == samples(here)
    assert there.fingerprint == here.fingerprint
    with pytest.raises(DataError, match=r"/none\.tar: cannot be read .* exit code 22 \(the server has no such file"):
        opened(f"{server}/none.tar")
    with pytest.raises(DataError, match=r"exit code 7 \(no connection\)"):
        opened("http://127.0.0.1:9/none.tar")
    with pytest.raises(DataError, match=r"no gopen handler|cannot be read"):
        opened("gopher://host/none.tar")


def test_a_download_that_ends_early_is_no_short_shard(tmp_path: Path, server: str) -> None:
    """Cut between two members, it reads as a whole tar file: only how the download ended tells."""
    level_shards(tmp_path / "served", (3,))
    (tmp_path / "served" / "000.tar").rename(tmp_path / "served" / "cut.tar")
    with pytest.raises(DataError, match=r"cut\.tar: cannot be read .* exit code 18 \(it ended early\)"):
        keys(opened(f"{server}/cut.tar"))


def test_a_server_that_hangs_is_not_waited_for(tmp_path: Path, server: str) -> None:
    level_shards(tmp_path / "served", (60,))
    (tmp_path / "served" / "000.tar").rename(tmp_path / "served" / "slow.tar")
    began = time.monotonic()
    opened(f"{server}/slow.tar")  # reads one sample and leaves
    assert time.monotonic() - began < 20


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="needs signal masks")
def test_ctrl_c_does_not_end_a_download(tmp_path: Path, server: str) -> None:
    level_shards(tmp_path / "served", (60,))
    (tmp_path / "served" / "000.tar").rename(tmp_path / "served" / "slow.tar")
    fetching = webdataset._open(f"{server}/slow.tar")
    assert fetching.read(10)  # it runs
    for number in (signal.SIGINT, signal.SIGTERM):
        fetching.proc.send_signal(number)
    with pytest.raises(subprocess.TimeoutExpired):
        fetching.proc.wait(0.3)
    fetching.ignore_errors = True
    fetching.proc.kill()
    fetching.close()
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == set()


def test_commands_run_only_where_they_are_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = level_shards(tmp_path / "shards", (3,))
    mark = tmp_path / "ran"
    command = f"pipe:touch {mark}; cat {root}/000.tar"
    with pytest.raises(DataError, match=r"runs a command .* DDPM_ALLOW_PIPES=1"):
        opened(command)
    assert not mark.exists()
    monkeypatch.setenv("DDPM_ALLOW_PIPES", "1")
    assert keys(opened(command)) == ["0000", "0001", "0002"]
    with pytest.raises(DataError, match="exit code 3"):
        keys(opened("pipe:exit 3"))


def test_which_file_is_the_picture_and_which_the_label(tmp_path: Path) -> None:
    one, two = level_png(1), level_png(2)
    path = shard(tmp_path / "0.tar", [{"json": b"{}", "jpg": one, "seg.png": two, "kind": b" 1\n"}])
    with pytest.raises(DataError, match=r"image_column: is missing; .*: 0000 has 2 pictures.*jpg, seg\.png"):
        opened(path)
    for wanted, content in (("seg.png", two), (".JPG", one)):
        (sample,) = samples(opened(path, 2, image_column=wanted, label_column="kind"))
        assert (sample.content, sample.label) == (content, 1)
    (sample,) = samples(opened(path, image_column="tif"))
    assert sample.problem == "it has no picture (its files end in json, jpg, seg.png, kind)"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"png": level_png(1)}, r"0000: has no label: none of its files ends in \.cls \(they end in png\)"),
        ({"png": level_png(1), "cls": b"cat"}, "0000: found the label 'cat', expected a whole number from 0 to 1"),
        ({"png": level_png(1), "cls": b"2"}, "0000: found the label 2,"),
        ({"png": level_png(1), "cls": b"\xff"}, "0000: found the label"),
    ],
)
def test_what_is_no_label_is_named(tmp_path: Path, files: dict[str, bytes], message: str) -> None:
    with pytest.raises(DataError, match=rf"0\.tar: {message}"):
        opened(shard(tmp_path / "0.tar", [files]), 2)


def test_what_is_no_shard_is_named(tmp_path: Path) -> None:
    level_shards(tmp_path, (40, 40))
    whole = (tmp_path / "000.tar").read_bytes()
    member = whole.index(b"0020.png")
    (tmp_path / "cut.tar").write_bytes(whole[: member + 520])
    for name, end in {"between": member, "header": member + 100}.items():
        (tmp_path / f"{name}.tar").write_bytes(whole[:end])
        (tmp_path / f"{name}.tar.gz").write_bytes(gzip.compress(whole[:end]))
    (tmp_path / "half.tgz").write_bytes(gzip.compress(whole)[:-500])
    (tmp_path / "text.tar").write_text("no archive " * 100)
    (tmp_path / "empty.tar").touch()
    (tmp_path / "none").mkdir()
    with tarfile.open(tmp_path / "hollow.tar", "w"):
        pass
    shard(tmp_path / "twice.tar", [{"png": level_png(1)}, {"png": level_png(2)}], first=0)
    with tarfile.open(tmp_path / "twice.tar", "a") as tar:
        for _ in range(2):
            tar.addfile(tarfile.TarInfo("0007.png"), io.BytesIO())
    for name, message in {
        "cut.tar": r"cut\.tar: cannot be read as a shard \(a tar file\): unexpected end of data$",
        "between.tar": r"between\.tar: cannot be read as a shard .*: it is cut off",
        "header.tar": r"header\.tar: cannot be read as a shard .*: it is cut off",
        "header.tar.gz": r"header\.tar\.gz: cannot be read as a shard .*: it is cut off",
        "half.tgz": r"half\.tgz: cannot be read as a shard .*ended before the end-of-stream",
        "text.tar": r"text\.tar: cannot be read as a shard",
        "twice.tar": r"twice\.tar: cannot be read as a shard .*duplicate file name",
        "empty.tar": r"data\.root: .*empty\.tar: is an empty file",
        "hollow.tar": r"hollow\.tar: a shard without pictures: it is empty",
        "absent.tar": r"data\.root: .*absent\.tar: no such file, folder or URL",
        "{000..002}.tar": r"data\.root: .*002\.tar: no such file",
        "none": r"none: has no shards; read are files that end in \.tar",
    }.items():
        with pytest.raises(DataError, match=message):
            keys(opened(tmp_path / name))
    with pytest.raises(DataError, match="is named twice"):
        opened(f"{tmp_path}/000.tar::{tmp_path}/00{{0,1}}.tar")
    with pytest.raises(DataError, match=r"data\.root: is missing; name a folder of shards"):
        data.open_stream(section("webdataset"), None)


def test_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(DataError, match=r"pip install 'ddpm\[webdataset\]'"):
        opened("shards")


def test_real_jpegs_once_an_epoch(tmp_path: Path, shared_data: Path) -> None:
    """The bytes that the folder source makes of the same files."""
    with zipfile.ZipFile(shared_data / "cifar10_jpeg_10k.zip") as archive:
        names = [name for name in archive.namelist() if name.endswith((".jpg", ".jpeg"))][:600:4]
        files = [archive.read(name) for name in names]
    for i, content in enumerate(files):
        (tmp_path / "folder").mkdir(exist_ok=True)
        (tmp_path / "folder" / f"{i}.jpg").write_bytes(content)
    ends = [0, 40, 41, 100, len(files)]
    for number, (low, high) in enumerate(pairwise(ends)):
        shard(tmp_path / "shards" / f"{number}.tar", [{"jpg": content} for content in files[low:high]])
    kind: dict[str, object] = {"image_size": 32, "channels": 3}
    packed = quiet(section("folder", root=tmp_path / "folder", **kind))
    expected = Counter(picture.tobytes() for picture in packed.images)
    stream = opened(tmp_path / "shards", **kind)
    source = stream.batches(len(files) // 2, seed=0, start=data.Position(0, 0))
    epoch = np.concatenate([batch.images for batch in islice(source, 2)])
    source.close()  # type: ignore[attr-defined]
    assert len(files) == 150
    assert Counter(picture.tobytes() for picture in epoch) == expected
