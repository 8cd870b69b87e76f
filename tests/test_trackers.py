"""Trackers behind one interface: a stand-in of each package, and the packages themselves, offline, where they are."""

from __future__ import annotations

import sys
import types
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ddpm.errors import ConfigError, DDPMError
from ddpm.run import train
from ddpm.tracking import Tracker
from tests.tiny import tiny

PICTURE = np.zeros((4, 4, 1), np.uint8)


class Recorder:
    """Notes every call."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            self.calls.append((name, arguments, named))
            return types.SimpleNamespace(info=types.SimpleNamespace(run_id="run-1"), experiment_id="7")

        return call

    def of(self, name: str) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        return [(arguments, named) for called, arguments, named in self.calls if called == name]


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> Any:
    run, module = Recorder(), types.ModuleType("wandb")
    module.run = run  # type: ignore[attr-defined]
    module.opened = []  # type: ignore[attr-defined]
    module.Image = lambda array: ("image", array.shape)  # type: ignore[attr-defined]
    run.id = "id-of-this-run"  # type: ignore[attr-defined]

    def init(**named: Any) -> Recorder:
        module.opened.append(named)  # type: ignore[attr-defined]
        return run

    module.init = init  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", module)
    for name in ("WANDB_PROJECT", "WANDB_NAME"):
        monkeypatch.delenv(name, raising=False)
    return module


@pytest.fixture
def mlflow(monkeypatch: pytest.MonkeyPatch) -> Any:
    client, module = Recorder(), types.ModuleType("mlflow")
    module.client, module.places = client, []  # type: ignore[attr-defined]

    def made(tracking_uri: str) -> Recorder:
        module.places.append(tracking_uri)  # type: ignore[attr-defined]
        return client

    module.MlflowClient = made  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "mlflow", module)
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    return module


def test_a_run_tells_both_all(tmp_path: Path, wandb: Any, mlflow: Any) -> None:
    """Metrics, previews, the resolved settings; and goes on with the same run when it is continued."""
    config = tiny(training__trackers=["wandb", "mlflow"])
    train(config, tmp_path, device="cpu", progress=False)
    (opened,) = wandb.opened
    assert opened["id"] is None
    assert opened["config"]["training.batch_size"] == 8
    assert (opened["project"], opened["name"]) == ("ddpm", tmp_path.name)
    logged = wandb.run.of("log")
    losses = {named["step"]: values["loss"] for (values,), named in logged if "loss" in values}
    assert sorted(losses) == [2, 4, 6]
    assert [named["step"] for (values,), named in logged if "preview" in values] == [3, 6]
    assert [named["step"] for (values,), named in logged if "validation_loss" in values] == [3, 6]
    assert wandb.run.of("finish") == [((), {"exit_code": 0})]

    assert mlflow.places == [(tmp_path / "mlruns").as_uri()]
    params = {arguments[1]: arguments[2] for arguments, _ in mlflow.client.of("log_param")}
    assert params["training.batch_size"] == 8
    steps = [named["step"] for arguments, named in mlflow.client.of("log_metric") if arguments[1] == "loss"]
    assert steps == [2, 4, 6]
    metrics = {named["step"]: a[2] for a, named in mlflow.client.of("log_metric") if a[1] == "loss"}
    assert metrics == losses
    files = [named["artifact_file"] for _, named in mlflow.client.of("log_image")]
    assert files == ["preview/step-3.png", "preview/step-6.png"]
    assert mlflow.client.of("set_terminated")[-1][0] == ("run-1", "FINISHED")

    longer = tiny(training__trackers=["wandb", "mlflow"], training__steps=8)
    train(longer, tmp_path, device="cpu", progress=False)
    assert [named["id"] for named in wandb.opened] == [None, "id-of-this-run"]
    assert wandb.opened[1]["resume"] == "allow"
    assert len(mlflow.client.of("create_run")) == 1
    assert mlflow.client.of("update_run") == [(("run-1",), {"status": "RUNNING"})]
    steps = [named["step"] for arguments, named in mlflow.client.of("log_metric") if arguments[1] == "loss"]
    assert steps == [2, 4, 6, 8]


def test_a_failure_is_told_too(tmp_path: Path, wandb: Any, mlflow: Any) -> None:
    with pytest.raises(RuntimeError), Tracker(tmp_path, 0, trackers=("wandb", "mlflow")):
        raise RuntimeError
    assert wandb.run.of("finish") == [((), {"exit_code": 1})]
    assert mlflow.client.of("set_terminated")[-1][0] == ("run-1", "FAILED")


def test_tensorboard_needs_no_setting_and_the_others_nothing_of_it(tmp_path: Path) -> None:
    with Tracker(tmp_path, 0) as tracker:
        tracker.row(1, {"loss": 0.5})
        tracker.picture(1, "preview", PICTURE)
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert not {"wandb", "mlflow"} & set(sys.modules)


def test_what_is_missing_or_refuses_is_said(tmp_path: Path, wandb: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(DDPMError, match=r"mlflow is not installed: pip install 'ddpm\[mlflow\]'"):
        Tracker(tmp_path, 0, trackers=("mlflow",))

    def refuse(**_: Any) -> None:
        raise ValueError("no API key\nand a long trace")

    wandb.init = refuse
    with pytest.raises(DDPMError, match=r"wandb cannot be opened: no API key\. Set it up, or leave it out"):
        Tracker(tmp_path, 0, trackers=("wandb",))
    with pytest.raises(ConfigError, match=r"training\.trackers"):
        tiny(training__trackers=["comet"])


@pytest.mark.slow
def test_weights_and_biases_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The package itself: a run in a folder, nothing sent."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        pytest.importorskip("wandb", reason="an extra: pip install 'ddpm[wandb]'")
        with Tracker(tmp_path, 0, trackers=("wandb",), settings={"training.steps": 3}) as tracker:
            tracker.row(1, {"loss": 0.5, "time/images_per_s": 10.0})
            tracker.picture(1, "preview", PICTURE)
    (run,) = (tmp_path / "wandb").glob("offline-run-*")
    assert list(run.glob("run-*.wandb"))
    assert list(run.rglob("preview_*.png"))


@pytest.mark.slow
def test_mlflow_in_the_runs_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # its own
        mlflow = pytest.importorskip("mlflow", reason="an extra: pip install 'ddpm[mlflow]'")
        for step in (0, 1):
            with Tracker(tmp_path, step, trackers=("mlflow",), settings={"training.steps": 3}) as tracker:
                tracker.row(step + 1, {"loss": 0.5 / (step + 1)})
                tracker.picture(step + 1, "preview", PICTURE)
        client = mlflow.MlflowClient(tracking_uri=(tmp_path / "mlruns").as_uri())
        run = client.get_run((tmp_path / "mlflow-run.txt").read_text().strip())
        history = client.get_metric_history(run.info.run_id, "loss")
    assert (run.info.status, run.data.params) == ("FINISHED", {"training.steps": "3"})
    assert [(m.step, m.value) for m in history] == [(1, 0.5), (2, 0.25)]
    assert len(list((tmp_path / "mlruns").rglob("step-*.png"))) == 2
