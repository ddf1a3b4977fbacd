"""`lrnnx bench …`: parses, delegates, prints. Whatever needs torch is imported where it is used."""

from pathlib import Path
from typing import Annotated

import typer

from lrnnx_app.errors import UserError

app = typer.Typer(no_args_is_help=True, help="Time parts of the package on this machine.")

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write rows here.")]
PlotFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a plot here.")]
Device = Annotated[str | None, typer.Option(help="cpu or cuda; cuda if there is a GPU.")]


@app.command("ops")
def ops_command(
    json_file: JsonFile = None,
    plot: PlotFile = None,
    device: Device = None,
) -> None:
    """Time the operators alone, as shares of the copy bandwidth."""
    from lrnnx_app.bench import ops, report

    check_targets(json_file, plot)
    rows = ops.rows(chosen_device(device, tuple(ops.CASES)))
    print(report.table(rows))
    if json_file is not None:
        report.write_json(rows, json_file)
    if plot is not None:
        report.write_plot(rows, plot)


@app.command("layers")
def layers_command(
    names: Annotated[list[str] | None, typer.Argument(help="Layers to time; all if none is named.")] = None,
    d_state: Annotated[int | None, typer.Option(help="States, for the layers that have them.")] = None,
    json_file: JsonFile = None,
    device: Device = None,
) -> None:
    """Time layers, forward and forward plus backward."""
    from lrnnx_app.bench import layers, report

    check_targets(json_file)
    rows = layers.rows(chosen_device(device), names or None, d_state=d_state)
    print(report.table(rows))
    if json_file is not None:
        report.write_json(rows, json_file)


def check_targets(*paths: Path | None) -> None:
    """Refuse, before anything is timed, a file whose folder does not exist."""
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{path}: no such folder; expected a file in an existing one")


def chosen_device(device: str | None, devices: tuple[str, ...] = ("cpu", "cuda")) -> str:
    """The device named by the user, or the best there is."""
    import torch

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device not in devices:
        raise UserError(f"--device: unknown device '{device}'; expected one of: {', '.join(devices)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device: no GPU that torch can use; expected cpu, or see `lrnnx doctor`")
    return device
