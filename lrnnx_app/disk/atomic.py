"""Files and folders that appear whole or not at all, and that no planted link leads elsewhere."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


def part_of(path: Path) -> Path:
    """The hidden name beside `path` under which it is written."""
    return path.with_name(f".{path.stem}.part{path.suffix}")


def begin(path: Path) -> Path:
    """A new, empty file that will be `path`; whatever lay at its hidden name is removed, a link not followed.

    Raises:
        OSError: the folder is missing or may not be written.
    """
    part = part_of(path)
    discard(part)
    os.close(os.open(part, NEW, 0o666))
    return part


def finish(part: Path, path: Path) -> None:
    """Flush a file or folder to the disk, then give it its name in one move.

    Raises:
        OSError: the disk is full or refuses; what stood at `path` is as it was.
    """
    for below in sorted(part.rglob("*")) if part.is_dir() else ():
        flush(below)
    flush(part)
    os.replace(part, path)
    flush(path.parent)


def discard(part: Path) -> None:
    """Remove a file, a folder or a link itself, if it is there."""
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole(path: Path, folder: bool = False) -> Iterator[Path]:
    """A new file, or folder, to write to; it becomes `path` if nothing fails, else it is removed.

    Raises:
        OSError: see `begin` and `finish`.
    """
    part = begin(path)
    try:
        if folder:
            part.unlink()
            part.mkdir()
        yield part
        if path.is_dir():
            path.rmdir()
        finish(part, path)
    finally:
        discard(part)


def write(path: Path, text: str) -> None:
    """Write a text in one move; see `whole`."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """What was written to a file, or which names a folder has, is on the disk afterwards."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # some systems open no folders
            return
        raise
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems flush no folders
            raise
    finally:
        os.close(handle)
