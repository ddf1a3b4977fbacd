"""What several commands print: rich tables of comparisons and of the outcome of a grid."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lrnnx_app import compare
from lrnnx_app.errors import RunError


def comparison(paths: Sequence[Path], console: Console, plot: Path | None = None) -> list[compare.Row]:
    """Print the table of the runs in these folders, and that of every metric if they are one setting."""
    found = compare.rows(compare.find(paths))
    table = Table(*compare.columns(found))
    for row in found:
        table.add_row(*compare.cells(row))
    console.print(table)
    if not all(row.streams for row in found):
        console.print(compare.NOTE)
    if len(found) == 1 and found[0].runs > 1:
        table = Table("test", "mean", "sd")
        for key, (mean, sd) in found[0].metrics.items():
            table.add_row(key, f"{mean:.4g}", f"{sd:.2g}")
        console.print(table)
    if plot is not None:
        draw(found, plot)
    return found


def draw(found: Sequence[compare.Row], plot: Path) -> None:
    """Write the plot of a comparison.

    Raises:
        RunError: the file cannot be written as what its ending says.
    """
    from lrnnx_app.plots import comparison as picture

    nothing = [None] * len(found)
    panels = {
        found[0].metric: ([row.value for row in found], [row.spread for row in found]),
        "parameters": ([row.parameters for row in found], nothing),
        "training samples/s": ([row.samples_per_second for row in found], nothing),
        "step (ms)": ([row.step_ms for row in found], nothing),
    }
    try:
        picture([row.label for row in found], panels).savefig(plot, dpi=130)
    except (OSError, ValueError) as error:
        raise RunError(f"{plot}: {error}; expected a writable .png, .pdf or .svg") from error


def outcome(parent: Path, failed: dict[str, str], console: Console) -> None:
    """Print the comparison of a finished grid and what failed, and write summary.json and comparison.png."""
    trained = any(parent.rglob("summary.json"))
    found = comparison([parent], console, parent / "comparison.png") if trained else []
    content = {"rows": [asdict(row) for row in found], "failed": failed}
    (parent / "comparison.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for folder, reason in failed.items():
        console.print(f"failed: {parent / folder}: {reason}", markup=False)
    console.print(f"runs: {parent}")
