"""The `lrnnx` command: parses, delegates, prints. Whatever needs torch is imported where it is used."""

import errno
import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from lrnnx_app import processes
from lrnnx_app.bench.cli import app as bench
from lrnnx_app.errors import STOPPED, Interrupted, UserError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, stream and export linear recurrent neural networks.",
)
app.add_typer(bench, name="bench")
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
quiet = processes.rank() > 0  # of several processes one speaks
console = Console(highlight=False, markup=False, soft_wrap=True, quiet=quiet)

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run folder.")]
Overrides = Annotated[list[str] | None, typer.Argument(metavar="[key.sub=value]…", help="Overrides.")]


@app.callback()
def options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Train, stream and export linear recurrent neural networks."""


@app.command()
def train(
    recipe: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE",
            help="A recipe file, or a shipped one's name; --resume needs none.",
        ),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Run folder to make.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue this run, in place.")] = None,
    seeds: Annotated[int | None, typer.Option(help="Train this many seeds: mean and sd.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolve, build and run one batch only.")
    ] = False,
) -> None:
    """Train a recipe, test it and write a run folder.

    A comma list, as in model.layer=lru,s5, trains every alternative in turn and compares them. SIGTERM or
    Ctrl-C saves and exits with code 75; a second one exits at once.
    """
    from lrnnx_app import grid, training
    from lrnnx_app import recipe as recipes

    if recipe is None:
        if resume is None:
            raise UserError("RECIPE: expected a recipe file or a shipped recipe's name, or --resume RUN")
        recipe = str(resume / "recipe.yaml")
    counted = () if seeds is None else grid.seeds_from(recipe, overrides or (), seeds)
    cells = grid.cells(overrides or (), counted)
    if dry_run:
        for cell in cells:
            _dry_run(recipes.load(recipe, cell.overrides))
        return
    if len(cells) > 1 or counted:
        return _train_grid(recipe, cells, out, resume)
    config = recipes.load(recipe, cells[0].overrides)
    folder, summary = training.train(config, out, resume)
    _show_summary(folder, summary)
    console.print(f"Next: {_next_command(config, folder)}")


def _show_summary(folder: Path, summary: dict[str, Any]) -> None:
    table = Table("", "", show_header=False)
    for key, value in summary["metrics"].items():
        if key.startswith("test/"):
            table.add_row(key, f"{value:.4g}")
    for key, reason in summary.get("not_computed", {}).items():
        table.add_row(f"test/{key}", f"not computed: {reason}")
    table.add_row("parameters", f"{summary['parameters']:,}")
    table.add_row(
        "training time", f"{summary['seconds']:.0f} s, {summary['samples_per_second']:.1f} samples/s"
    )
    if "peak_gpu_mib" in summary:
        table.add_row("GPU memory", f"{summary['peak_gpu_mib']:,.0f} MiB at most")
    table.add_row("run", str(folder))
    console.print(table)


def _train_grid(recipe: str, cells: Any, out: Path | None, resume: Path | None) -> None:
    from lrnnx_app import grid, show

    parent, outcomes = grid.run(recipe, cells, out, resume)
    failed = {folder: reason for folder, reason in outcomes if reason}
    show.outcome(parent, failed, console)
    raise typer.Exit(1 if failed else 0)


def _dry_run(config: Any) -> None:
    from omegaconf import OmegaConf

    from lrnnx_app import training

    loss, rows = training.dry_run(config)
    console.print(OmegaConf.to_yaml(config))
    table = Table("module", "type", "parameters")
    for name, kind, count in rows:
        table.add_row(name, kind, f"{count:,}")
    table.add_row("total", "", f"{sum(row[2] for row in rows):,}")
    console.print(table)
    console.print(f"one batch forward and backward: loss {loss:.4g}")


def _next_command(config: Any, folder: Path) -> str:
    if config.task.name == "denoise":
        return f"lrnnx infer {folder} NOISY.wav -o CLEAN.wav"
    return f"lrnnx evaluate {folder}"


@app.command()
def evaluate(
    run: RunArgument,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Metrics of a run's best checkpoint, on other data or at another rate if overrides say so."""
    from lrnnx_app import training
    from lrnnx_app.data import SPLITS
    from lrnnx_app.errors import nearest
    from lrnnx_app.run import Run

    if split not in SPLITS:
        raise UserError(f"--split: unknown split '{split}'; {nearest(split, SPLITS)}")
    metrics = training.evaluate(Run(run, overrides or ()), split)
    if as_json:
        return print(json.dumps(metrics))
    table = Table(split, "value")
    for key, value in metrics.items():
        table.add_row(key, f"{value:.4g}")
    console.print(table)


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders, or folders of runs.")],
    plot: Annotated[Path | None, typer.Option("-o", "--plot", help="Picture to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Compare runs: metric, parameters, state, training throughput, latency of a step on this machine."""
    from dataclasses import asdict

    from lrnnx_app import show

    found = show.comparison(runs, Console(quiet=True) if as_json else console, plot)
    if as_json:
        print(json.dumps([asdict(row) for row in found]))


@app.command()
def infer(
    run: RunArgument,
    inputs: Annotated[
        list[Path] | None, typer.Argument(metavar="INPUT…", help="Files, folders, or - for PCM on stdin.")
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Result file or folder, or - for stdout.")
    ] = None,
    chunk_ms: Annotated[float | None, typer.Option(help="Chunk in ms; the model's hop by default.")] = None,
    steps: Annotated[int | None, typer.Option(help="Chunk in steps, instead.")] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Each file in one go.")] = False,
    running: Annotated[
        bool, typer.Option("--running", help="Classes after each chunk, with the time.")
    ] = False,
    realtime: Annotated[bool, typer.Option("--realtime", help="Feed audio at its own rate.")] = False,
    slots: Annotated[int | None, typer.Option(help="Files side by side in one session.")] = None,
    rate: Annotated[int | None, typer.Option(help="Of PCM on stdin, in Hz; the model's by default.")] = None,
    channels: Annotated[int, typer.Option(help="Of PCM on stdin; they are mixed down to one.")] = 1,
    form: Annotated[str, typer.Option("--format", help="Of PCM: s16le or f32le.")] = "s16le",
    device: Annotated[str | None, typer.Option(help="cpu or cuda; cuda if there is a GPU.")] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE.png", help="Draw the first minute.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON lines.")] = False,
    threads: Annotated[int | None, typer.Option(help="Of a CPU; 1 by default, or all if --offline.")] = None,
    prompt: Annotated[
        str | None, typer.Option(help="Text, or @FILE, that a model of text continues.")
    ] = None,
    length: Annotated[int, typer.Option(help="Bytes to add to the prompt.")] = 400,
    temperature: Annotated[float, typer.Option(help="Of the draws; 0 for the likeliest byte.")] = 0.8,
    top: Annotated[int, typer.Option(help="Draw from so many likeliest bytes; 0 for all.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the draws.")] = 0,
) -> None:
    """Denoise audio or classify files chunk by chunk, as a live stream would be, and say what it cost; or
    continue a text."""
    from lrnnx_app import infer as inference
    from lrnnx_app import sample
    from lrnnx_app.run import Run

    if prompt is not None:
        how = sample.Sampling(length, temperature, top, seed)
        return sample.say(Run(run), sample.prompt_bytes(prompt), how)
    if not inputs:
        raise UserError("INPUT: expected a file, a folder or -; or --prompt for a model of text")
    options = inference.Options(
        output,
        chunk_ms,
        steps,
        offline,
        running,
        realtime,
        slots,
        rate,
        channels,
        form,
        device,
        plot,
        as_json,
        threads,
    )
    if Run(run).recipe.task.name == "predict":
        if options != inference.Options(as_json=as_json):
            raise UserError("a run of the task predict is judged by whole files; expected --json or --prompt")
        return sample.judge(Run(run), inputs, as_json)
    raise typer.Exit(inference.infer(run, inputs, options))


@app.command()
def export(
    run: RunArgument,
    output: Annotated[Path, typer.Option("-o", "--output", help="File or folder to write.")],
    format: Annotated[
        str | None,
        typer.Option(help="safetensors, torch, onnx or huggingface; by the name's ending if left out."),
    ] = None,
    chunk: Annotated[int | None, typer.Option(help="Samples of a call (torch, onnx).")] = None,
    timed: Annotated[bool, typer.Option("--timed", help="dt is an input too (torch, onnx).")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Weights in 8 bits (onnx).")] = False,
) -> None:
    """Write the best checkpoint's model in a format that others read, and check what was written."""
    from lrnnx_app import export as formats
    from lrnnx_app.run import Run

    write = formats.find(format, output)
    for line in write(Run(run), output, formats.Options(chunk, timed, int8)):
        console.print(line)


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="Show this recipe, resolved.")] = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="A table of layers and data.")] = False,
) -> None:
    """List the shipped recipes, or show one resolved."""
    from lrnnx_app import recipe

    if matrix:
        return _matrix(recipe.shipped())
    if name is not None:
        from omegaconf import OmegaConf

        return print(OmegaConf.to_yaml(recipe.load(name)), end="")
    table = Table("name", "task", "layer", "data", "what it is for")
    for key, path in recipe.shipped().items():
        content = recipe.read_yaml(path)
        table.add_row(key, content["task"]["name"], *recipe.system(path), content.get("about", ""))
    console.print(table)


def _matrix(shipped: dict[str, Path]) -> None:
    from lrnnx_app.recipe import system

    cells: dict[tuple[str, str], list[str]] = {}
    for name, path in shipped.items():
        cells.setdefault(system(path), []).append(name)
    data = sorted({column for _, column in cells})
    table = Table("layer", *data)
    for layer in sorted({row for row, _ in cells}):
        table.add_row(layer, *("\n".join(cells.get((layer, column), [])) for column in data))
    for column in table.columns:
        column.no_wrap = True  # names stay whole on a narrow terminal
    Console(width=40 * (1 + len(data)), highlight=False, markup=False, quiet=quiet).print(table)


@app.command()
def data(
    name: Annotated[str, typer.Argument(metavar="NAME", help="A recipe, or a data module's name.")],
    overrides: Overrides = None,
    plot: Annotated[Path | None, typer.Option("-o", "--plot", help="Picture of examples to write.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what data hold: splits, classes, lengths, times, padding; and a picture of four examples."""
    from dataclasses import asdict

    from lrnnx_app import show

    found = show.data(name, overrides or (), Console(quiet=True) if as_json else console, plot)
    if as_json:
        print(json.dumps({split: asdict(content) for split, content in found.items()}))


@app.command()
def layers(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the README's section.")] = False,
) -> None:
    """List the layers: paper, kind, rules, event time, state and cost."""
    from lrnnx_app import catalog

    if markdown:
        return print(catalog.markdown())
    table = Table(*catalog.COLUMNS)
    for row in catalog.rows():
        table.add_row(*row)
    console.print(table)
    console.print(catalog.LEGEND)


@app.command()
def doctor(
    build: Annotated[bool, typer.Option("--build", help="Build the kernels ahead of use.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show what this machine has and check every operator on it; exit code 1 if anything is wrong."""
    from dataclasses import asdict

    from lrnnx_app import doctor as examine

    report = examine.run(build)
    print(json.dumps(asdict(report)) if as_json else examine.text(report))
    raise typer.Exit(0 if report.ok else 1)


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    debug = "--debug" in sys.argv
    if debug:
        sys.argv.remove("--debug")
    try:
        code = app(standalone_mode=False)
    except UserError as error:
        if debug:
            raise
        code = _fail(str(error))
    except Interrupted as stop:
        if quiet:
            return  # what started this process shall not take it for a failure
        print(stop, file=sys.stderr)
        code = STOPPED
    except (
        OSError
    ) as error:  # of the machine, not of the program: a full disk, a folder that may not be written
        if debug or (error.filename is None and error.errno not in NO_ROOM):
            raise
        code = _fail(f"{error.filename or 'output'}: {error.strerror}")
    except typer.Exit as stop:
        code = stop.exit_code
    except typer.Abort:
        code = 130
    except (RuntimeError, MemoryError) as error:
        if debug or "allocate" not in str(error):  # torch has no exception of its own for a CPU's memory
            raise
        code = _fail(
            f"out of memory: {str(error).splitlines()[0]}; try smaller sizes, such as data.batch_size"
        )
    except Exception as error:
        usage = getattr(error, "format_message", None)
        if usage is None or debug:
            raise
        code = _fail(usage())
    sys.exit(code)


def _fail(message: str) -> int:
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
