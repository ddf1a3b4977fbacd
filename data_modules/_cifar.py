"""CIFAR-10, from its python pickles or from its binary version."""

import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np

from data_modules._expected import File, Published
from lrnnx_app.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VALID = 5000  # the last of the 50,000 training images
PIXELS = 3 * 32 * 32
CIFAR10 = Published(
    "CIFAR-10",
    "Krizhevsky, 2009; the python version in cifar-10-batches-py, or the binary one in cifar-10-batches-bin",
    (
        File("data_batch_1", 31_035_704, "c99cafc152244af753f735de768cd75f"),
        File("data_batch_2", 31_035_320, "d4bba439e000b95fd0a9bffe97cbabec"),
        File("data_batch_3", 31_035_999, "54ebc095f3ab1f0389bbae665268c751"),
        File("data_batch_4", 31_035_696, "634d18415352ddfa80567beed471001a"),
        File("data_batch_5", 31_035_623, "482c414d41f54cd18b22e5b47cb7c3cb"),
        File("test_batch", 31_035_526, "40351d587109b95175f43aff81a1287e"),
        File("or the same names with .bin", 30_730_000),
    ),
)
# What a pickle of bytes, lists and one array needs; anything else could run code.
ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy._core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def cifar10(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 32, 32, 3) and labels (n,), bytes; the last `VALID` training images are for validation.

    Raises:
        DataError: a file is missing or not as published.
    """
    names = ["test_batch"] if split == "test" else [f"data_batch_{i}" for i in range(1, 6)]
    parts = [_batch(root, name) for name in names]
    images = np.concatenate([pixels for pixels, _ in parts])
    labels = np.concatenate([found for _, found in parts])
    chosen = {"train": slice(0, -VALID), "valid": slice(-VALID, None), "test": slice(None)}[split]
    if not len(labels[chosen]):
        raise DataError(f"{root}: {len(labels)} training images leave none for the {split} split")
    return images[chosen].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels[chosen]


def _batch(root: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Pixels (n, 3072) and labels (n,) of one file, wherever below the root it lies."""
    folders = (root, root / "cifar-10-batches-py", root / "cifar-10-batches-bin")
    paths = [folder / (name + suffix) for folder in folders for suffix in ("", ".bin")]
    path = next((path for path in paths if path.is_file()), None)
    if path is None:
        raise CIFAR10.missing(root, name)
    pixels, labels = _binary(path) if path.suffix == ".bin" else _pickled(path)
    if len(pixels) != len(labels) or (labels.size and labels.max() > 9):
        raise DataError(f"{path}: labels do not fit {len(pixels)} images; expected one of 0 to 9 for each")
    return pixels, labels


def _binary(path: Path) -> tuple[np.ndarray, np.ndarray]:
    content = np.fromfile(path, np.uint8)
    if not content.size or content.size % (1 + PIXELS):
        raise DataError(f"{path}: {content.size} bytes are no whole number of {1 + PIXELS}-byte records")
    records = content.reshape(-1, 1 + PIXELS)
    return records[:, 1:], records[:, 0]


def _pickled(path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        content = _Restricted(io.BytesIO(path.read_bytes()), encoding="bytes").load()
        pixels, labels = content[b"data"], np.asarray(content[b"labels"], np.int64)
    except DataError:
        raise
    except Exception as error:  # unpickling raises whatever the bytes lead it to
        raise DataError(
            f"{path}: not a CIFAR-10 batch ({type(error).__name__}: {' '.join(str(error).split())})"
        ) from error
    if not isinstance(pixels, np.ndarray) or pixels.dtype != np.uint8 or pixels.shape[1:] != (PIXELS,):
        raise DataError(f"{path}: expected data of unsigned bytes (n, {PIXELS})")
    return pixels, labels.astype(np.uint8) if labels.min(initial=0) >= 0 else labels + 256


class _Restricted(pickle.Unpickler):
    """Builds arrays of numbers and nothing else."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == ("_codecs", "encode"):
            return _encode
        try:
            return ALLOWED[module_name, global_name]
        except KeyError:
            raise DataError(
                f"a pickle asks for {module_name}.{global_name}; CIFAR-10 batches hold arrays only: "
                "the file is damaged or meant to do harm"
            ) from None


def _encode(text: str, encoding: str) -> bytes:
    """How protocols below 3 write bytes."""
    return text.encode("latin1")
