"""CIFAR-10, from its python pickles or from its binary version."""

import io
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

import numpy as np

from data_modules._expected import File, Published
from lrnnx_app.errors import DataError

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
VALID = 5000  # so many of the 50,000 training images, the last ones, are for validation
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
# Steps of a pickle that bytes, numbers, lists and arrays need; of the rest some take all memory.
STEPS = re.compile(
    "PROTO|FRAME|STOP|MARK|POP|POP_MARK|NONE|NEWTRUE|NEWFALSE|INT|BININT[12]?|LONG1?|STRING|"
    "(SHORT_)?BINSTRING|(SHORT_)?BINBYTES8?|UNICODE|(SHORT_)?BINUNICODE|(EMPTY_)?(LIST|DICT|TUPLE)|TUPLE[123]|"
    "APPENDS?|SETITEMS?|(LONG_)?(BIN)?(GET|PUT)|MEMOIZE|(STACK_)?GLOBAL|REDUCE|BUILD"
)
NUMBERS = re.compile("[iu][1248]")  # numpy's codes of whole numbers
MOST_TUPLES = 1000  # an array takes five; a deep nest of them breaks the interpreter


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
        content = path.read_bytes()
        _check_steps(content)
        batch = _Restricted(io.BytesIO(content), encoding="bytes").load()
        pixels, labels = _numbers(batch[b"data"]), batch[b"labels"]
        if isinstance(labels, _Array):
            labels = _numbers(labels).tolist()
        if type(labels) is not list or any(type(label) is not int for label in labels):
            raise DataError("its labels are no list of numbers")
        if pixels.dtype != np.uint8 or pixels.shape[1:] != (PIXELS,):
            raise DataError(f"its data are not unsigned bytes (n, {PIXELS})")
    except Exception as error:  # unpickling raises whatever the bytes lead it to
        reason = " ".join(str(error).split())
        kind = "" if isinstance(error, DataError) else f"{type(error).__name__}: "
        raise DataError(f"{path}: not a CIFAR-10 batch ({kind}{reason})") from error
    return pixels, np.array([label if 0 <= label <= 9 else 255 for label in labels], np.uint8)


def _check_steps(content: bytes) -> None:
    tuples = 0
    for step, argument, _ in pickletools.genops(content):
        if not STEPS.fullmatch(step.name) or (
            step.name.endswith("PUT") and int(argument or 0) > len(content)
        ):
            raise DataError(f"a pickle with the step {step.name}; CIFAR-10 batches hold arrays only")
        tuples += "TUPLE" in step.name
    if tuples > MOST_TUPLES:
        raise DataError(f"a pickle of {tuples} tuples; CIFAR-10 batches hold arrays only")


def _numbers(array: Any) -> np.ndarray:
    """An array from its description in a pickle, of which numpy sees plain numbers only."""
    known = isinstance(array, _Array) and isinstance(array.dtype, _Dtype)
    if not known or not NUMBERS.fullmatch(str(array.dtype.code)) or not isinstance(array.content, bytes):
        raise DataError("holds something else than an array of unsigned bytes or whole numbers")
    shape = [int(size) for size in array.shape]
    if array.fortran or len(shape) > 2 or min(shape, default=0) < 0:
        raise DataError(f"holds an array of shape {tuple(shape)} that is not in rows")
    return np.frombuffer(array.content, array.dtype.order + array.dtype.code).reshape(shape)


class _Dtype:
    """Replaces numpy.dtype, since a real one may contain pointers."""

    def __init__(self, code: Any = None, *_: Any) -> None:
        self.code = code.decode() if isinstance(code, bytes) else code
        self.order = "|"

    def __setstate__(self, state: Any) -> None:
        order = state[1].decode() if isinstance(state[1], bytes) else state[1]
        self.order = order if order in ("<", ">", "|", "=") else "|"


class _Array:
    """Replaces numpy.ndarray and the functions that rebuild one."""

    def __init__(self, *_: Any) -> None:
        self.shape: Any = None
        self.dtype: Any = None
        self.fortran: Any = True
        self.content: Any = None

    def __setstate__(self, state: Any) -> None:
        _, self.shape, self.dtype, self.fortran, self.content = state


class _Text:
    """Replaces _codecs.encode, which pickles of protocols below 3 use for bytes."""

    def __new__(cls, text: str, encoding: str = "latin1") -> bytes:
        return text.encode("latin1")


STAND_INS = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _Text,
}


class _Restricted(pickle.Unpickler):
    """An unpickler that builds only lists, dictionaries and plain values, and descriptions of arrays."""

    def find_class(self, module_name: str, global_name: str) -> Any:
        try:
            return STAND_INS[module_name, global_name]
        except KeyError:
            raise DataError(
                f"a pickle asks for {module_name}.{global_name}; CIFAR-10 batches hold arrays only: "
                "the file is damaged or meant to do harm"
            ) from None
