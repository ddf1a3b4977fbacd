"""What commands print in tables: comparisons, the outcome of a grid, what data hold."""

import io
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import track

from lrnnx_app import atomic, compare, inspection
from lrnnx_app.data import DataModule
from lrnnx_app.errors import RunError
from lrnnx_app.inspection import Split
from lrnnx_app.report import write_whole
from lrnnx_app.terminal import as_json, say, table


def compared(paths: Sequence[Path], plot: Path | None = None) -> list[compare.Row]:
    """The rows of the runs in these folders, drawn if wanted."""
    found = compare.rows(compare.find(paths))
    if plot is not None:
        draw(found, plot)
    return found


def comparison(found: Sequence[compare.Row]) -> None:
    """Print a table of the rows, and that of every metric if they are one setting."""
    table(compare.columns(found), map(compare.cells, found))
    if not all(row.streams for row in found):
        say(compare.NOTE)
    if len(found) == 1 and found[0].runs > 1:
        rows = [(key, f"{mean:.4g}", f"{sd:.2g}") for key, (mean, sd) in found[0].metrics.items()]
        table(("test", "mean", "sd"), rows)


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
    """Write a picture in one move.

    Raises:
        RunError: the file cannot be written as what its ending says; whatever stood there is as it was.
    """
    picture = io.BytesIO()
    try:
        figure.savefig(picture, dpi=130, format=path.suffix[1:] or "png")
        with atomic.whole(path) as part:
            part.write_bytes(picture.getvalue())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: {error}; expected a writable .png, .pdf or .svg") from error


def outcome(parent: Path, failed: dict[str, str]) -> None:
    """Print the comparison of a finished grid and what failed; write comparison.json and comparison.png."""
    found = compared([parent], parent / "comparison.png") if any(parent.rglob("summary.json")) else []
    if found:
        comparison(found)
    content = {"rows": [asdict(row) for row in found], "failed": failed}
    write_whole(parent / "comparison.json", as_json(content, 2) + "\n")
    say(*(f"failed: {parent / folder}: {reason}" for folder, reason in failed.items()), f"runs: {parent}")


def read(
    name: str, overrides: Sequence[str], plot: Path | None = None
) -> tuple[DataModule, dict[str, Split]]:
    """A data module and what its splits hold; four of its examples are drawn if wanted."""
    opened = inspection.open_data(name, overrides)
    aside = Console(file=sys.stderr, markup=False)
    splits = track(
        inspection.splits(opened),
        "reading",
        total=3,
        transient=True,
        console=aside,
        disable=not aside.is_terminal,
    )
    found = dict(splits)
    if plot is not None:
        save(inspection.picture(opened), plot)
    return opened, found


def data(opened: DataModule, found: dict[str, Split]) -> None:
    """Print what a data module holds."""
    spec = opened.spec
    kind = f"tokens below {spec.d_input}" if spec.tokens else f"{spec.d_input} channels"
    rate = f" at {spec.sample_rate} Hz" if spec.sample_rate else ""
    say(f"{type(opened).__name__}: {kind}{rate} → {spec.d_output} outputs")
    columns = ("examples", "shape", "steps: least, median, 95 %, most", "dt: least, median, most", "padding")
    table(("split", *columns), [(split, *_cells(content)) for split, content in found.items()])
    classes = list(dict.fromkeys(label for content in found.values() for label in content.classes))
    if classes:
        heads = [f"{split} ({sum(content.classes.values()):,})" for split, content in found.items()]
        counts = [[content.classes.get(label, 0) for content in found.values()] for label in classes]
        table(("class", *heads), [(label, *row) for label, row in zip(classes, counts, strict=True)])


def _cells(content: Split) -> tuple[str, ...]:
    return (
        f"{content.examples:,}",
        content.shape,
        ", ".join(f"{n:,}" for n in content.lengths),
        ", ".join(f"{t:.3g}" for t in content.dt or ()),
        f"{content.padding:.1%}",
    )
