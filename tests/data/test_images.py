"""Images: orders of reading, CIFAR-10's versions and what they may not hold, pictures and videos by class."""

import pickle
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data_modules._cifar import PIXELS
from data_modules.image_sequence import PERMUTATION, ImageSequence
from lrnnx_app.errors import DataError, RecipeError
from lrnnx_app.spec import SPLITS
from tests.data.standins import image_sequence as standin
from tests.helpers import refused

RNG = np.random.default_rng(0)


def module(**options) -> ImageSequence:
    return ImageSequence(ImageSequence.Config(batch_size=3, **options))


def test_readings_hold_the_same_pixels() -> None:
    flat = module().source("test").example(5, RNG).x[:, 0]
    rows = module(reading="rows").source("test").example(5, RNG).x
    assert torch.equal(rows, flat.view(8, 8))
    order = np.random.RandomState(PERMUTATION).permutation(64)
    permuted = module(reading="permuted").source("test").example(5, RNG).x[:, 0]
    assert torch.equal(permuted, flat[torch.from_numpy(order)])
    patches = module(reading="patches", patch=4).source("test").example(5, RNG).x
    assert torch.equal(patches[1], flat.view(8, 8)[:4, 4:].flatten())
    assert module(reading="patches", patch=4).spec.d_input == 16
    with pytest.raises(RecipeError, match="divisor"):
        module(reading="patches", patch=3)


def test_a_batch_is_its_examples() -> None:
    config = ImageSequence.Config(batch_size=4, warp=0.3, noise=0.1)
    source = ImageSequence(config).source("train")
    batch = source.batch([3, 9], [np.random.default_rng(i) for i in (3, 9)])
    for row, index in enumerate((3, 9)):
        example = source.example(index, np.random.default_rng(index))
        assert torch.equal(batch.x[row], example.x)
        assert batch.y[row] == example.y


@pytest.mark.parametrize("binary", [False, True])
def test_both_versions_of_cifar(tmp_path: Path, binary: bool) -> None:
    standin.cifar10(tmp_path, binary, each=1001)
    colour = module(images="cifar10", root=str(tmp_path), colour=True)
    assert [len(colour.source(split)) for split in SPLITS] == [5, 5000, 5]
    pixels = np.random.default_rng(0).integers(0, 256, (1001, PIXELS), np.uint8)[0].reshape(3, 32, 32)
    x, _, _, _ = colour.source("train").example(0, RNG)
    assert torch.equal(x.T.reshape(3, 32, 32), torch.from_numpy(pixels) / 255)
    grey = module(images="cifar10", root=str(tmp_path)).source("train").example(0, RNG).x
    luma = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    assert (grey[:, 0] - luma).abs().max() <= 0.5 / 255 + 1e-6


class Evil:
    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_pickle_runs_no_code(tmp_path: Path) -> None:
    standin.cifar10(tmp_path, each=1001)
    mark = tmp_path / "mark"
    file = tmp_path / "cifar-10-batches-py" / "test_batch"
    file.write_bytes(pickle.dumps({b"data": Evil(mark), b"labels": []}, protocol=2))
    with pytest.raises(DataError, match="arrays only"):
        module(images="cifar10", root=str(tmp_path)).source("test")
    assert not mark.exists()


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("test_batch", b"", "not a CIFAR-10 batch"),
        ("test_batch", b"\x80\x02]q\x00.", "not a CIFAR-10 batch"),
        ("test_batch", pickle.dumps({b"data": 1, b"labels": [1]}), "unsigned bytes"),
        ("test_batch.bin", b"\x01" * 100, "100 bytes are no whole number of 3073-byte records"),
        ("test_batch.bin", b"\x0b" * 3073, "labels do not fit"),
    ],
)
def test_damaged_cifar_is_named(tmp_path: Path, name: str, content: bytes, words: str) -> None:
    (tmp_path / name).write_bytes(content)
    with refused(DataError, str(tmp_path / name), match=words):
        module(images="cifar10", root=str(tmp_path)).source("test")


def test_what_is_missing_of_cifar_is_listed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data_batch_1: no such file.*c99cafc152244af753f735de768cd75f"):
        module(images="cifar10", root=str(tmp_path)).source("train")


def test_pictures_by_class(tmp_path: Path) -> None:
    standin.pictures(tmp_path, 30)
    data = module(images="folder", root=str(tmp_path), side=6, colour=True)
    assert data.spec.classes == ("cat", "dog")
    sources = [data.source(split) for split in SPLITS]
    for one, other in combinations([{clip[0] for clip in source.clips} for source in sources], 2):
        assert not one & other
    assert sum(len(source) for source in sources) == 60
    batch = next(iter(data.loader("train")))
    assert batch.x.shape == (3, 36, 3)


def test_folders_named_after_splits_decide(tmp_path: Path) -> None:
    for split, count in (("train", 3), ("valid", 2), ("test", 1)):
        standin.pictures(tmp_path / split, count)
    data = module(images="folder", root=str(tmp_path), side=4)
    assert [len(data.source(split)) for split in SPLITS] == [6, 4, 2]
    assert sorted(data.source("test").labels) == [0, 1]


def test_videos_are_their_frames_patches_one_after_another(tmp_path: Path) -> None:
    standin.videos(tmp_path)
    data = module(images="video", root=str(tmp_path), side=8, reading="patches", patch=4)
    source = data.source("train")
    x = source.example(0, RNG).x
    clip = source.clips[0]
    assert x.shape == (4 * len(clip), 16)
    second = torch.from_numpy(np.asarray(Image.open(clip[1])).copy()) / 255
    assert torch.equal(x[4], second[:4, :4].flatten())
    assert (
        len(module(images="video", root=str(tmp_path), side=8, frames=2).source("test").example(0, RNG).x)
        == 128
    )


def test_folders_without_classes_are_explained(tmp_path: Path) -> None:
    for root in (str(tmp_path), str(tmp_path / "no"), ""):
        with pytest.raises(DataError, match="one folder for each class"):
            module(images="folder", root=root).source("train")
