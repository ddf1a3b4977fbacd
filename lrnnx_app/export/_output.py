"""What every format shares: its options, and outputs that get their name when they are whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from lrnnx_app.disk import atomic
from lrnnx_app.errors import LrnnxError, RunError, UserError


@dataclass(frozen=True)
class Options:
    """chunk: samples of a call, None for the model's own; timed: dt is an input; int8: 8-bit weights."""

    chunk: int | None = None
    timed: bool = False
    int8: bool = False


@contextmanager
def whole(path: Path, folder: bool = False) -> Iterator[Path]:
    """What to write to, a file or a folder; it becomes `path` if nothing fails, as of `atomic.whole`.

    Raises:
        RunError: something is there already, or the folder does not exist or cannot be written.
    """
    if path.exists() and not (path.is_dir() and not any(path.iterdir())):
        raise RunError(f"{path}: is there already; remove it first or choose another name")
    if not path.parent.is_dir():
        raise RunError(f"{path}: no such folder; make {path.parent} first")
    try:
        with atomic.whole(path, folder) as part:
            yield part
    except OSError as error:
        raise RunError(f"{path}: cannot be written ({error.strerror or error})") from error


def accept(path: Path, difference: float, tolerance: float) -> None:
    """Refuse what does not run as the model does.

    Raises:
        LrnnxError: the difference is beyond the tolerance, or is not a number.
    """
    if not difference <= tolerance:
        raise LrnnxError(
            f"{path}: what was written differs from the model by {difference:.2g}; nothing was kept"
        )


def refuse(options: Options) -> None:
    """For a format of weights alone.

    Raises:
        UserError: an option is given that is about calls.
    """
    if options != Options():
        raise UserError("--chunk, --timed and --int8 are of formats that run; expected torch or onnx")


def needs(extra: str, error: ImportError) -> UserError:
    """What to say where an optional package is missing."""
    return UserError(f"{error.name} is not installed: pip install 'lrnnx-app[{extra}]'")
