"""The files of a user's folder, without what file managers and archives leave behind."""

import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NoReturn

from lrnnx_app.errors import DataError
from lrnnx_app.terminal import say

LEFTOVERS = ("__macosx", "thumbs.db", "desktop.ini")  # in lower case; as are names that begin with a dot


def leftover(name: str) -> bool:
    """Whether a file or folder of this name holds no data of a user: ._a.wav, .DS_Store, __MACOSX."""
    return name.startswith(".") or name.lower() in LEFTOVERS


def below(folder: Path, suffixes: Sequence[str] | None = None) -> list[Path]:
    """The files below a folder that end in one of `suffixes` (lower case; all if None), sorted.

    What is a leftover is left out, with a line on standard error if it would have counted.

    Raises:
        DataError: a folder is not readable.
    """
    found, left = [], []
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not leftover(name)]
        for name in names:
            if suffixes is None or name.lower().endswith(tuple(suffixes)):
                (left if leftover(name) else found).append(Path(place, name))
    if left:
        _say(f"{folder}: left out {len(left)} hidden or system files, such as {min(left).name}")
    return sorted(path for path in found if path.is_file())


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without leftovers."""
    return sorted(path for path in folder.iterdir() if path.is_dir() and not leftover(path.name))


def _unreadable(error: OSError) -> NoReturn:
    raise DataError(f"{error.filename}: not readable ({error.strerror}); expected a readable folder")


@cache
def _say(line: str) -> None:
    """Once in a process, for a folder is walked for every split."""
    say(line, aside=True)
