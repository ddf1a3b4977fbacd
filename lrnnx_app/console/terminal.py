"""Printing for commands: text that is safe on any terminal, tables, and JSON that every parser accepts."""

import contextlib
import io
import json
import math
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, BinaryIO

from lrnnx_app import machine
from lrnnx_app.errors import UserError

UNSEEN = re.compile(r"[\0-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
quiet = machine.rank() > 0  # of several processes only the first one prints


class Nowhere(io.TextIOWrapper):
    """Replaces a closed standard stream: it accepts text and drops it."""

    def __init__(self) -> None:
        super().__init__(io.FileIO(os.devnull, "w"), encoding="utf-8")


def prepare() -> None:
    """Prepare the standard streams: closed ones drop text, and no character causes an encoding error."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass  # it keeps the number of a closed stream, which a file opened later would get
    os.close(number)
    sys.stdout, sys.stderr = sys.stdout or Nowhere(), sys.stderr or Nowhere()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def source() -> int:
    """The descriptor of standard input.

    Raises:
        UserError: it is closed.
    """
    if sys.stdin is None:
        raise UserError("-: standard input is closed; expected a pipe or a file")
    return sys.stdin.fileno()


def target() -> BinaryIO:
    """Standard output for bytes.

    Raises:
        UserError: it is closed.
    """
    if sys.stdout is None or isinstance(sys.stdout, Nowhere):
        raise UserError("standard output is closed; expected a pipe or a file")
    return sys.stdout.buffer


def hang_up() -> None:
    """Drop all further text to standard output, without an error, since its reader has closed the pipe."""
    with contextlib.suppress(OSError, ValueError):  # standard output may be no file
        number = os.open(os.devnull, os.O_WRONLY)
        os.dup2(number, sys.stdout.fileno())
        os.close(number)


def shown(text: object) -> str:
    """A line of text that cannot control a terminal: control characters are escaped, as in \\x1b.

    A byte in a file's name that is not UTF-8 is shown as an escaped byte.
    """
    return UNSEEN.sub(_escape, str(text))


def _escape(match: re.Match[str]) -> str:
    number = ord(match[0])
    number -= 0xDC00 if 0xDC80 <= number <= 0xDCFF else 0  # os.fsdecode turns a byte into such a number
    return f"\\x{number:02x}" if number < 0x100 else f"\\u{number:04x}"


def results_only() -> AbstractContextManager[object]:
    """While entered, printed text goes to standard error, such as progress bars and messages of libraries."""
    return contextlib.redirect_stdout(sys.stderr)


def say(*lines: object, aside: bool = False) -> None:
    """Print lines, on standard error if `aside`."""
    if not quiet:
        print(*map(shown, lines), sep="\n", file=sys.stderr if aside else sys.stdout, flush=True)


def table(columns: Sequence[str], rows: Iterable[Iterable[object]], header: bool = True) -> None:
    """Print a table: fitted to the width of a terminal, or one row in a line if there is no terminal."""
    cells = [[shown(cell) for cell in row] for row in rows]
    if quiet:
        return
    if not sys.stdout.isatty():
        return print(aligned([columns, *cells] if header else cells), flush=True)
    from rich.console import Console
    from rich.table import Table

    drawn = Table(*columns, show_header=header)
    for column in drawn.columns:
        column.overflow = "fold"  # instead of cutting text off
    for row in cells:
        drawn.add_row(*row)
    Console(file=sys.stdout, highlight=False, markup=False, emoji=False).print(drawn)


def aligned(rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells as lines of text with aligned columns."""
    from rich.cells import cell_len, set_cell_size

    widths = [max(map(cell_len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(set_cell_size, row, widths)).rstrip() for row in rows)


def as_json(value: Any, indent: int | None = None) -> str:
    """JSON in one line, or indented. Numbers that are not finite become null, since JSON has none."""
    return json.dumps(_finite(value), allow_nan=False, indent=indent)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
