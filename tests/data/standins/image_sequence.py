"""MNIST in IDX files, CIFAR-10 in python pickles or the binary version, pictures and videos by class."""

import gzip
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data_modules._cifar import PIXELS
from data_modules._cifar import VALID as CIFAR_VALID
from data_modules._idx import VALID


def write(folder: Path, config: Any) -> list[str]:
    if config.images == "digits":
        return []
    {"mnist": mnist, "cifar10": cifar10, "folder": pictures, "video": videos}[config.images](folder)
    return [f"data.root={folder}"]


def idx(array: np.ndarray) -> bytes:
    header = struct.pack(">BBBB", 0, 0, 8, array.ndim) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def mnist(folder: Path, train: int = VALID + 4) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for stem, count in (("train", train), ("t10k", 3)):
        images, labels = rng.integers(0, 256, (count, 28, 28)), rng.integers(0, 10, count)
        (folder / f"{stem}-images-idx3-ubyte").write_bytes(idx(images))
        (folder / f"{stem}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(labels), 1))


def cifar10(folder: Path, binary: bool = False, each: int = CIFAR_VALID // 5 + 2) -> None:
    inner = folder / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    inner.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name, count in (*((f"data_batch_{i}", each) for i in range(1, 6)), ("test_batch", 5)):
        pixels = rng.integers(0, 256, (count, PIXELS), np.uint8)
        labels = rng.integers(0, 10, count)
        if binary:
            records = np.concatenate((labels[:, None].astype(np.uint8), pixels), 1)
            (inner / f"{name}.bin").write_bytes(records.tobytes())
        else:
            content = {b"data": pixels, b"labels": labels.tolist(), b"batch_label": b"one"}
            (inner / name).write_bytes(pickle.dumps(content, protocol=2))


def pictures(folder: Path, count: int = 20) -> None:
    rng = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for index in range(count):
            image = Image.fromarray(rng.integers(0, 256, (12, 10, 3), np.uint8))
            image.save(folder / name / f"{index}.png")


def videos(folder: Path, count: int = 20) -> None:
    rng = np.random.default_rng(0)
    for name in ("jump", "run"):
        for index in range(count):
            clip = folder / name / f"clip{index}"
            clip.mkdir(parents=True, exist_ok=True)
            for frame in range(2 + index % 2):
                pixels = rng.integers(0, 256, (8, 8), np.uint8)
                Image.fromarray(pixels).save(clip / f"{frame:03}.png")
