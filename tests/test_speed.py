"""What `ddpm benchmark` measures. No figure here is a threshold."""

from __future__ import annotations

import json

import pytest
import torch

from ddpm import speed
from ddpm.cli import main
from ddpm.cost import cost_of
from ddpm.speed import Rate
from tests.tiny import tiny

CPU = torch.device("cpu")


def test_rates_count_what_was_done() -> None:
    config = tiny(network__dropout=0.0)
    measured = list(speed.rates(config, "train", CPU, most=6, seconds=0.0))
    assert [rate.batch for rate in measured] == [1, 2, 4]
    gflop = 3 * cost_of(config).gflop_per_image
    for rate in measured:
        assert rate.gflop_per_s == pytest.approx(gflop * rate.images_per_s)


def test_a_training_step_trains_and_a_call_does_not() -> None:
    step = speed.training_step(tiny(training__steps=1), CPU)
    first, *_ = [step() for _ in range(3)]
    assert step().step == 4  # type: ignore[attr-defined]  # more than the configuration's one
    assert first.loss > 0  # type: ignore[attr-defined]
    answer = speed.network_call(tiny(), 3, CPU)()
    assert isinstance(answer, torch.Tensor)
    assert answer.shape == (3, 1, 8, 8)
    assert not answer.requires_grad


def test_the_best_batch_is_the_smallest_that_is_nearly_as_fast() -> None:
    measured = [Rate("train", b, r, 0.0) for b, r in ((1, 10.0), (2, 50.0), (4, 97.0), (8, 100.0), (16, 99.0))]
    assert speed.best(measured).batch == 4


def test_batches_end_where_memory_does(monkeypatch: pytest.MonkeyPatch) -> None:
    real = speed._call

    def limited(config: object, work: str, batch: int, device: torch.device) -> object:
        if batch > 2:
            raise MemoryError
        return real(config, work, batch, device)  # type: ignore[arg-type]

    monkeypatch.setattr(speed, "_call", limited)
    assert [r.batch for r in speed.rates(tiny(), "sample", CPU, most=64, seconds=0.0)] == [1, 2]
    monkeypatch.setattr(speed, "_call", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(speed.rates(tiny(), "sample", CPU, most=1))


def test_the_command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "peak_gflops", lambda *_: 100.0)
    small = ["network.channels=8", "network.multipliers=[1]", "network.norm_groups=4", "network.attention=[]"]
    arguments = ["--config", "image/digits/ddpm_8x8", "--most", "2", *(x for s in small for x in ("--set", s))]
    assert main(["benchmark", *arguments, "--json", "--device", "cpu"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert [(r["work"], r["batch"]) for r in facts["rates"]] == [(w, b) for w in ("train", "sample") for b in (1, 2)]
    assert facts["train_s"] > 0
    assert main(["benchmark", *arguments, "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("<- best") == 2
    assert "training   about" in printed
    assert main(["benchmark", "--config", "absent"]) == 2
