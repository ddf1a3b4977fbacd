"""Rows of a benchmark, each a flat dictionary, as a JSON file or a bar plot."""

from pathlib import Path

import torch

from lrnnx_app.console.tables import Rows
from lrnnx_app.console.terminal import as_json
from lrnnx_app.disk import atomic


def machine() -> dict[str, str]:
    """A description of the machine on which the numbers were measured."""
    device = (
        torch.cuda.get_device_name()
        if torch.cuda.is_available()
        else f"CPU, threads: {torch.get_num_threads()}"
    )
    return {"device": device, "torch": torch.__version__}


def place() -> str:
    """The machine in a few words."""
    found = machine()
    return f"{found['device']} · torch {found['torch']}"


def write_json(rows: Rows, path: Path) -> None:
    atomic.write(path, as_json({**machine(), "rows": rows}, 1) + "\n")


def write_plot(rows: Rows, path: Path) -> None:
    """A bar for each row and each column whose name ends in "/ copy", or in "ms" where there is none."""
    from matplotlib.figure import Figure

    from lrnnx_app.plots import save

    columns = [name for name in rows[0] if name.endswith("/ copy")] or [
        n for n in rows[0] if n.endswith("ms")
    ]
    labels = [" ".join(value for value in row.values() if isinstance(value, str)) for row in rows]
    figure = Figure(figsize=(9, 1 + 0.35 * len(rows)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(columns)
    for i, name in enumerate(columns):
        positions = [row + i * height for row in range(len(rows))]
        axes.barh(positions, [row.get(name, 0) for row in rows], height, label=name)
    axes.set_yticks([row + 0.4 - height / 2 for row in range(len(rows))], labels, fontsize=8)
    axes.invert_yaxis()
    axes.set_xlabel("share of copy bandwidth" if columns[0].endswith("copy") else "ms")
    axes.set_title(" · ".join(machine().values()))
    axes.legend(loc="lower right", fontsize=8)
    save(figure, path)
