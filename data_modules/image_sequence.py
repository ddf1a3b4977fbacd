"""Images read pixel by pixel or row by row: the embedded 8 × 8 digits, or MNIST from its IDX files."""

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
from lrnnx_app.errors import DataError, RecipeError, nearest, one_of

DIGITS = Path(__file__).parent / "assets" / "digits" / "digits.npz"
DIGITS_ENDS = {"train": (0, 1297), "valid": (1297, 1497), "test": (1497, 1797)}
MNIST_VALID = 5000  # the last of the 60,000 training images
PERMUTATION = 92916  # seed of permuted MNIST's order, as of the S4 line of papers (numpy's RandomState)
READINGS = ("pixels", "permuted", "rows")
SIDES = {"digits": 8, "mnist": 28}
IDX_BYTES = 0x08  # IDX type code of unsigned bytes


class ImageSequence(DataModule):
    """Sequences of grey pixels in [0, 1] with the image's class: (T, 1) row after row or permuted by a fixed
    order, or whole rows, (side, side)."""

    @dataclass
    class Config(DataModule.Config):
        images: str = "digits"  # digits (embedded) | mnist (IDX files, plain or .gz, in data.root)
        reading: str = "pixels"  # pixels | permuted | rows
        warp: float = 0.0  # largest entry of the random affine map that training images are seen through
        noise: float = 0.0  # standard deviation of what is added to the pixels of training images

        def __post_init__(self) -> None:
            if self.images not in READERS:
                raise RecipeError(f"images: unknown '{self.images}'; {nearest(self.images, READERS)}")
            one_of("reading", self.reading, READINGS)
            if not 0 <= self.warp < 1:
                raise RecipeError(f"warp: expected at least 0 and below 1, not {self.warp}")
            if self.noise < 0:
                raise RecipeError(f"noise: expected at least 0, not {self.noise}")
            if self.images == "digits" and self.root:
                raise RecipeError("root: the digits are embedded; expected images: mnist with a root")

    def __init__(self, config: Config, seed: int = 0) -> None:
        super().__init__(config, seed)
        self.side = SIDES[config.images]
        features = self.side if config.reading == "rows" else 1
        self.spec = DataSpec(d_input=features, d_output=10, classes=tuple("0123456789"))
        self.order = None
        if config.reading == "permuted":
            self.order = torch.from_numpy(np.random.RandomState(PERMUTATION).permutation(self.side**2))

    def source(self, split: str) -> Source:
        images, labels = READERS[self.config.images](Path(self.config.root), split)
        changes = (self.config.warp, self.config.noise) if split == "train" else ()
        return Images(images, labels, self.spec.d_input, self.order, *changes)

    def read(self, path: Path) -> Example:
        """A picture of the data's size (another size is scaled), light strokes on a dark ground."""
        try:
            with Image.open(path) as image:
                grey = image.convert("L").resize((self.side, self.side), Image.Resampling.BOX)
        except (OSError, Image.DecompressionBombError) as error:
            raise DataError(f"{path}: not readable as a picture; expected png, jpg or the like") from error
        images = Images(np.asarray(grey)[None] / 255, np.zeros(1), self.spec.d_input, self.order)
        return images.example(0, np.random.default_rng(0))


class Images:
    """Images (n, h, w) scaled to [0, 1] and labels (n,), warped at random by I ± warp (sides span 2).

    Sequences have `features` pixels a step, in `order` if there is one.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        features: int = 1,
        order: torch.Tensor | None = None,
        warp: float = 0.0,
        noise: float = 0.0,
    ) -> None:
        self.images = torch.from_numpy(images.astype(np.float32))
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.features, self.order = features, order
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
        pixels = image.flatten() if self.order is None else image.flatten()[self.order]
        return Example(pixels.view(-1, self.features), self.labels[index], name=str(index))


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
