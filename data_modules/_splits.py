"""Splits of a user's files that do not leak: what belongs together goes into one split."""

import os
import zlib
from collections.abc import Callable
from pathlib import Path

from lrnnx_app.errors import DataError

TENTHS = {0: "valid", 1: "test"}  # of the hash; the rest is for training


def share(
    paths: list[Path], root: Path, split: str, group: Callable[[str], str] = lambda name: name
) -> list[Path]:
    """The files of one split: a tenth each for validation and test, by a hash.

    Args:
        group: what may not be torn apart (a speaker, a video), from a path relative to the root.

    Raises:
        DataError: no file fell to this split.
    """

    def tenth(path: Path) -> int:
        return zlib.crc32(os.fsencode(group(path.relative_to(root).as_posix()))) % 10

    chosen = [path for path in paths if TENTHS.get(tenth(path), "train") == split]
    if not chosen:
        raise DataError(f"{root}: none of its {len(paths)} files fell to the {split} split; add more files")
    return chosen
