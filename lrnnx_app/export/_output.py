"""What every format shares: its options, and outputs that get their name when they are whole."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lrnnx_app.errors import LrnnxError, RunError, UserError


@dataclass(frozen=True)
class Options:
    """chunk: samples of a call, None for the model's own; timed: dt is an input; int8: 8-bit weights."""

    chunk: int | None = None
    timed: bool = False
    int8: bool = False


@contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A name beside `path` to write to; it becomes `path` if nothing fails, and is removed if something does.

    Raises:
        RunError: something is there already, or the folder does not exist or cannot be written.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise RunError(f"{path}: is there already; remove it first or choose another name")
    if not path.parent.is_dir():
        raise RunError(f"{path}: no such folder; make {path.parent} first")
    part = path.with_name(f".{path.stem}.part{path.suffix}")
    try:
        yield part
        if path.is_dir():
            path.rmdir()
        part.replace(path)
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error
    finally:
        if part.is_dir():
            shutil.rmtree(part)
        else:
            part.unlink(missing_ok=True)


def accept(path: Path, difference: float, tolerance: float) -> None:
    """Refuse what does not run as the model does.

    Raises:
        LrnnxError: the difference is beyond the tolerance, or is not a number.
    """
    if not difference <= tolerance:
        raise LrnnxError(
            f"{path}: what was written differs from the model by {difference:.2g}; nothing was kept"
        )


def needs(extra: str, error: ImportError) -> UserError:
    """What to say where an optional package is missing."""
    return UserError(f"{error.name} is not installed: pip install 'lrnnx-app[{extra}]'")
