"""Events: formats byte by byte, bad files, splits, augmentation, buckets, packing."""

import struct
import time
from itertools import combinations
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from data_modules._events import aedat, atis, gesture, heidelberg, layouts, plain
from data_modules._events.augment import Augment, augmented
from data_modules._events.recording import Recording, Sensor
from data_modules.event_stream import EventStream
from lrnnx_app.data import buckets
from lrnnx_app.data.module import AddressSampler
from lrnnx_app.errors import DataError, RecipeError
from lrnnx_app.spec import SPLITS
from tests.data.standins import event_stream as standin
from tests.helpers import refused

SENSOR = Sensor(34, 34, 2)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("lrnnx_app.disk.cache.root", lambda: tmp_path / "cache")
    return tmp_path / "cache"


def module(layout: str, folder: Path, **options: object) -> EventStream:
    config = EventStream.Config(layout=layout, batch_size=4, **options)
    for word in standin.write(folder, config):
        config.root = word.removeprefix("data.root=")
    return EventStream(config)


def test_aedat_events_byte_by_byte(tmp_path: Path) -> None:
    t, x, y, p = standin.events(50, 128, 128, 0)
    path = tmp_path / "a.aedat"
    path.write_bytes(standin.aedat(t, x, y, p, overflow=1))
    found = aedat.read(path)
    for ours, written in zip(found, (t + 2**31, x, y, p), strict=True):
        assert np.array_equal(ours, written)


def test_atis_events_byte_by_byte_and_their_overflow(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(bytes((3, 4, 0x80, 1, 2, 0, 240, 0, 0, 0, 33, 0, 0, 0, 5)))
    found = atis.read(path)
    assert found.t.tolist() == [258, 8192 + 5]
    assert found.token.tolist() == [34 * 34 + 4 * 34 + 3, 33]


def test_plain_files_agree(tmp_path: Path) -> None:
    t, x, y, p = standin.events(30, 34, 34, 1)
    np.savez(tmp_path / "a.npz", t=t, x=x, y=y, p=p)
    lines = [f"{t[i]},{p[i]},{x[i]},{y[i]}" for i in range(30)]
    (tmp_path / "a.csv").write_text("t,p,x,y\n" + "\n".join(lines))
    (tmp_path / "marked.csv").write_text("t,p,x,y\n" + "\n".join(lines), encoding="utf-8-sig")
    (tmp_path / "a.bin").write_bytes(standin.atis(t, x, y, p))
    names = ("a.npz", "a.csv", "marked.csv", "a.bin")
    found = [layouts.read(tmp_path / name, SENSOR) for name in names]
    for one, other in combinations(found, 2):
        assert np.array_equal(one.t, other.t)
        assert np.array_equal(one.token, other.token)


def test_tokens_do_not_collide(tmp_path: Path) -> None:
    sensor = Sensor(5, 3, 2)
    every = np.array([(x, y, p) for x in range(5) for y in range(3) for p in range(2)])
    np.savez(tmp_path / "a.npz", t=np.arange(30), x=every[:, 0], y=every[:, 1], p=every[:, 2])
    assert sorted(plain.read_npz(tmp_path / "a.npz", sensor).token) == list(range(sensor.tokens))


def test_spikes_of_hdf5(tmp_path: Path) -> None:
    standin.shd(tmp_path)
    found = list(heidelberg.read(tmp_path / "shd_test.h5", 20))
    t, unit, _, _ = standin.events(40, 700, 1, 0)
    assert [r.label for r in found] == [3, 19]
    assert np.array_equal(found[0].token, unit)
    assert np.array_equal(found[0].t, np.round(np.float64(np.float16(t / 1e6)) * 1e6))


GOOD = "t,x,y,p\n1,2,3,0\n5,2,3,1\n"


@pytest.mark.parametrize(
    ("name", "content", "place"),
    [
        ("a.csv", b"", "no column t"),
        ("a.csv", b"t,x,y,p\n", "no events"),
        ("a.csv", b"t,x,y\n1,2,3\n", "no column p"),
        ("a.csv", (GOOD + "7,2\n").encode(), "line 4"),
        ("a.csv", (GOOD + "7,a,3,1\n").encode(), "line 4"),
        ("a.csv", (GOOD + "4,2,3,1\n").encode(), "event 2.*4 µs.*5 µs"),
        ("a.csv", (GOOD + "7,34,3,1\n").encode(), "event 2: x is 34"),
        ("a.csv", (GOOD + "7,3,-1,1\n").encode(), "event 2: y is -1"),
        ("a.csv", (GOOD + "7,3,3,2\n").encode(), "event 2: p is 2"),
        ("a.csv", (GOOD + "7,1.5,3,1\n").encode(), "event 2: x is 1.5"),
        ("a.csv", (GOOD + "nan,1,3,1\n").encode(), "event 2.*finite"),
        ("a.csv", b"\xff\xfe\x00", "not readable as csv"),
        ("a.npz", b"PK\x03\x04 cut off", "not readable as npz"),
        ("a.npz", b"", "not readable as npz"),
        ("a.bin", b"", "no events"),
        ("a.bin", bytes(12), "within event 2"),
        ("a.bin", bytes((1, 1, 0, 0, 9, 1, 1, 0, 0, 8)), "event 1.*sorted"),
        ("a.bin", bytes((1, 40, 0, 0, 9)), "event 0: y is 40"),
        ("a.aedat", b"", "empty"),
        ("a.aedat", b"#!AER-DAT2.0\r\n", "byte 0"),
        ("a.aedat", b"#!AER-DAT3.1\r\nxx", "END-HEADER"),
        ("a.aedat", b"#!AER-DAT3.1\r\n#!END-HEADER\r\n" + bytes(9), "byte 28.*header"),
        ("a.aedat", b"#!AER-DAT3.1\r\n#!END-HEADER\r\n", "no polarity events"),
        ("a.txt", b"", "expected .bin"),
    ],
)
def test_a_bad_file_is_one_line_with_its_place(tmp_path: Path, name: str, content: bytes, place: str) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(DataError, str(tmp_path / name), match=place):
        layouts.read(tmp_path / name, SENSOR)


def test_a_truncated_aedat_or_hdf5_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.aedat"
    whole = standin.aedat(*standin.events(20, 128, 128, 0))
    path.write_bytes(whole[:-3])
    with pytest.raises(DataError, match=r"a\.aedat: byte \d+: .*3 bytes short"):
        aedat.read(path)
    path.write_bytes(whole[: len(whole) - 21 * 8 - 28] + struct.pack("<hhiiiiii", 1, 1, 8, 4, 0, -1, -1, 0))
    with pytest.raises(DataError, match="not a packet"):
        aedat.read(path)
    standin.shd(tmp_path)
    h5 = tmp_path / "shd_train.h5"
    h5.write_bytes(h5.read_bytes()[:3000])
    for damage in (None, b"", b"text"):
        if damage is not None:
            h5.write_bytes(damage)
        with refused(DataError, "shd_train.h5: not readable as HDF5"):
            list(heidelberg.read(h5, 20))


def test_wrong_samples_and_labels_of_hdf5_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    for labels, place in (([0, 20], "sample 1: label 20"), ([0], "2 times.*1 labels")):
        standin.heidelberg(path, [0, 1], [1, 2])
        with h5py.File(path, "a") as file:
            del file["labels"]
            file["labels"] = labels
        with pytest.raises(DataError, match=place):
            list(heidelberg.read(path, 20))
    standin.heidelberg(path, [0, 1], [1, 2])
    with h5py.File(path, "a") as file:
        file["spikes/units"][1] = np.full(41, 700, np.uint16)
    with pytest.raises(DataError, match="sample 1: event 0: x is 700"):
        list(heidelberg.read(path, 20))


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", "no gesture"),
        ("class,startTime_usec\n1,2\n", "line 2"),
        ("class,startTime_usec,endTime_usec\n12,0,9\n", "line 2: class 12"),
        ("class,startTime_usec,endTime_usec\n0,0,9\n", "line 2: class 0"),
        ("class,startTime_usec,endTime_usec\n1,0,9\n2,9,9\n", "line 3: ends"),
    ],
)
def test_wrong_gesture_labels_are_named(tmp_path: Path, text: str, place: str) -> None:
    (tmp_path / "a_labels.csv").write_text(text)
    with pytest.raises(DataError, match=place):
        gesture.labels(tmp_path / "a_labels.csv", 11)


@pytest.mark.parametrize("layout", ["shd", "ssc", "dvs128", "nmnist", "folders", "digits", "spikes"])
def test_layouts_have_splits_that_share_no_group(
    layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("data_modules._events.simulated.STRIDE", 30.0)  # of each prompt its first second
    data = module(layout, tmp_path / "data")
    groups = {}
    for split in SPLITS:
        source = data.source(split)
        groups[split] = {source.store.groups[i] for i in source.rows}
        batch = next(iter(data.loader(split)))
        assert batch.x.max() < data.spec.d_input
        assert batch.y.max() < data.spec.d_output
        assert batch.dt is not None
        assert batch.dt[:, 0].eq(0).all()
        assert batch.dt.min() >= 0
        if layout in ("digits", "spikes"):
            assert all(name.startswith("simulated") for name in batch.names)
    assert all(groups.values())
    pairs = (("train", "valid"),) if layout in ("nmnist", "ssc", "shd", "digits") else combinations(SPLITS, 2)
    if layout not in ("ssc", "digits"):  # separate files of the publisher, and digits by number
        for one, other in pairs:
            assert not groups[one] & groups[other]


@pytest.mark.parametrize("layout", ["shd", "ssc", "dvs128", "nmnist"])
def test_what_is_missing_is_listed(layout: str, tmp_path: Path) -> None:
    data = EventStream(EventStream.Config(layout=layout, root=str(tmp_path)))
    for split in SPLITS:
        with refused(DataError, match=r"no such file or folder.*consists of"):
            data.source(split)


def test_elapsed_time_is_in_milliseconds_and_comes_with_the_later_event(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", t=[1000, 1500, 4500], x=[1, 2, 3], y=[0, 0, 1], p=[0, 1, 0])
    example = module("folders", tmp_path / "data", width=8, height=8).read(tmp_path / "a.npz")
    assert example.dt is not None
    assert example.dt.tolist() == [0, 0.5, 3]
    assert example.x.tolist() == [1, 64 + 2, 8 + 3]
    half = module("folders", tmp_path / "data", width=8, height=8, scale=2).read(tmp_path / "a.npz")
    assert half.x.tolist() == [0, 16 + 1, 1]
    for options, counts, gaps in (
        ({"frame_events": 2}, [2, 1], [0, 3]),
        ({"frame_ms": 1.0}, [2, 0, 0, 1], [0, 1, 1, 1]),
    ):
        frames = module("folders", tmp_path / "data", width=8, height=8, **options).read(tmp_path / "a.npz")
        assert frames.x.sum(1).tolist() == counts
        assert frames.dt is not None
        assert frames.dt.tolist() == gaps


def test_an_excerpt_is_random_in_training_and_fixed_elsewhere(tmp_path: Path) -> None:
    data = module("nmnist", tmp_path / "data", events=10)
    train, test = data.source("train"), data.source("test")
    drawn = {tuple(train.example(0, np.random.default_rng(i)).x.tolist()) for i in range(9)}
    assert len(drawn) > 1
    assert {len(row) for row in drawn} == {10}
    fixed = {tuple(test.example(0, np.random.default_rng(i)).x.tolist()) for i in range(9)}
    assert len(fixed) == 1


@pytest.mark.parametrize(
    "options",
    [
        {"time_jitter": 3.0},
        {"space_jitter": 2.0},
        {"shift": 5},
        {"drop": 0.9},
        {"chunk_drop": 0.9},
        {"skew": 0.5},
        {"cut_mix": 0.4},
    ],
)
def test_augmented_events_are_sorted_inside_and_repeat(options: dict[str, float]) -> None:
    def recording(seed: int) -> Recording:
        t, x, y, p = standin.events(80, 34, 34, seed)
        return Recording(t - t[0], (p * 34 + y) * 34 + x, 7)

    def draw(seed: int) -> Recording:
        rng = np.random.default_rng(seed)
        chosen = Augment(**options)
        return augmented(recording(0), chosen, SENSOR, rng, lambda: recording(1))

    for seed in range(20):
        found = draw(seed)
        assert len(found.t) == len(found.token) >= 1
        assert found.t[0] == 0
        assert (np.diff(found.t) >= 0).all()
        assert 0 <= found.token.min() <= found.token.max() < SENSOR.tokens
        assert found.label == 7
        assert np.array_equal(found.token, draw(seed).token)
    changed = [draw(seed) for seed in range(20)]
    own = recording(0)
    assert any(not np.array_equal(c.t, own.t) or not np.array_equal(c.token, own.token) for c in changed)


def test_wrong_options_are_named() -> None:
    for options, word in (
        ({"layout": "shdd"}, "shd"),
        ({"events": -1}, "events"),
        ({"root": "x"}, "embedded"),
    ):
        with pytest.raises(RecipeError, match=word):
            EventStream.Config(**options)
    with pytest.raises(RecipeError, match="cut_mix"):
        Augment(cut_mix=0.6)


@pytest.mark.parametrize("options", [{}, {"events": 50}, {"frame_events": 7}, {"frame_ms": 3.0}], ids=str)
def test_lengths_are_known_before_examples_are_made(options: dict[str, Any]) -> None:
    source = EventStream(EventStream.Config(layout="digits", **options)).source("test")
    rng = np.random.default_rng(0)
    assert [len(source.example(row, rng).x) for row in range(30)] == source.lengths[:30].tolist()


def lengths(count: int = 2000) -> np.ndarray:
    """From 50 to some 100,000 steps."""
    return np.exp(np.random.default_rng(0).uniform(np.log(50), np.log(100_000), count)).astype(int)


def waste(rows: np.ndarray, known: np.ndarray, batch: int) -> float:
    groups = known[rows[: len(rows) // batch * batch]].reshape(-1, batch)
    return 1 - groups.sum() / (groups.max(1) * batch).sum()


@pytest.mark.parametrize("shuffled", [True, False])
def test_buckets_waste_little_and_visit_every_row(shuffled: bool) -> None:
    known = lengths()
    rng = np.random.default_rng(1) if shuffled else None
    rows = buckets.order(known, 16, rng)
    assert sorted(rows) == list(range(len(known)))
    assert waste(rows, known, 16) < 0.15 < 0.5 < waste(np.random.default_rng(1).permutation(2000), known, 16)


def test_ranks_share_a_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    known = lengths()
    dealt = []
    for rank in range(2):
        sampler = AddressSampler(len(known), 3, True, known, 8)
        sampler.rank, sampler.ranks = rank, 2
        sampler.set_epoch(4)
        dealt.append(np.array([address.row for address in sampler]))
    assert not set(dealt[0]) & set(dealt[1])
    assert len(dealt[0]) == len(dealt[1]) == 1000
    for rows in dealt:
        assert waste(rows, known, 8) < 0.15
    steps = [known[rows].reshape(-1, 8).max(1) for rows in dealt]
    assert np.median(np.abs(np.log(steps[0] / steps[1]))) < 0.05


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    data = module("folders", tmp_path / "data")
    before = data.source("train")
    name = before.store.names[before.rows[0]]
    time.sleep(0.01)
    np.savez(tmp_path / "data" / name, t=[1], x=[1], y=[1], p=[1])
    assert len(data.source("train").example(0, np.random.default_rng(0)).x) == 1
