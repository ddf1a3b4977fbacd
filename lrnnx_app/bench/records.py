"""Rows kept in a file, and rows compared with those of the same name that were kept before.

A record holds rows of several commands, measured on one kind of machine.
"""

import json
from pathlib import Path
from typing import Any

from lrnnx_app.bench import report
from lrnnx_app.console.tables import Rows
from lrnnx_app.errors import UserError

NAMING = (
    "op",
    "layer",
    "settings",
    "mode",
    "shape",
    "dtype",
    "precision",
    "voices",
    "chunk ms",
    "inputs",
    "outputs",
)
UNSTEADY = ("chunk ms", "p99 ms", "latency ms")  # chosen, or made by a few samples
ALLOWED = 1.05  # times the time kept before


def read(path: Path) -> Rows:
    """The rows of a record, or of a file written by `--json`.

    Raises:
        UserError: it is neither, or it was measured on another kind of machine.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows, device = found["rows"], found["device"]
        if not all(isinstance(row, dict) for row in rows):
            raise TypeError
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UserError(f"{path}: expected rows that lrnnx bench wrote by --json or --record") from error
    if device != (here := report.machine()["device"]):
        raise UserError(f"{path}: measured on {device}; this is {here}, whose times say nothing about it")
    return rows


def keep(rows: Rows, path: Path) -> None:
    """Write rows into a record, in place of those of the same names.

    Raises:
        UserError: the file is no record of this kind of machine.
    """
    new = {_name(row): row for row in rows}
    old = {_name(row): row for row in read(path)} if path.exists() else {}
    report.write_json([*(old | new).values()], path)


def slower(rows: Rows, before: Rows) -> tuple[Rows, int]:
    """A row for each time that is more than 5 % longer than `before`, and how many times were compared."""
    known = {_name(row): row for row in before}
    found, count = [], 0
    for row in rows:
        old = known.get(_name(row), {})
        for key, value in row.items():
            was = old.get(key)
            if key.endswith((" ms", " µs")) and key not in UNSTEADY and value and was:
                count += 1
                if value > ALLOWED * was:
                    words = " ".join(str(word) for _, word in _name(row))
                    found.append(
                        {"row": words, "time": key, "before": was, "now": value, "ratio": value / was}
                    )
    return found, count


def _name(row: dict[str, Any]) -> tuple[tuple[str, Any], ...]:
    return tuple((key, row[key]) for key in NAMING if key in row)
