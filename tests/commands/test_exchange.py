"""`ddpm export`, `import`, `push` and `pull` as a user meets them; the hub is a stand-in on this machine."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ddpm import checkpoint
from ddpm.cli import main
from ddpm.interop.bare import bare_checkpoint
from ddpm.training_loop import build_network
from tests.interop.test_diffusers import lively
from tests.tiny import tiny


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A checkpoint of a lively network, in the folder that the commands run in."""
    monkeypatch.chdir(tmp_path)
    network = build_network(tiny())
    lively(network)
    checkpoint.save(Path("model.pt"), bare_checkpoint(network.state_dict(), tiny(), step=3))
    return "model.pt"


def run(*arguments: str) -> int:
    try:
        return main(arguments)
    except SystemExit as error:  # argparse's own exits
        return int(error.code or 0)


@pytest.mark.parametrize("to", ["diffusers", "safetensors"])
def test_out_and_in_again_draws_the_same_images(model: str, capsys: pytest.CaptureFixture[str], to: str) -> None:
    out = "folder" if to == "diffusers" else "weights.safetensors"
    assert run("export", model, "--to", to, "--out", out) == 0
    assert f"exported   {model}: step 3, ema weights, for {to}" in capsys.readouterr().out
    assert run("import", out, "--out", "back.pt") == 0
    assert "44,969 parameters, 8x8, 1 channel(s)" in capsys.readouterr().out
    for name in (model, "back.pt"):
        arguments = ["--num-samples", "3", "--steps", "20", "--device", "cpu", "--out", f"samples-{name}"]
        assert run("sample", name, *arguments) == 0
    ours, back = (np.load(f"samples-{name}/samples.npz")["arr_0"] for name in (model, "back.pt"))
    assert np.abs(ours.astype(int) - back).max() <= 1
    assert ours.std() > 10


def test_as_json(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", model, "--to", "safetensors", "--out", "w.safetensors", "--weights", "raw", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["to"], facts["weights"], facts["step"], facts["lost"]) == ("safetensors", "raw", 3, [])
    assert run("import", "w.safetensors", "--out", "back.pt", "--json") == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["kind"], facts["parameters"], facts["assumed"]) == ("ddpm's safetensors", 44_969, {})
    assert run("sample", "w.safetensors", "--num-samples", "1", "--device", "cpu") == 2
    assert "w.safetensors holds the raw weights alone; say --weights raw" in capsys.readouterr().err


@pytest.mark.slow
def test_a_program_for_other_runtimes(model: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("export", model, "--to", "torch-export", "--out", "net.pt2", "--json") == 0
    assert json.loads(capsys.readouterr().out)["difference"] < 1e-6
    assert torch.export.load("net.pt2") is not None


def test_mistakes(model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for arguments, code, words in (
        (["export", model, "--to", "pickle", "--out", "x"], 2, "invalid choice: 'pickle'"),
        (["export", "absent.pt", "--to", "diffusers", "--out", "x"], 1, "no such checkpoint"),
        (["export", model, "--to", "safetensors", "--out", "."], 2, "is a folder; safetensors is one file"),
        (["import", "absent.pt", "--out", "x.pt"], 1, "absent.pt: no such file or folder"),
        (["import", model, "--out", "x.pt"], 2, "is a checkpoint of ddpm already"),
        (["import", model, "--out", "."], 2, "name the file to write"),
        (["import", model, "--out", "x.pt", "--revision", "v1"], 2, "--revision: v1 has no effect"),
        (["push", model, "no-owner"], 2, "no-owner: is no hub id; expected OWNER/NAME"),
        (["pull", "x/y/z", "--out", "x.pt"], 2, "x/y/z: is no hub id"),
    ):
        assert run(*arguments) == code, arguments
        captured = capsys.readouterr()
        assert words in captured.err
        assert "Traceback" not in captured.err
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert run("pull", "owner/name", "--out", "x.pt") == 1
    assert "pip install 'ddpm[hub]'" in capsys.readouterr().err
    assert not Path("x.pt").exists()


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub's HTTP interface as pushing and pulling a model needs, in memory."""

    repositories: dict[str, dict[str, bytes]]
    private: dict[str, bool]
    asked: list[str]
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def _answer(self, content: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(code)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_POST(self) -> None:
        body = self._body()
        self.asked.append(f"POST {self.path}")
        place = self.path.partition("?")[0].split("/")
        name = "/".join(place[3:5])
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked.get('organization', 'me')}/{asked['name']}"
            self.repositories.setdefault(name, {})
            self.private[name] = asked.get("private") is True or asked.get("visibility") == "private"
            return self._answer({"url": f"http://{self.headers['Host']}/{name}", "id": name})
        if self.path == "/api/validate-yaml":  # of the model card
            return self._answer({"errors": [], "warnings": []})
        if place[5] == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self._answer({"files": files})
        for line in body.splitlines():
            entry = json.loads(line)
            if entry["key"] == "file":
                self.repositories[name][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
        url = f"http://{self.headers['Host']}/{name}/commit/{SHA}"
        return self._answer({"success": True, "commitOid": SHA, "commitUrl": url, "hookOutput": ""})

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        self.asked.append(f"{self.command} {self.path}")
        place = self.path.partition("?")[0].split("/")
        if place[1] == "api":
            name = "/".join(place[3:5])
            files = self.repositories.get(name)
            if files is None:
                return self._answer({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
            if "tree" in place:
                return self._answer([{"type": "file", "path": f, "size": len(c), "oid": SHA} for f, c in files.items()])
            return self._answer({"id": name, "sha": SHA, "siblings": [{"rfilename": f} for f in files]})
        content = self.repositories["/".join(place[1:3])]["/".join(place[5:])]
        etag = hashlib.sha256(content).hexdigest()
        return self._answer(content, headers={"ETag": f'"{etag}"', "X-Repo-Commit": SHA})


SHA = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Hub]]:
    """The client, pointed to a stand-in; nothing leaves this machine."""
    huggingface_hub = pytest.importorskip("huggingface_hub", reason="an extra: pip install 'ddpm[hub]'")
    stand_in = type("StandIn", (Hub,), {"repositories": {}, "private": {}, "asked": []})
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), stand_in)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    address = f"http://127.0.0.1:{server.server_port}"
    constants = huggingface_hub.constants
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_PROGRESS_BARS", True)
    monkeypatch.setenv("HF_TOKEN", "hf_of_nobody")
    try:
        yield stand_in
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.mark.parametrize("to", ["safetensors", "diffusers"])
def test_push_and_pull(model: str, hub: type[Hub], capsys: pytest.CaptureFixture[str], to: str) -> None:
    assert run("push", model, "me/digits", "--to", to, "--private") == 0, capsys.readouterr().err
    assert "pushed     model.pt: step 3, ema weights" in capsys.readouterr().out
    files = hub.repositories["me/digits"]
    assert hub.private["me/digits"]
    expected = {
        "safetensors": {"README.md", "config.yaml", "model.safetensors"},
        "diffusers": {
            "README.md",
            "model_index.json",
            "unet/config.json",
            "unet/diffusion_pytorch_model.safetensors",
            "scheduler/scheduler_config.json",
        },
    }[to]
    assert set(files) == expected
    files["huge.bin"] = b"not asked for"
    assert run("pull", "me/digits", "--out", "pulled.pt") == 0, capsys.readouterr().err
    assert not any("huge.bin" in line and "resolve" in line for line in hub.asked)
    pushed, pulled = checkpoint.load(Path(model)), checkpoint.load(Path("pulled.pt"))
    assert all(torch.equal(value, pulled.ema[name]) for name, value in pushed.ema.items())
    assert run("import", "me/digits", "--out", "imported.pt", "--revision", "main") == 0
    capsys.readouterr()
    assert run("pull", "me/absent", "--out", "no.pt") == 1
    assert "me/absent: could not be downloaded from the hub" in capsys.readouterr().err
    assert not Path("no.pt").exists()
