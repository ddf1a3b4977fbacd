"""Prints tables for commands: comparisons, results of a grid, statistics of data."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from rich.progress import track

from lrnnx_app.console.terminal import as_json, say, table
from lrnnx_app.data.module import DataModule
from lrnnx_app.registry import DATA, TASKS
from lrnnx_app.reports import compare, inspection, listing
from lrnnx_app.reports.inspection import Split
from lrnnx_app.runs.folder import COMPARED, COMPARISON, SUMMARY, write_whole


def compared(paths: Sequence[Path], plot: Path | None = None) -> list[compare.Row]:
    """The rows of the runs in these folders; draws a plot if wanted."""
    found = compare.rows(compare.find(paths))
    if plot is not None:
        draw(found, plot)
    return found


def comparison(found: Sequence[compare.Row]) -> None:
    """Print a table of the rows; if all runs have one setting, also a table of every metric."""
    table(compare.columns(found), map(compare.cells, found))
    if not all(row.streams for row in found):
        say(compare.NOTE)
    if len(found) == 1 and found[0].runs > 1:
        rows = [(key, f"{mean:.4g}", f"{sd:.2g}") for key, (mean, sd) in found[0].metrics.items()]
        table(("test", "mean", "sd"), rows)


def draw(found: Sequence[compare.Row], plot: Path) -> None:
    """Write the plot of a comparison."""
    from lrnnx_app import plots

    nothing = [None] * len(found)
    panels = {
        found[0].metric: ([row.value for row in found], [row.spread for row in found]),
        "parameters": ([row.parameters for row in found], nothing),
        "training samples/s": ([row.samples_per_second for row in found], nothing),
        "step (ms)": ([row.step_ms for row in found], nothing),
    }
    plots.save(plots.comparison([row.label for row in found], panels), plot)


def outcome(parent: Path, failed: dict[str, str]) -> None:
    """Print the comparison of a finished grid and its failures; write comparison.json and comparison.png."""
    found = compared([parent], parent / COMPARED) if any(parent.rglob(SUMMARY)) else []
    if found:
        comparison(found)
    content = {"rows": [asdict(row) for row in found], "failed": failed}
    write_whole(parent / COMPARISON, as_json(content, 2) + "\n")
    say(*(f"failed: {parent / folder}: {reason}" for folder, reason in failed.items()), f"runs: {parent}")


def read(
    name: str, overrides: Sequence[str], plot: Path | None = None
) -> tuple[DataModule, dict[str, Split]]:
    """A data module and the statistics of its splits; draws four examples if wanted."""
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
        from lrnnx_app import plots

        plots.save(inspection.picture(opened), plot)
    return opened, found


def data(opened: DataModule, found: dict[str, Split]) -> None:
    """Print the statistics of a data module."""
    spec = opened.spec
    kind = f"tokens below {spec.d_input}" if spec.tokens else f"{spec.d_input} channels"
    rate = f" at {spec.sample_rate} Hz" if spec.sample_rate else ""
    origin = DATA.origins().get(opened.config.name)
    source = f" from {origin}" if origin else ""
    say(f"{type(opened).__name__}{source}: {kind}{rate} → {spec.d_output} outputs")
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


def summary(task: str, folder: Path, summary: dict[str, Any]) -> None:
    """Print the result of a training, and the next command for runs of this task."""
    rows = [(key, f"{value:.4g}") for key, value in summary["metrics"].items() if key.startswith("test/")]
    rows += [(f"test/{key}", f"not computed: {why}") for key, why in summary.get("not_computed", {}).items()]
    count, trained = summary["parameters"], summary.get("trained_parameters", summary["parameters"])
    rows += [
        ("parameters", f"{count:,}" if trained == count else f"{count:,}, of which {trained:,} were trained"),
        ("training time", f"{summary['seconds']:.0f} s, {summary['samples_per_second']:.1f} samples/s"),
    ]
    if "peak_gpu_mib" in summary:
        rows.append(("GPU memory", f"{summary['peak_gpu_mib']:,.0f} MiB at most"))
    table(("", ""), [*rows, ("run", str(folder))], header=False)
    say(f"Next: {TASKS[task].next_words.format(run=folder)}")


def dry_run(config: DictConfig, loss: float, rows: Sequence[tuple[str, str, int, int]]) -> None:
    """Print a recipe, its modules (name, type, parameters, trained ones), and the loss of one batch."""
    say(*listing.yaml(config), "")
    total = ("total", "", sum(row[2] for row in rows), sum(row[3] for row in rows))
    table(
        ("module", "type", "parameters", "trained"),
        [(name, kind, f"{count:,}", f"{moved:,}") for name, kind, count, moved in [*rows, total]],
    )
    say(f"one batch forward and backward: loss {loss:.4g}")
