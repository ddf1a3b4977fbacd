"""Formats rows as text; a row is a flat dictionary from column to value."""

from typing import Any

from lrnnx_app.console.terminal import aligned, shown

Rows = list[dict[str, Any]]


def table(rows: Rows) -> str:
    """Aligned columns; numbers with three significant digits."""
    names = list(dict.fromkeys(name for row in rows for name in row))
    return aligned([list(map(shown, names)), *([_cell(row.get(name, "")) for name in names] for row in rows)])


def line(row: dict[str, Any]) -> str:
    """One row in a line, as names and values."""
    return "  ".join(f"{name} {_cell(value)}" for name, value in row.items())


def _cell(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    return shown(value)
