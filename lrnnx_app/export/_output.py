"""Code that all formats share: options, outputs that appear only when complete, and error messages."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lrnnx_app.disk import atomic
from lrnnx_app.errors import LrnnxError, RunError, UserError


@dataclass(frozen=True)
class Options:
    """chunk: samples of a call, None for the model's hop; timed: dt is an input; int8: 8-bit weights."""

    chunk: int | None = None
    timed: bool = False
    int8: bool = False


@contextmanager
def whole(path: Path, folder: bool = False) -> Iterator[Path]:
    """A temporary file or folder to write to. If nothing fails it is renamed to `path`, see `atomic.whole`.

    Raises:
        RunError: `path` exists already, or its folder does not exist or cannot be written.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise RunError(f"{path}: is there already; remove it first or choose another name")
    if not path.parent.is_dir():
        raise RunError(f"{path}: no such folder; make {path.parent} first")
    try:
        with atomic.whole(path.absolute(), folder) as part:  # also "." has a name then
            yield part
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error


def accept(path: Path, difference: float, tolerance: float) -> None:
    """Refuse an export whose outputs differ from the model's.

    Raises:
        LrnnxError: the difference is above the tolerance, or not a number.
    """
    if not difference <= tolerance:
        raise LrnnxError(
            f"{path}: what was written differs from the model by {difference:.2g}; nothing was kept"
        )


def refuse(options: Options) -> None:
    """Refuse options that are for programs, in a format that holds only weights.

    Raises:
        UserError: one of these options is given.
    """
    if options != Options():
        raise UserError("--chunk, --timed and --int8 are for programs; this format holds weights alone")
