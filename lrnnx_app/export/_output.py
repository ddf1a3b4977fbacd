"""Code that all formats share: options, and the check of what was written."""

from dataclasses import dataclass
from pathlib import Path

from lrnnx_app.errors import LrnnxError, UserError


@dataclass(frozen=True)
class Options:
    """chunk: samples of a call, None for the model's hop; timed: dt is an input; int8: 8-bit weights."""

    chunk: int | None = None
    timed: bool = False
    int8: bool = False


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
