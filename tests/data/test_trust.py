"""Files of strangers: nothing in them is followed, run or unfolded without end; one line refuses each."""

import gzip
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from PIL import Image

from data_modules._cifar import PIXELS, cifar10
from data_modules._events import heidelberg, plain
from data_modules._events.recording import Sensor
from data_modules._idx import read_idx
from data_modules._pictures import read_picture
from lrnnx_app import recipe
from lrnnx_app.errors import DataError, RecipeError
from tests.helpers import refused

ADDRESS = struct.pack("<Q", 0x4141414141414141)


class Call:
    """What unpickling calls."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


def deep(times: int) -> bytes:
    return b"\x80\x02}(C\x06labelsN" + b"C\x04data)" + b"\x85" * times + b"Ns."


BATCHES = {
    "pointers": {b"data": Call(np.ndarray, (1,), np.dtype("O"), ADDRESS), b"labels": [1]},
    "pointers_in_labels": {
        b"data": np.zeros((1, PIXELS), np.uint8),
        b"labels": Call(np.ndarray, (1,), np.dtype("O"), ADDRESS),
    },
    "fields_of_pointers": {b"data": Call(np.ndarray, (1,), np.dtype([("a", "O")]), ADDRESS), b"labels": [1]},
    "objects": {b"data": np.array([[None] * PIXELS]), b"labels": [1]},
    "more_than_there_is": {b"data": Call(np.ndarray, (1 << 40, PIXELS), np.dtype("u1")), b"labels": [1]},
    "floats": {b"data": np.zeros((1, PIXELS)), b"labels": [1]},
    "labels_of_words": {b"data": np.zeros((1, PIXELS), np.uint8), b"labels": ["one"]},
    "bytearray": {b"data": bytearray(PIXELS), b"labels": [1]},
    "code": {b"data": Call(os.mkdir, "sprung"), b"labels": [1]},
}


@pytest.mark.parametrize("name", BATCHES)
def test_a_pickle_of_more_than_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    for protocol in (0, 2, 4, 5):
        (tmp_path / "test_batch").write_bytes(pickle.dumps(BATCHES[name], protocol))
        with refused(DataError, "not a CIFAR-10 batch"):
            cifar10(tmp_path, "test")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize(
    "content",
    [deep(2_000_000), b"\x80\x02}r\xff\xff\xff\xff.", b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"."],
    ids=["deep", "memo", "bytearray"],
)
def test_a_pickle_that_takes_all_memory(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "test_batch").write_bytes(content)
    with pytest.raises(DataError, match="not a CIFAR-10 batch"):
        cifar10(tmp_path, "test")


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
def test_every_protocol_of_numbers_is_read(tmp_path: Path, protocol: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, PIXELS), np.uint8)
    for labels in ([3, 0, 9], np.array([3, 0, 9]), np.array([3, 0, 9], ">i2")):
        content = pickle.dumps({b"data": pixels, b"labels": labels}, protocol)
        (tmp_path / "test_batch").write_bytes(content)
        images, found = cifar10(tmp_path, "test")
        assert np.array_equal(images.transpose(0, 3, 1, 2).reshape(3, -1), pixels)
        assert found.tolist() == [3, 0, 9]


def spikes(path: Path) -> h5py.File:
    """A whole file of two samples; without labels."""
    file = h5py.File(path, "w")
    kind = h5py.vlen_dtype(np.float32)
    for name in ("times", "units"):
        column = file.create_dataset(f"spikes/{name}", (2,), kind)
        for row in range(2):
            column[row] = np.arange(3)
    return file


def _external(file: h5py.File, folder: Path) -> None:
    (folder / "secret").write_bytes(np.array([7, 3], "<i4").tobytes())
    file.create_dataset("labels", (2,), "<i4", external=[(str(folder / "secret"), 0, 8)])


def _external_link(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["labels"] = np.arange(2)
    file["labels"] = h5py.ExternalLink(str(folder / "other.h5"), "labels")


def _link_of_a_group(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["speaker"] = np.arange(2)
    file["labels"] = np.arange(2)
    file["extra"] = h5py.ExternalLink(str(folder / "other.h5"), "/")


def _soft_link(file: h5py.File, folder: Path) -> None:
    file["real"] = np.arange(2)
    file["labels"] = h5py.SoftLink("/real")


def _virtual(file: h5py.File, folder: Path) -> None:
    with h5py.File(folder / "other.h5", "w") as other:
        other["labels"] = np.arange(2)
    layout = h5py.VirtualLayout((2,), "<i8")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "labels", (2,))
    file.create_virtual_dataset("labels", layout)


def _endless(file: h5py.File, folder: Path) -> None:
    file.create_dataset("labels", (1 << 40,), "i1", chunks=(1 << 20,))


def _words(file: h5py.File, folder: Path) -> None:
    file["labels"] = np.array([b"a", b"b"])


@pytest.mark.parametrize(
    "make", [_external, _external_link, _link_of_a_group, _soft_link, _virtual, _endless, _words]
)
def test_hdf5_that_reads_elsewhere(tmp_path: Path, make: Callable[[h5py.File, Path], None]) -> None:
    path = tmp_path / "shd_test.h5"
    with spikes(path) as file:
        make(file, tmp_path)
    with refused(DataError, "shd_test.h5: not readable as HDF5"):
        list(heidelberg.read(path, 20))


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".tif"])
def test_a_picture_starts_no_program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    (tmp_path / "gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran; exit 1\n")
    (tmp_path / "gs").chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    path = tmp_path / f"a{suffix}"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    with pytest.raises(DataError, match="not readable as a picture"):
        read_picture(path, 8, colour=False)
    assert not (tmp_path / "ran").exists()


def test_a_picture_of_too_many_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for side in (40, 100):  # beyond once and twice the limit, where Pillow warns and raises
        Image.new("L", (side, side)).save(tmp_path / "large.png")
        with pytest.raises(DataError, match=r"large\.png: .*pixels.*smaller picture"):
            read_picture(tmp_path / "large.png", 8, colour=False)


def test_archives_that_unfold_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "train-images-idx3-ubyte"
    header = struct.pack(">BBBBIII", 0, 0, 8, 3, 1, 28, 28)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(header + bytes(1 << 22)))
    with pytest.raises(DataError, match="not a whole IDX file"):
        read_idx(tmp_path, name, 3)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(struct.pack(">BBBBIII", 0, 0, 8, 3, *[1 << 30] * 3)))
    with pytest.raises(DataError, match="not an IDX file"):
        read_idx(tmp_path, name, 3)
    monkeypatch.setattr(plain, "MOST_UNFOLDED", 1 << 16)
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("t.npy", bytes(1 << 22))
    with pytest.raises(DataError, match=r"a\.npz: unfolds to 4 MiB"):
        plain.read_npz(tmp_path / "a.npz", Sensor(4, 4, 2))


BASE = recipe.find("digits_lru").read_text()
BOMB = "\na: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{name}: &{name} [{','.join([f'*{last}'] * 9)}]\n"
    for last, name in zip("abcdefghi", "bcdefghij", strict=True)
)
RECIPES = {
    "aliases": (BASE + BOMB, "unfolds to more than"),
    "aliases_by_merging": (BASE + BOMB + "k: {<<: {x: *j}}\n", "unfolds to more than"),
    "itself": (BASE + "\na: &a {b: [*a]}\n", "an alias of what holds it"),
    "environment": (BASE.replace("about: ", "about: ${oc.env:HOME} "), "interpolation"),
    "environment_in_a_default": (BASE + "\nname: '${oc.select:name,${oc.env:HOME}}'\n", "interpolation"),
    "environment_escaped": (BASE + "\nname: '\\${oc.env:HOME}'\n", "interpolation"),
    "decoded": (BASE + "\nname: '${oc.decode:1}'\n", "interpolation"),
    "key_by_interpolation": (BASE + "\n'${name}': 1\n", "interpolation"),
    "another_key": (BASE + "\nname: ${about}\n", "interpolation"),
    "missing": (BASE + "\nname: '???'\n", "expected a value"),
    "large": (BASE + "#" * (1 << 19), "bytes and more; expected at most"),
    "long_value": (BASE + f"\nname: {'x' * 100_000}\n", "a value of 100,000 letters"),
    "digits_without_end": (BASE + f"\nseed: {'9' * 5000}\n", "Integer"),
    "no_such_day": (BASE + "\nseed: 2001-99-99\n", "Integer"),
    "a_day": (BASE + "\nname: {a: 2001-01-01}\n", "mine.yaml"),
    "twice": (BASE + "\nmodel: {name: backbone}\n", "the key 'model' is there twice"),
    "path": (BASE + "\nname: /tmp/elsewhere\n", "plain name"),
    "path_upwards": (BASE + "\nname: ../../elsewhere\n", "plain name"),
    "dots": (BASE + "\nname: ..\n", "plain name"),
    "windows_path": (BASE + "\nname: C:\\elsewhere\n", "plain name"),
    "escape_in_name": (BASE + '\nname: "a\\e[31m"\n', "plain name"),
    "line_break_in_name": (BASE + '\nname: "a\\nb"\n', "plain name"),
    "escape_in_about": ('about: "a\\e[2Jb"\n' + BASE.partition("\n")[2], "about"),
    "reordered_about": ('about: "a\\u202eb"\n' + BASE.partition("\n")[2], "about"),
}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_of_more_than_values(tmp_path: Path, name: str) -> None:
    text, words = RECIPES[name]
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with refused(RecipeError, words, "mine.yaml"):
        recipe.load(str(path))


@pytest.mark.parametrize(
    "override",
    [
        "about=${oc.env:HOME}",
        "seed=${oc.decode:1}",
        "${oc.env:HOME}=1",
        f"seed=[&a [x], {'[' * 9000}",
        "name=../x",
        "about=???",
    ],
)
def test_an_override_of_more_than_a_value(override: str) -> None:
    with refused(RecipeError):
        recipe.load("digits_lru", [override])


def test_aliases_that_end_are_read(tmp_path: Path) -> None:
    path = tmp_path / "my recipe (2).yaml"
    layer = BASE.partition("  layer:\n")[2].partition("\ndata:")[0]
    text = BASE.replace(f"  layer:\n{layer}", "  layer:\n    - &one {name: lru}\n    - *one\n")
    path.write_text(text)
    found = recipe.load(str(path))
    assert [node.name for node in found.model.layer] == ["lru", "lru"]
    assert found.name == "my recipe -2"
