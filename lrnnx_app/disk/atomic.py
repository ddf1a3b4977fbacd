"""Writes files and folders whole or not at all. A link that someone else put in the way is not followed."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from lrnnx_app.errors import RunError

NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_NOFOLLOW", 0)


def part_of(path: Path) -> Path:
    """The hidden name, in the same folder, under which `path` is written."""
    return path.with_name(f".{path.stem}.part{path.suffix}")


def begin(path: Path) -> Path:
    """Make a new, empty file that will become `path`. Removes an old file or link with the same hidden name.

    Raises:
        OSError: the folder is missing or cannot be written.
    """
    part = part_of(path)
    discard(part)
    os.close(os.open(part, NEW, 0o666))
    return part


def finish(part: Path, path: Path) -> None:
    """Flush a file or folder to the disk, then rename it to its own name.

    Raises:
        OSError: the disk is full or cannot be written. An older file at `path` is unchanged.
    """
    for below in sorted(part.rglob("*")) if part.is_dir() else ():
        flush(below)
    flush(part)
    os.replace(part, path)
    flush(path.parent)


def discard(part: Path) -> None:
    """Remove a file, a folder, or a link but not its target; does nothing if there is none."""
    if part.is_dir() and not part.is_symlink():
        shutil.rmtree(part)
    else:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def whole(path: Path, folder: bool = False) -> Iterator[Path]:
    """A new file, or folder, to write to. If nothing fails it is renamed to `path`, else it is removed.

    Raises:
        OSError: see `begin` and `finish`.
    """
    part = begin(path)
    try:
        if folder:
            part.unlink()
            part.mkdir()
        yield part
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        finish(part, path)
    finally:
        discard(part)


@contextlib.contextmanager
def fresh(path: Path, folder: bool = False) -> Iterator[Path]:
    """As `whole`, for an output of a command.

    Raises:
        RunError: `path` exists already, or its folder does not exist or cannot be written.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise RunError(f"{path}: is there already; remove it first or choose another name")
    if not path.parent.is_dir():
        raise RunError(f"{path}: no such folder; make {path.parent} first")
    try:
        with whole(path.absolute(), folder) as part:  # also "." has a name then
            yield part
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error


def write(path: Path, text: str) -> None:
    """Write a text whole or not at all; see `whole`."""
    with whole(path) as part:
        part.write_text(text, encoding="utf-8")


def flush(path: Path) -> None:
    """Make sure that the content of a file, or the names in a folder, are on the disk."""
    try:
        handle = os.open(path, os.O_RDONLY)
    except OSError:
        if path.is_dir():  # some systems cannot open folders
            return
        raise
    try:
        os.fsync(handle)
    except OSError:
        if not path.is_dir():  # some file systems cannot flush folders
            raise
    finally:
        os.close(handle)
