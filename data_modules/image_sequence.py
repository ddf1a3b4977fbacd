"""Images read pixel by pixel: the embedded 8 × 8 digits, or MNIST from its IDX files."""

import gzip
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from lrnnx_app.data import DataModule, DataSpec, Example, Source
from lrnnx_app.errors import DataError, RecipeError, nearest

DIGITS = Path(__file__).parent / "assets" / "digits" / "digits.npz"
DIGITS_ENDS = {"train": (0, 1297), "valid": (1297, 1497), "test": (1497, 1797)}
MNIST_VALID = 5000  # the last of the 60,000 training images
IDX_BYTES = 0x08  # IDX type code of unsigned bytes


class ImageSequence(DataModule):
    """Sequences of grey pixels (T, 1) in [0, 1], row by row, with the image's class."""

    @dataclass
    class Config(DataModule.Config):
        images: str = "digits"  # digits (embedded) | mnist (IDX files, plain or .gz, in data.root)
        warp: float = 0.0  # largest entry of the random affine map that training images are seen through
        noise: float = 0.0  # standard deviation of what is added to the pixels of training images

        def __post_init__(self) -> None:
            if self.images not in READERS:
                raise RecipeError(f"images: unknown '{self.images}'; {nearest(self.images, READERS)}")
            if not 0 <= self.warp < 1:
                raise RecipeError(f"warp: expected at least 0 and below 1, not {self.warp}")
            if self.noise < 0:
                raise RecipeError(f"noise: expected at least 0, not {self.noise}")
            if self.images == "digits" and self.root:
                raise RecipeError("root: the digits are embedded; expected images: mnist with a root")

    def __init__(self, config: Config, seed: int = 0) -> None:
        super().__init__(config, seed)
        self.spec = DataSpec(d_input=1, d_output=10, classes=tuple("0123456789"))

    def source(self, split: str) -> Source:
        images, labels = READERS[self.config.images](Path(self.config.root), split)
        changes = (self.config.warp, self.config.noise) if split == "train" else ()
        return Images(images, labels, *changes)

    def read(self, path: Path) -> Example:
        """A picture of the data's size (another size is scaled), light strokes on a dark ground."""
        side = 8 if self.config.images == "digits" else 28
        try:
            with Image.open(path) as image:
                grey = image.convert("L").resize((side, side), Image.Resampling.BOX)
        except (OSError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: not readable as a picture; expected png, jpg or the like") from error
        return Images(np.asarray(grey)[None] / 255, np.zeros(1)).example(0, np.random.default_rng(0))


class Images:
    """Images (n, h, w) scaled to [0, 1] and labels (n,), warped at random by I ± warp (sides span 2)."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, warp: float = 0.0, noise: float = 0.0) -> None:
        self.images = torch.from_numpy(images.astype(np.float32))
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.warp = warp
        self.noise = noise

    def __len__(self) -> int:
        return len(self.labels)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        image = self.images[index]
        if self.warp:
            change = rng.uniform(-self.warp, self.warp, (1, 2, 3)).astype(np.float32)
            grid = nn.functional.affine_grid(
                torch.eye(2, 3) + torch.from_numpy(change), [1, 1, *image.shape], align_corners=False
            )
            # Cubic, for the linear one's blur is a difference that no test picture shows.
            image = nn.functional.grid_sample(image[None, None], grid, "bicubic", align_corners=False)[0, 0]
            image = image.clamp(0, 1)
        if self.noise:
            drawn = rng.normal(0, self.noise, tuple(image.shape)).astype(np.float32)
            image = image + torch.from_numpy(drawn)
        return Example(image.reshape(-1, 1), self.labels[index], name=str(index))


def _digits(_: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(DIGITS) as data:
        chosen = slice(*DIGITS_ENDS[split])
        return data["images"][chosen] / 16, data["labels"][chosen]


def _mnist(root: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    stem = "t10k" if split == "test" else "train"
    images = read_idx(root, f"{stem}-images-idx3-ubyte", 3)
    labels = read_idx(root, f"{stem}-labels-idx1-ubyte", 1)
    if len(images) != len(labels):
        raise DataError(f"{root}: {len(images)} images but {len(labels)} labels in the {stem} files")
    chosen = {"train": slice(0, -MNIST_VALID), "valid": slice(-MNIST_VALID, None), "test": slice(None)}[split]
    return images[chosen] / 255, labels[chosen]


READERS: dict[str, Callable[[Path, str], tuple[np.ndarray, np.ndarray]]] = {
    "digits": _digits,
    "mnist": _mnist,
}


def read_idx(root: Path, name: str, dimensions: int) -> np.ndarray:
    """An IDX file of unsigned bytes, plain or gzipped.

    Raises:
        DataError: missing, or its header or size is not that of `dimensions`-dimensional bytes.
    """
    path = next((p for p in (root / name, root / f"{name}.gz") if p.is_file()), None)
    if path is None:
        raise DataError(f"{root / name}: no such file, nor with .gz; expected MNIST's four IDX files there")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: not readable as gzip ({error})") from error
    header = 4 + 4 * dimensions
    shape = np.frombuffer(content[4:header], ">u4") if len(content) >= header else np.zeros(0, int)
    if content[:4] != bytes((0, 0, IDX_BYTES, dimensions)) or len(content) != header + int(
        np.prod(shape, dtype=object)
    ):
        raise DataError(f"{path}: not a whole IDX file of {dimensions}-dimensional bytes")
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
