"""Streams: every picture once an epoch however many read, going on at the very next one, decoded as any picture is."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from ddpm import data
from ddpm.config import DataSection, parse_config, plain
from ddpm.data import ImageStream, Position, workers
from ddpm.data import stream as stream_module
from ddpm.data.records import Sample, Taken
from ddpm.data.stream import whole_label
from ddpm.errors import ConfigError, DataError
from tests.data.files import level_png, noise, quiet, save, section
from tests.tiny import tiny

START = Position(0, 0)
UNEQUAL = (7, 1, 12, 3, 20)


def config(**changes: object) -> DataSection:
    return section("webdataset", **{"workers": 1} | changes)


def levels(sizes: Sequence[int] = UNEQUAL, **changes: object) -> ImageStream:
    """Shards in memory, of pictures of the levels 0, 1, 2, ..."""
    ends = np.cumsum(sizes).tolist()

    def read(number: int) -> Iterator[Sample]:
        return (Sample(str(n), level_png(n), n % 3) for n in range(ends[number] - sizes[number], ends[number]))

    return ImageStream(tuple(f"{n}.tar" for n in range(len(sizes))), read, config(**changes))


def taken(stream: ImageStream, count: int, start: Position = START, processes: int = 1, seed: int = 0) -> list[Taken]:
    return list(islice(stream._taken(seed, start, processes), count))


@pytest.fixture(params=[1024, 4])
def block(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(stream_module, "BLOCK", request.param)
    return int(request.param)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_every_picture_once_an_epoch(block: int, processes: int) -> None:
    stream, epochs = levels(), 4
    seen: list[Counter[str]] = [Counter() for _ in range(epochs)]
    for rank in range(processes):
        for one in stream._taken(0, Position(rank, 0), processes):
            epoch = one.after.shard // len(UNEQUAL)
            if epoch >= epochs:
                break
            seen[epoch][one.sample.key] += 1
    assert seen == [Counter(map(str, range(sum(UNEQUAL))))] * epochs


@pytest.mark.parametrize("processes", [1, 2])
def test_it_goes_on_at_the_very_next_picture(block: int, processes: int) -> None:
    stream = levels()
    whole = taken(stream, 100, Position(processes - 1, 0), processes)
    for done, one in enumerate(whole[:90], 1):
        assert taken(stream, 10, one.after, processes) == whole[done : done + 10]


def test_the_order_is_another_one_each_epoch_and_for_each_seed() -> None:
    stream, count = levels(), sum(UNEQUAL)
    keys = [int(one.sample.key) for one in taken(stream, 2 * count)]
    first, second = keys[:count], keys[count:]
    other = [int(one.sample.key) for one in taken(stream, count, seed=1)]
    assert sorted(first) == sorted(second) == sorted(other)
    assert len({tuple(order) for order in (first, second, other, range(count))}) == 4

    def order_of(shard: int, keys: list[int]) -> list[int]:
        low = sum(UNEQUAL[:shard])
        return [key for key in keys if low <= key < low + UNEQUAL[shard]]

    assert order_of(4, first) != order_of(4, second)  # within a shard too


def test_blocks_end_by_number_or_by_size(monkeypatch: pytest.MonkeyPatch) -> None:
    size = len(level_png(0))
    for most, limit, length in ((4, 10**6, 4), (1024, 3 * size - 1, 3)):
        monkeypatch.setattr(stream_module, "BLOCK", most)
        monkeypatch.setattr(stream_module, "BLOCK_BYTES", limit)
        keys = [int(one.sample.key) for one in taken(levels((20,)), 20)]
        runs = [keys[i : i + length] for i in range(0, 20, length)]
        assert [sorted(run) for run in runs] == [list(range(i, min(i + length, 20))) for i in range(0, 20, length)]
        assert keys != sorted(keys)


def test_shards_may_move_but_not_change() -> None:
    def of(*names: str) -> str:
        return ImageStream(names, lambda _: iter(()), config()).fingerprint

    there = of("/disk/photos/a/0.tar", "/disk/photos/b/0.tar")
    assert there == of("https://host/x/y/a/0.tar", "https://host/x/y/b/0.tar")
    assert there not in (of("/a/0.tar", "/a/1.tar"), of("/b/0.tar", "/a/0.tar"), of("/a/0.tar"))


def test_fewer_shards_than_processes_are_refused() -> None:
    levels().check(5)
    with pytest.raises(DataError, match="5 shards for 6 processes"):
        levels().check(6)


@pytest.mark.parametrize("after", [0, 1])
def test_shards_without_pictures_are_named(after: int) -> None:
    def read(number: int) -> Iterator[Sample]:
        yield from [Sample("a", level_png(1)), Sample("b", level_png(2))][: 2 * (number != 1)]

    stream = ImageStream(("one.tar", "two.tar"), read, config())
    with pytest.raises(DataError, match=r"two\.tar: a shard without pictures: it is empty"):
        taken(stream, 10)
    texts = ImageStream(("one.tar",), lambda _: iter([Sample("a", b"", None, "it has json")]), config())
    with pytest.raises(DataError, match=r"one\.tar: a shard without pictures: its first 1 samples have none: it has j"):
        taken(texts, 10)
    with pytest.raises(DataError, match="it is empty"):
        ImageStream(("one.tar",), lambda _: iter(()), config()).check(1)


def test_a_shard_that_has_shrunk_is_noticed() -> None:
    with pytest.raises(DataError, match=r"has 20 pictures, but had 21 or more .* another file"):
        taken(levels((20,)), 1, Position(0, 21))
    assert taken(levels((20,)), 1, Position(0, 20))[0].after == Position(1, 1)


def batches(stream: ImageStream, size: int, count: int, start: Position = START) -> list[data.Batch]:
    source = stream.batches(size, seed=0, start=start)
    try:
        return list(islice(source, count))
    finally:
        source.close()  # type: ignore[attr-defined]


def test_batches_do_not_depend_on_the_workers_and_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "CHUNK", 2)
    one, two = (batches(levels(workers=count), 6, 12) for count in (1, 2))
    expected = [one.sample for one in taken(levels(), 72)]
    for number, (batch, other) in enumerate(zip(one, two, strict=True)):
        samples = expected[6 * number : 6 * number + 6]
        assert batch.images[:, 0, 0, 0].tolist() == [int(sample.key) for sample in samples]
        assert batch.labels is not None
        assert batch.labels.tolist() == [sample.label for sample in samples]
        assert (batch.images == other.images).all()
        assert batch.after == other.after
    place = one[4].after
    assert place is not None
    (again,) = batches(levels(), 6, 1, place)
    assert (again.images == one[5].images).all()
    assert again.after == one[5].after


def test_pictures_become_what_they_become_from_a_folder(tmp_path: Path) -> None:
    kinds: dict[str, tuple[np.ndarray, dict[str, object]]] = {
        "grey.png": (noise(20, 30), {}),
        "photo.jpg": (noise(33, 21, 3), {"quality": 80}),
        "clear.png": (noise(16, 16, 4), {}),
        "deep.png": (noise(16, 32).view(np.uint16), {}),
        "turned.jpg": (noise(9, 21, 3), {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0"}),
    }
    for name, (pixels, options) in kinds.items():
        save(tmp_path / name, pixels, **options)
    for channels, resize in ((3, "crop"), (1, "stretch")):
        packed = quiet(section("folder", root=tmp_path, channels=channels, resize=resize))

        def read(_: int) -> Iterator[Sample]:
            return (Sample(path.name, path.read_bytes()) for path in sorted(tmp_path.iterdir()))

        stream = ImageStream(("one",), read, config(channels=channels, resize=resize))
        assert sorted(map(bytes, stream.first(100))) == sorted(map(bytes, packed.images))


def test_broken_pictures_are_left_out_named_and_limited(capsys: pytest.CaptureFixture[str]) -> None:
    def read(number: int) -> Iterator[Sample]:
        for n in range(20):
            yield Sample(str(n), b"no picture" if n == 3 else level_png(n))
        yield Sample("text", b"", None, "it has no picture")

    tolerant = ImageStream(("one.tar",), read, config(max_broken=0.01))
    (batch,) = batches(tolerant, 38, 1)
    assert Counter(batch.images[:, 0, 0, 0].tolist()) == Counter([n for n in range(20) if n != 3] * 2)
    said = capsys.readouterr().err
    assert said.count("one.tar: 3: is no image") == said.count("one.tar: text: it has no picture; left out") == 2
    strict = ImageStream(("one.tar",), read, config(max_broken=0.0))
    with pytest.raises(DataError, match=r"1 of \d+ pictures are broken, more than data\.max_broken: 0 allows"):
        batches(strict, 38, 1)


def _gone(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def _wait_until_gone(processes: Sequence[int]) -> None:
    deadline = time.monotonic() + 20
    while not all(map(_gone, processes)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_worker_that_dies_is_reported_and_the_others_end(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[subprocess.Popen[bytes]] = []
    start = workers._start
    monkeypatch.setattr(workers, "_start", lambda config: started.append(start(config)) or started[-1])
    source = levels(workers=2).batches(4, seed=0, start=START)
    next(source)
    started[0].kill()
    with pytest.raises(DataError, match=r"has ended by itself \(with exit code -9"):
        list(islice(source, 1000))
    assert [process.poll() for process in started] == [-9, -9]


ENDLESS = """
import time
from tests.data.test_stream import levels
from ddpm.data import Position, workers
start, started = workers._start, []
workers._start = lambda config: started.append(start(config)) or started[-1]
source = levels(workers=2).batches(4, seed=0, start=Position(0, 0))
next(source)
print(*(process.pid for process in started), flush=True)
time.sleep(0.5)
next(source)
print("still", flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks into /proc")
def test_workers_end_with_a_killed_process_and_by_no_signal_before() -> None:
    # No main guard, and not a file: what a worker imports is ours alone.
    with subprocess.Popen([sys.executable, "-c", ENDLESS], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        try:
            children = [int(word) for word in parent.stdout.readline().split()]
            for number in (signal.SIGINT, signal.SIGTERM):  # as a terminal or a scheduler sends them to all
                for child in children:
                    os.kill(child, number)
            assert parent.stdout.readline() == "still\n"
            assert len(children) == 2
            assert not any(map(_gone, children))
        finally:
            parent.kill()
    _wait_until_gone(children)


def test_labels_are_whole_numbers_of_classes() -> None:
    assert [whole_label(value, 3, "here") for value in ("0", "2", 1)] == [0, 2, 1]
    for odd in ("3", 3, -1, "-1", "cat", "", 1.0, None, True, "٢"):
        with pytest.raises(DataError, match=r"here: found the label .*, expected a whole number from 0 to 2"):
            whole_label(odd, 3, "here")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data__held_out": 0.1}, r"data: held_out: 0\.1 is a share .* Remove it"),
        ({"data__resize": "pad"}, r"data: resize: pad .* Use crop or stretch"),
        ({"data__streaming": True}, "streaming: true has no effect on the source webdataset, which is streamed always"),
        ({"data__source": "digits", "data__workers": 2}, "workers: 2 has no effect on data that are packed"),
        ({"data__source": "folder", "data__streaming": True}, "streaming: true has no effect on the source folder"),
        ({"data__source": "huggingface", "data__workers": 2}, "huggingface with streaming: true"),
        ({"data__workers": 0}, "workers: found 0"),
        ({"data__label_column": "cls"}, r"label_column: 'cls' has no effect.*Set network\.classes"),
        ({"training__steps": None, "training__epochs": 2.0}, r"training\.epochs: 2: .*Set training\.steps instead"),
    ],
)
def test_what_has_no_effect_or_cannot_be_is_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(**{"data__source": "webdataset", "data__held_out": 0.0} | changes)


def test_streams_are_not_read_whole() -> None:
    for split in ("train", "test"):
        with pytest.raises(DataError, match=f"is a stream.* no set '{split}'"):
            data.load(config(), split, progress=False)  # type: ignore[arg-type]


def test_older_configurations_are_read_as_they_were() -> None:
    old = plain(tiny())
    for key in ("streaming", "workers"):
        del old["data"][key]
    assert parse_config(old, source="old") == tiny()
