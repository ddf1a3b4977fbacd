"""What commands print in tables: comparisons, the outcome of a grid, what data hold."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track
from rich.table import Table

from lrnnx_app import compare, inspection
from lrnnx_app.errors import RunError
from lrnnx_app.inspection import Split

ERRORS = Console(stderr=True, markup=False)


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
    """Write the plot of a comparison."""
    from lrnnx_app.plots import comparison as picture

    nothing = [None] * len(found)
    panels = {
        found[0].metric: ([row.value for row in found], [row.spread for row in found]),
        "parameters": ([row.parameters for row in found], nothing),
        "training samples/s": ([row.samples_per_second for row in found], nothing),
        "step (ms)": ([row.step_ms for row in found], nothing),
    }
    save(picture([row.label for row in found], panels), plot)


def save(figure: Any, path: Path) -> None:
    """Write a picture.

    Raises:
        RunError: the file cannot be written as what its ending says.
    """
    try:
        figure.savefig(path, dpi=130)
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: {error}; expected a writable .png, .pdf or .svg") from error


def outcome(parent: Path, failed: dict[str, str], console: Console) -> None:
    """Print the comparison of a finished grid and what failed, and write summary.json and comparison.png."""
    trained = any(parent.rglob("summary.json"))
    found = comparison([parent], console, parent / "comparison.png") if trained else []
    content = {"rows": [asdict(row) for row in found], "failed": failed}
    (parent / "comparison.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    for folder, reason in failed.items():
        console.print(f"failed: {parent / folder}: {reason}")
    console.print(f"runs: {parent}")


def data(name: str, overrides: Sequence[str], console: Console, plot: Path | None = None) -> dict[str, Split]:
    """Print what a data module holds, and draw four of its examples."""
    opened = inspection.open_data(name, overrides)
    found: dict[str, Split] = {}
    for split, content in track(
        inspection.splits(opened),
        "reading",
        total=3,
        transient=True,
        console=ERRORS,
        disable=not ERRORS.is_terminal,
    ):
        found[split] = content
    spec = opened.spec
    kind = f"tokens below {spec.d_input}" if spec.tokens else f"{spec.d_input} channels"
    rate = f" at {spec.sample_rate} Hz" if spec.sample_rate else ""
    console.print(f"{type(opened).__name__}: {kind}{rate} → {spec.d_output} outputs")
    table = Table(
        "split", "examples", "shape", "steps: least, median, 95 %, most", "dt: least, median, most", "padding"
    )
    for split, content in found.items():
        steps, times = (
            ", ".join(f"{n:,}" for n in content.lengths),
            ", ".join(f"{t:.3g}" for t in content.dt or ()),
        )
        table.add_row(split, f"{content.examples:,}", content.shape, steps, times, f"{content.padding:.1%}")
    console.print(table)
    classes = list(dict.fromkeys(label for content in found.values() for label in content.classes))
    if classes:
        table = Table(
            "class", *(f"{split} ({sum(content.classes.values()):,})" for split, content in found.items())
        )
        for label in classes:
            table.add_row(label, *(str(content.classes.get(label, 0)) for content in found.values()))
        console.print(table)
    if plot is not None:
        save(inspection.picture(opened), plot)
    return found
