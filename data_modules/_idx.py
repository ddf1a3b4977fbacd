"""MNIST and similar data sets: IDX files of unsigned bytes, plain or gzipped."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from data_modules._expected import File, Published
from lrnnx_app.errors import DataError

VALID = 5000  # so many of the 60,000 training images, the last ones, are for validation
UNSIGNED = 0x08  # IDX type code of unsigned bytes
MOST_BYTES = 1 << 30  # of a file's content; the largest set in this format has a fifth of that
MNIST = Published(
    "MNIST",
    "LeCun et al., 1998; plain, or gzipped with .gz appended",
    (
        File("train-images-idx3-ubyte", 47_040_016, "6bbc9ace898e44ae57da46a324031adb"),
        File("train-labels-idx1-ubyte", 60_008, "a25bea736e30d166cdddb491f175f624"),
        File("t10k-images-idx3-ubyte", 7_840_016, "2646ac647ad5339dbf082846283269ea"),
        File("t10k-labels-idx1-ubyte", 10_008, "27ae3e4e09519cfbb04c329615203637"),
    ),
)


def mnist(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    """Images (n, 28, 28, 1) and labels (n,), bytes; the last `VALID` training images are for validation."""
    stem = "t10k" if split == "test" else "train"
    images = read_idx(root, f"{stem}-images-idx3-ubyte", 3)
    labels = read_idx(root, f"{stem}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise DataError(f"{root}: {len(images)} images but {len(labels)} labels in the {stem} files")
    if labels.size and labels.max() > 9:
        raise DataError(f"{root}: the {stem} labels hold a {labels.max()}; expected digits, 0 to 9")
    chosen = {"train": slice(0, -VALID), "valid": slice(-VALID, None), "test": slice(None)}[split]
    if not len(labels[chosen]):
        raise DataError(f"{root}: {len(labels)} {stem} images leave none for the {split} split")
    return images[chosen, ..., None], labels[chosen]


def read_idx(root: Path, name: str, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes, plain or gzipped.

    Raises:
        DataError: missing, or its header or size is not that of `dimensions`-dimensional bytes.
    """
    path = next((p for p in (root / name, root / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise MNIST.missing(root, name)
    header = 4 + 4 * dimensions
    opened = gzip.open if path.suffix == ".gz" else open
    try:
        with opened(path, "rb") as file:
            head = file.read(header)
            shape = np.frombuffer(head[4:], ">u4") if len(head) == header else np.zeros(0, int)
            size = int(np.prod(shape, dtype=object))
            if head[:4] != bytes((0, 0, UNSIGNED, dimensions)) or size > MOST_BYTES:
                raise DataError(f"{path}: not an IDX file of {dimensions}-dimensional bytes")
            content = file.read(size + 1)  # a small file may unfold to more than there is memory
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not readable as gzip ({error})") from error
    if len(content) != size:
        raise DataError(f"{path}: not a whole IDX file of {dimensions}-dimensional bytes")
    return np.frombuffer(content, np.uint8).reshape(shape)
