"""A user's pictures by class: one folder for each class, of images or of folders with a video's frames."""

import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from data_modules._splits import Group, by_folders, own
from lrnnx_app.disk.files import below, folders_in
from lrnnx_app.errors import DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".pgm", ".ppm")
# Pillow's names of these. Its other decoders are never tried: some start programs, most are seldom used.
FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF", "PPM")


def classes_of(folder: str) -> tuple[str, ...]:
    """The names of the class folders, sorted; of root/train where splits are folders.

    Raises:
        DataError: there are not at least two.
    """
    root = Path(folder)
    base = root / "train" if by_folders(root) else root
    given = folder and base.is_dir()
    found = [path.name for path in folders_in(base)] if given else []
    if len(found) < 2:
        raise DataError(
            f"{base if folder else 'data.root'}: expected one folder for each class, at least two, "
            "with that class's files in it (or train, valid and test folders of such)"
        )
    return tuple(found)


def by_class(
    root: Path, split: str, shares: Sequence[float], suffixes: Sequence[str], group: Group = lambda name: name
) -> list[Path]:
    """The files of a split, in folders of their classes.

    Raises:
        DataError: there are none.
    """

    def find(base: Path) -> list[Path]:
        paths = [path for path in below(base, suffixes) if len(path.relative_to(base).parts) > 1]
        if not paths:
            raise DataError(f"{base}: no file in its class folders; expected one of {', '.join(suffixes)}")
        return paths

    return own(root, split, shares, find, group)


def class_of(path: Path, root: Path, classes: Sequence[str]) -> int:
    """The number of the class whose folder holds a file found by `by_class`.

    Raises:
        DataError: training has no such class.
    """
    parts = path.relative_to(root).parts
    name = parts[1] if by_folders(root) else parts[0]
    if name not in classes:
        raise DataError(f"{path}: in a class that {root / 'train'} lacks; expected {', '.join(classes)}")
    return classes.index(name)


def videos(root: Path, split: str, shares: Sequence[float]) -> list[list[Path]]:
    """The frames root/class/video/frame.png of each video of a split, in the order of their names."""
    found: dict[Path, list[Path]] = {}
    for frame in by_class(root, split, shares, SUFFIXES, group=lambda name: name.rpartition("/")[0]):
        found.setdefault(frame.parent, []).append(frame)
    return list(found.values())


def read_picture(path: Path, side: int, colour: bool) -> np.ndarray:
    """(side, side, 1 or 3), bytes; another size is scaled.

    Raises:
        DataError: not a picture, or one of more pixels than Pillow takes without a warning.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path, formats=FORMATS) as image:
                size = (side, side)
                scaled = image.convert("RGB" if colour else "L").resize(size, Image.Resampling.BOX)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: {' '.join(str(error).split())}; expected a smaller picture") from error
    except Exception as error:  # a damaged file can cause any kind of error in Pillow
        raise DataError(f"{path}: not readable as a picture; expected png, jpg or the like") from error
    return np.asarray(scaled).reshape(side, side, -1)
