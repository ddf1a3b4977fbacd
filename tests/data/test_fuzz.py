"""Bytes of any kind: a reader takes them or says in its own error what is wrong, and nothing else.

`LRNNX_FUZZ=5000 pytest tests/data/test_fuzz.py` tries so many inputs for each reader.
"""

import io
import os
import pickle
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache
from pathlib import Path

import h5py
import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
import yaml
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image

from data_modules import _cifar, _idx, _pictures
from data_modules._events import aedat, atis, gesture, heidelberg, plain
from data_modules._events.recording import Sensor
from data_modules.text import Text
from lrnnx_app import recipe
from lrnnx_app.data import tokenizer
from lrnnx_app.data.audio_io import read_mono
from lrnnx_app.errors import UserError
from lrnnx_app.infer import generation
from lrnnx_app.runs.sealed import verify
from tests.data.standins import event_stream, image_sequence

TRIES = int(os.environ.get("LRNNX_FUZZ", "60"))
SENSOR = Sensor(34, 34, 2)
SLOW = {"a.h5": 20}  # a reader with a process of its own gets the so many-th part of the tries
fuzzing = settings(
    max_examples=TRIES,
    deadline=None,
    derandomize="LRNNX_FUZZ" not in os.environ,  # more inputs, and others each time
    database=None,
    suppress_health_check=list(HealthCheck),
)
EVENTS = event_stream.events(20, 34, 34, 0)


def fuzzing_of(name: str) -> settings:
    return settings(fuzzing, max_examples=TRIES // SLOW.get(name, 1))


def spoken(form: str) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.linspace(-0.5, 0.5, 400), 8000, format=form)
    return file.getvalue()


def spikes() -> bytes:
    file = io.BytesIO()
    with h5py.File(file, "w") as h5:
        kind = h5py.vlen_dtype(np.float32)
        times = h5.create_dataset("spikes/times", (2,), kind)
        units = h5.create_dataset("spikes/units", (2,), kind)
        for row in range(2):
            times[row], units[row] = np.linspace(0, 1, 5), np.arange(5)
        h5["labels"] = np.arange(2)
    return file.getvalue()


def npz() -> bytes:
    file = io.BytesIO()
    np.savez(file, **dict(zip("txyp", EVENTS, strict=True)))
    return file.getvalue()


def picture(form: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (9, 7), (10, 20, 30)).save(file, form)
    return file.getvalue()


def table() -> bytes:
    rows = zip(*EVENTS, strict=True)
    return ("t,x,y,p\n" + "\n".join(",".join(map(str, row)) for row in rows)).encode()


def cifar() -> bytes:
    return pickle.dumps({b"data": np.zeros((2, 3072), np.uint8), b"labels": [1, 2]}, 2)


def h5_rows(path: Path) -> list[object]:
    return list(heidelberg.read(path, 20))


def tokens_of(path: Path) -> object:
    found = tokenizer.opened(str(path))
    return found.sizes, found.prompt(b"ab c"), found.document(b"ab c")


# name of the file -> (how a good one begins its life, how it is read)
READERS: dict[str, tuple[Callable[[], bytes], Callable[[Path], object]]] = {
    "a.yaml": (lambda: recipe.find("digits_lru").read_bytes(), lambda path: recipe.load(str(path))),
    "a.wav": (lambda: spoken("WAV"), lambda path: read_mono(path, 16000)),
    "a.flac": (lambda: spoken("FLAC"), lambda path: read_mono(path, 16000)),
    "a.ogg": (lambda: spoken("OGG"), lambda path: read_mono(path, 16000)),
    "a.png": (lambda: picture("PNG"), lambda path: _pictures.read_picture(path, 8, True)),
    "a.jpg": (lambda: picture("JPEG"), lambda path: _pictures.read_picture(path, 8, False)),
    "a.gif": (lambda: picture("GIF"), lambda path: _pictures.read_picture(path, 8, False)),
    "idx": (
        lambda: image_sequence.idx(np.zeros((2, 3, 3), np.uint8)),
        lambda path: _idx.read_idx(path.parent, path.name, 3),
    ),
    "idx.gz": (lambda: b"\x1f\x8b\x08\0", lambda path: _idx.read_idx(path.parent, "idx", 3)),
    "test_batch": (cifar, lambda path: _cifar._batch(path.parent, path.name)),
    "test_batch.bin": (lambda: bytes(3073), lambda path: _cifar._batch(path.parent, "test_batch")),
    "a.csv": (table, lambda path: plain.read_csv(path, SENSOR)),
    "a.npz": (npz, lambda path: plain.read_npz(path, SENSOR)),
    "a.bin": (lambda: event_stream.atis(*EVENTS), atis.read),
    "a.aedat": (lambda: event_stream.aedat(*EVENTS), aedat.read),
    "a_labels.csv": (
        lambda: b"class,startTime_usec,endTime_usec\n1,0,5\n2,5,9\n",
        lambda path: gesture.labels(path, 11),
    ),
    "a.h5": (spikes, h5_rows),
    "a.txt": (lambda: b"some text", Text(Text.Config()).read),
    "numbers.txt": (lambda: b"1 2\n3", Text(Text.Config(tokenizer="ids:9")).read),
    "tokenizer.json": (lambda: tokenizer.trained(["ab ab"], 258).encode(), tokens_of),
    "state": (lambda: safetensors.torch.save({generation.LAST: torch.zeros(2, 1)}), generation._read),
    "a.ckpt": (lambda: b"PK\x05\x06" + bytes(18), verify),
}
BEGINNINGS = ("idx.gz", "a.ckpt")  # of files, and no whole ones
original = cache(lambda name: READERS[name][0]())

Edit = tuple[float, bytes, int]  # where, as a share of the length; what is put there; how many bytes go


def edited(content: bytes, edits: list[Edit], keep: float) -> bytes:
    for place, new, gone in edits:
        at = int(place * len(content))
        content = content[:at] + new + content[at + gone :]
    return content[: int(keep * len(content))]


share = st.floats(0, 1)
EDITS = st.lists(st.tuples(share, st.binary(max_size=6), st.integers(0, 6)), max_size=4)
KEEP = st.one_of(st.just(1.0), share)


def one_line(action: Callable[[], object]) -> None:
    """Do it; what it refuses is the user's mistake, told in one line."""
    message = ""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of libraries, about what they are shown
        try:
            action()
        except UserError as error:
            message = str(error)
    assert "\n" not in message


def takes_or_refuses(folder: Path, name: str, content: bytes) -> None:
    path = folder / name
    path.write_bytes(content)
    one_line(lambda: READERS[name][1](path))


@pytest.mark.parametrize("name", READERS)
def test_a_good_file_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(original(name))
    with pytest.raises(UserError) if name in BEGINNINGS else nullcontext():
        READERS[name][1](path)


@pytest.mark.parametrize("name", READERS)
def test_damaged_files(tmp_path: Path, name: str) -> None:
    @fuzzing_of(name)
    @given(EDITS, KEEP)
    def run(edits: list[Edit], keep: float) -> None:
        takes_or_refuses(tmp_path, name, edited(original(name), edits, keep))

    run()


FOUND: list[tuple[str, list[Edit]]] = [  # what once ended in a traceback, or in more than one line
    ("a.flac", [(0.375, bytes(6), 1)]),
    ("a_labels.csv", [(0.0, b"\x80", 0)]),
    ("a.png", [(0.6875, b"\x10", 0)]),
    ("a.jpg", [(0.0, bytes(4), 6), (0.0, bytes(4), 6), (0.0, bytes(1), 6)]),
    ("a.gif", [(0.5, bytes(2), 0)]),
    ("test_batch", [(0.0, b"F", 5)]),
    ("test_batch", [(0.0, b"P", 10000)]),
    ("a.h5", [(0.3515625, b"\0\x01", 2)]),
    ("a.npz", [(0.896484375, b"\0\0\x01\0", 4)]),
    ("a.npz", [(0.89453125, b"\0\0\x01\0", 4)]),
]


@pytest.mark.parametrize(("name", "edits"), FOUND)
def test_what_was_found(tmp_path: Path, name: str, edits: list[Edit]) -> None:
    takes_or_refuses(tmp_path, name, edited(original(name), edits, 1.0))


@pytest.mark.parametrize("name", READERS)
def test_bytes_of_any_kind(tmp_path: Path, name: str) -> None:
    @fuzzing_of(name)
    @given(st.binary(max_size=200))
    @example(b"")
    @example(b"\0")
    def run(content: bytes) -> None:
        takes_or_refuses(tmp_path, name, content)

    run()


SCALARS = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8))
REFERENCES = st.sampled_from(["${model}", "${about}", "${nowhere}", "???"])
VALUES = st.recursive(
    st.one_of(SCALARS, REFERENCES),
    lambda x: st.one_of(st.lists(x, max_size=3), st.dictionaries(st.text(max_size=6), x, max_size=3)),
    max_leaves=6,
)
SECTIONS = ("task", "model", "data", "trainer", "seed", "about", "x")
INNER = ("task.lr", "model.layer", "model.layer.d_state", "model.layer[0]", "model.depth", "data.batch_size")
KEYS = st.sampled_from((*SECTIONS, *INNER, "trainer.max_steps", "trainer.precision", "..", "a.b.c"))


@fuzzing
@example([("task", "[]")])
@given(st.lists(st.tuples(KEYS, st.one_of(st.text(max_size=12), VALUES.map(str))), max_size=3))
def test_overrides_of_any_kind(pairs: list[tuple[str, str]]) -> None:
    one_line(lambda: recipe.load("digits_lru", [f"{key}={value}" for key, value in pairs]))


@fuzzing
@given(st.dictionaries(st.sampled_from(SECTIONS), VALUES, max_size=4))
def test_mappings_of_any_kind(tmp_path_factory: pytest.TempPathFactory, content: dict[str, object]) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzzed.yaml"
    path.write_text(yaml.safe_dump(yaml.safe_load(original("a.yaml")) | content))
    one_line(lambda: recipe.load(str(path)))
