"""Downloads: checked, cached once, and explained when they fail. The mirrors are on this machine."""

from __future__ import annotations

import gzip
import hashlib
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest

from ddpm.data import cifar, idx
from ddpm.data.download import fetch
from ddpm.errors import DataError
from tests.data.files import cifar_files, quiet, save_idx, save_tar, section


@dataclass
class Mirror:
    url: str
    files: dict[str, bytes] = field(default_factory=dict)
    asked: list[str] = field(default_factory=list)


@pytest.fixture
def mirror(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mirror]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("no_proxy", "127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = self.path.strip("/")
            served.asked.append(name)
            content = served.files.get(name)
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *args: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        served = Mirror(f"http://127.0.0.1:{server.server_port}/")
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield served
        server.shutdown()
        thread.join()


@pytest.fixture
def dead() -> str:
    """An address at which nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}/"


def md5(content: bytes) -> str:
    return hashlib.md5(content).hexdigest()


def test_by_the_md5_of_the_file(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["a.gz"] = b"content"
    target = tmp_path / "deep" / "a.gz"
    for _ in range(2):
        path = fetch([f"{mirror.url}a.gz"], target, file_md5=md5(b"content"), by_hand="", progress=False)
        assert path.read_bytes() == b"content"
    assert mirror.asked == ["a.gz"], "the second time it is there"
    assert sorted(p.name for p in target.parent.iterdir()) == ["a.gz"]


def test_by_the_md5_of_the_content_for_any_compression(mirror: Mirror, tmp_path: Path) -> None:
    for level in (1, 9):
        mirror.files["a.gz"] = gzip.compress(b"content" * 99, level)
        target = tmp_path / f"{level}.gz"
        fetch([f"{mirror.url}a.gz"], target, content_md5=md5(b"content" * 99), by_hand="", progress=False)
        assert target.read_bytes() == mirror.files["a.gz"]


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>log in first</html>", gzip.compress(b"other"), gzip.compress(b"content" * 99)[:20]],
    ids=["empty", "page", "other", "cut"],
)
def test_a_wrong_file_is_not_kept(mirror: Mirror, tmp_path: Path, content: bytes) -> None:
    mirror.files["a.gz"] = content
    with pytest.raises(DataError) as caught:
        fetch(
            [f"{mirror.url}a.gz"],
            tmp_path / "a.gz",
            content_md5=md5(b"content" * 99),
            by_hand="do it so",
            progress=False,
        )
    assert f"{mirror.url}a.gz: " in str(caught.value)
    assert str(caught.value).endswith("do it so")
    assert list(tmp_path.iterdir()) == []


def test_the_next_mirror_is_tried(mirror: Mirror, dead: str, tmp_path: Path) -> None:
    mirror.files |= {"bad/a.gz": b"damaged", "good/a.gz": b"content"}
    urls = [f"{dead}a.gz", f"{mirror.url}absent/a.gz", f"{mirror.url}bad/a.gz", f"{mirror.url}good/a.gz"]
    path = fetch(urls, tmp_path / "a.gz", file_md5=md5(b"content"), by_hand="", progress=False)
    assert path.read_bytes() == b"content"
    with pytest.raises(DataError) as caught:
        fetch(urls[:3], tmp_path / "b.gz", file_md5=md5(b"content"), by_hand="", progress=False)
    lines = str(caught.value).splitlines()
    assert lines[1] == f"  {dead}a.gz: cannot be reached (ConnectionError)"
    assert "404" in lines[2]
    assert "wrong content (MD5" in lines[3]


def test_what_a_killed_download_left_is_not_taken(mirror: Mirror, tmp_path: Path) -> None:
    mirror.files["a.gz"] = b"content"
    (tmp_path / "a.gz.part").write_bytes(b"cont")
    path = fetch([f"{mirror.url}a.gz"], tmp_path / "a.gz", file_md5=md5(b"content"), by_hand="", progress=False)
    assert path.read_bytes() == b"content"


def test_a_bar_and_the_address_are_shown(mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mirror.files["a.gz"] = b"content"
    fetch([f"{mirror.url}a.gz"], tmp_path / "a.gz", file_md5=md5(b"content"), by_hand="", progress=True)
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"downloading {mirror.url}a.gz" in shown.err
    assert "100%" in shown.err


def test_mnist_from_its_mirrors(mirror: Mirror, dead: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images, _ = save_idx(tmp_path)
    contents = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    mirror.files |= contents
    sums = {name.removesuffix(".gz"): md5(gzip.decompress(content)) for name, content in contents.items()}
    monkeypatch.setitem(idx._MIRRORS, "mnist", (dead, mirror.url))
    monkeypatch.setitem(idx._MD5, "mnist", idx._MD5["mnist"] | sums)
    config = section("mnist", image_size=6)
    np.testing.assert_array_equal(quiet(config).images[:, 0], images)
    monkeypatch.setitem(idx._MIRRORS, "mnist", ())
    np.testing.assert_array_equal(quiet(config).images[:, 0], images)
    with pytest.raises(DataError, match=r"t10k-images-idx3-ubyte.gz: cannot be downloaded:\nLooked for: t10k-images"):
        quiet(config, "test")


def test_cifar_from_its_mirror(mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files, images, _ = cifar_files()
    save_tar(tmp_path / "it", {f"cifar-10-batches-py/{name}": content for name, content in files.items()})
    mirror.files["cifar-10-python.tar.gz"] = (tmp_path / "it").read_bytes()
    monkeypatch.setattr(cifar, "_URLS", (f"{mirror.url}cifar-10-python.tar.gz",))
    config = section("cifar10", image_size=32, channels=3)
    with pytest.raises(DataError, match=r"wrong content \(MD5 .*, expected c58f30108f718f92721af3b95e74349a\)"):
        quiet(config)
    monkeypatch.setattr(cifar, "_MD5", md5(mirror.files["cifar-10-python.tar.gz"]))
    np.testing.assert_array_equal(quiet(config, "test").images, images[15:].reshape(-1, 3, 32, 32))


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DDPM_CACHE", str(tmp_path / "file"))
    with pytest.raises(DataError, match=r"the data cache cannot be used .*DDPM_CACHE"):
        quiet(section("mnist"))
