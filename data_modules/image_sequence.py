"""Images read step by step: digits, MNIST, CIFAR-10, and the user's folders of pictures or video frames."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from data_modules._cifar import CLASSES as CIFAR_CLASSES
from data_modules._cifar import cifar10
from data_modules._idx import mnist
from data_modules._pictures import SUFFIXES, by_class, class_of, classes_of, read_picture, videos
from lrnnx_app.data.module import DataModule, Source
from lrnnx_app.errors import RecipeError, one_of
from lrnnx_app.spec import Batch, DataSpec, Example

DIGITS = Path(__file__).parent / "assets" / "digits" / "digits.npz"
DIGITS_ENDS = {"train": (0, 1297), "valid": (1297, 1497), "test": (1497, 1797)}
PERMUTATION = 92916  # seed of permuted MNIST's order in the S4 line of papers (numpy's RandomState)
READINGS = ("pixels", "permuted", "rows", "patches")
LUMA = (0.299, 0.587, 0.114)  # grey from red, green and blue (ITU-R BT.601)


def _digits(_: Path, split: str) -> tuple[np.ndarray, np.ndarray]:
    with np.load(DIGITS) as data:
        chosen = slice(*DIGITS_ENDS[split])
        return data["images"][chosen, ..., None], data["labels"][chosen]


class _Set(NamedTuple):
    """A set of images of one size that is kept in memory; `white` is the byte of full brightness."""

    read: Callable[[Path, str], tuple[np.ndarray, np.ndarray]]
    side: int
    white: float
    colour: bool
    classes: tuple[str, ...]


SETS = {
    "digits": _Set(_digits, 8, 16.0, False, tuple("0123456789")),
    "mnist": _Set(mnist, 28, 255.0, False, tuple("0123456789")),
    "cifar10": _Set(cifar10, 32, 255.0, True, CIFAR_CLASSES),
}
FOLDERS = ("folder", "video")


class ImageSequence(DataModule):
    """Sequences of the pixels of images, in [0, 1], with the image's class.

    `reading` chooses what a step is: `pixels`, one pixel, row after row, (T, 1) or in colour (T, 3);
    `permuted`, the same in a fixed permuted order; `rows`, a whole row; or `patches`, a square patch. A video
    is the sequence of the steps of its frames. The user's pictures are in a folder for each class (`folder`);
    the frames of each video are in a folder of their own within it (`video`). Splits are folders train, valid
    and test, or shares in the order of a hash.
    """

    @dataclass
    class Config(DataModule.Config):
        images: str = "digits"  # digits (embedded) | mnist | cifar10 | folder | video, in data.root
        reading: str = "pixels"  # pixels | permuted | rows | patches
        colour: bool = False  # read three channels instead of one
        side: int = 32  # pixels to which pictures of a folder are scaled
        patch: int = 8  # pixels, side of a patch
        frames: int = 0  # frames of a video, evenly spaced; 0 for all
        warp: float = 0.0  # largest entry of a random affine map that distorts training images
        noise: float = 0.0  # standard deviation of noise added to the pixels of training images

        def __post_init__(self) -> None:
            one_of("images", self.images, (*SETS, *FOLDERS))
            one_of("reading", self.reading, READINGS)
            if not 0 <= self.warp < 1:
                raise RecipeError(f"warp: expected at least 0 and below 1, not {self.warp}")
            if self.noise < 0:
                raise RecipeError(f"noise: expected at least 0, not {self.noise}")
            if self.images == "digits" and self.root:
                raise RecipeError("root: the digits are embedded; expected images: mnist with a root")
            known = SETS.get(self.images)
            if known and self.colour and not known.colour:
                raise RecipeError(f"colour: {self.images} has grey images; expected false")
            if min(self.side, self.patch) < 1 or self.frames < 0:
                raise RecipeError("side, patch and frames: expected positive integers (frames: or 0)")
            side = known.side if known else self.side
            if self.reading == "patches" and side % self.patch:
                raise RecipeError(f"patch: expected a divisor of the side {side}, not {self.patch}")

    def __init__(self, config: Config, seed: int = 0) -> None:
        super().__init__(config, seed)
        known = SETS.get(config.images)
        self.side, self.white = (known.side, known.white) if known else (config.side, 255.0)
        self.reading = Reading(config.reading, self.side, config.patch)

    @cached_property
    def spec(self) -> DataSpec:  # pyright: ignore[reportIncompatibleVariableOverride]  (derived here)
        """The description of the data; reads the user's folders only for the names of classes."""
        known = SETS.get(self.config.images)
        classes = known.classes if known else classes_of(self.config.root)
        features = self.reading.pixels * (3 if self.config.colour else 1)
        return DataSpec(d_input=features, d_output=len(classes), classes=classes, target="class")

    def source(self, split: str) -> Source:
        c, root = self.config, Path(self.config.root)
        changes = (c.warp, c.noise) if split == "train" else (0.0, 0.0)
        if c.images in SETS:
            images, labels = SETS[c.images].read(root, split)
            return Images(
                torch.from_numpy(grey(images) if not c.colour else images.copy()),
                labels,
                self.white,
                self.reading,
                *changes,
            )
        classes = classes_of(c.root)
        if c.images == "video":
            clips = videos(root, split, c.split)
        else:
            clips = [[path] for path in by_class(root, split, c.split, SUFFIXES)]
        labels = [class_of(clip[0], root, classes) for clip in clips]
        return Pictures(clips, labels, c, self.reading, *changes)

    def read(self, path: Path) -> Example:
        """A picture, scaled to the size of the data if necessary. Digits must be light on a dark ground."""
        image = torch.from_numpy(read_picture(path, self.side, self.config.colour).copy())
        return Example(self.reading(image[None].float() / 255)[0], torch.tensor(0), name=path.stem)


def grey(images: np.ndarray) -> np.ndarray:
    """(…, 1 or 3) to (…, 1), bytes."""
    if images.shape[-1] == 1:
        return images.copy()
    return (images @ np.array(LUMA, np.float32) + 0.5).astype(np.uint8)[..., None]


class Reading:
    """Images (n, side, side, c) to sequences (n, T, pixels·c)."""

    def __init__(self, name: str, side: int, patch: int) -> None:
        self.name, self.side, self.patch = name, side, patch
        self.pixels = {"rows": side, "patches": patch * patch}.get(name, 1)
        self.order = None
        if name == "permuted":
            self.order = torch.from_numpy(np.random.RandomState(PERMUTATION).permutation(side * side))

    def __call__(self, images: Tensor) -> Tensor:
        if self.name == "patches":
            p = self.patch
            tiles = images.unflatten(2, (-1, p)).unflatten(1, (-1, p)).transpose(2, 3)
            return tiles.flatten(3).flatten(1, 2)
        steps = images.flatten(1, 2)
        if self.order is not None:
            return steps[:, self.order]
        return steps.unflatten(1, (-1, self.pixels)).flatten(2)


class Images:
    """Images (n, h, w, c), bytes, and labels (n,); whole batches at once.

    Args:
        white: the byte that becomes 1.
        warp, noise: see `ImageSequence.Config`.
    """

    def __init__(
        self, images: Tensor, labels: np.ndarray, white: float, reading: Reading, warp: float, noise: float
    ) -> None:
        self.images, self.white, self.reading = images, white, reading
        self.labels = torch.from_numpy(labels.astype(np.int64))
        self.warp, self.noise = warp, noise

    def __len__(self) -> int:
        return len(self.labels)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        batch = self.batch([index], [rng])
        return Example(batch.x[0], batch.y[0], name=batch.names[0])

    def batch(self, rows: Sequence[int], rngs: Iterable[np.random.Generator]) -> Batch:
        index = torch.tensor(rows)
        images = self.images[index].float() / self.white
        if self.warp or self.noise:
            changed = (
                changed_at_random(image, rng, self.warp, self.noise)
                for image, rng in zip(images, rngs, strict=True)
            )
            images = torch.stack(list(changed))
        return Batch(self.reading(images), self.labels[index], names=tuple(map(str, rows)))


class Pictures:
    """Examples that are read on demand; each is the frames of one clip in order."""

    def __init__(
        self,
        clips: Sequence[Sequence[Path]],
        labels: Sequence[int],
        config: ImageSequence.Config,
        reading: Reading,
        warp: float,
        noise: float,
    ) -> None:
        self.clips, self.labels = clips, list(labels)
        self.config, self.reading, self.warp, self.noise = config, reading, warp, noise

    def __len__(self) -> int:
        return len(self.clips)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        clip, c = self.clips[index], self.config
        if c.frames:
            clip = [clip[i] for i in np.linspace(0, len(clip) - 1, c.frames).round().astype(int)]
        pixels = np.stack([read_picture(path, c.side, c.colour) for path in clip])
        images = torch.from_numpy(pixels).float() / 255
        if self.warp or self.noise:
            images = changed_at_random(images.permute(1, 2, 0, 3).flatten(2), rng, self.warp, self.noise)
            images = images.unflatten(2, (len(clip), -1)).permute(2, 0, 1, 3)
        name = clip[0].parent.name if c.images == "video" else clip[0].stem
        return Example(self.reading(images).flatten(0, 1), torch.tensor(self.labels[index]), name=name)


def changed_at_random(image: Tensor, rng: np.random.Generator, warp: float, noise: float) -> Tensor:
    """An image (h, w, c) distorted by a random map I ± warp (its sides have length 2), with noise added."""
    if warp:
        change = rng.uniform(-warp, warp, (1, 2, 3)).astype(np.float32)
        planes = image.permute(2, 0, 1)[None]
        grid = nn.functional.affine_grid(
            torch.eye(2, 3) + torch.from_numpy(change), list(planes.shape), align_corners=False
        )
        # Cubic interpolation: linear interpolation blurs, which would set training images apart from test
        # images.
        planes = nn.functional.grid_sample(planes, grid, "bicubic", align_corners=False)
        image = planes[0].permute(1, 2, 0).clamp(0, 1)
    if noise:
        image = image + torch.from_numpy(rng.normal(0, noise, tuple(image.shape)).astype(np.float32))
    return image
