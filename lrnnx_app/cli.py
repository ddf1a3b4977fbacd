"""The `lrnnx` command: parses, delegates, prints. Whatever needs torch is imported where it is used."""

import contextlib
import errno
import sys
from collections.abc import Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

import typer

from lrnnx_app import __version__, plugins
from lrnnx_app import export as formats
from lrnnx_app.bench.cli import app as bench
from lrnnx_app.console import options, outputs, tables, terminal
from lrnnx_app.console.options import Json, Overrides, Plugins, RunFolder
from lrnnx_app.console.terminal import as_json, say, table
from lrnnx_app.data.cli import app as data
from lrnnx_app.data.cli import preparing
from lrnnx_app.errors import STOPPED, Interrupted, UserError
from lrnnx_app.infer.cli import infer
from lrnnx_app.published.cli import import_
from lrnnx_app.serve.cli import serve

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Train, stream and export linear recurrent neural networks.",
)
app.add_typer(bench, name="bench")
app.add_typer(data, name="data")
app.command()(serve)
app.command("import")(import_)
HALF_LINE = 450  # letters of an error
NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
tracebacks = ContextVar("tracebacks", default=False)  # whether an error shows its own


def _version(wanted: bool) -> None:
    if wanted:
        say(f"lrnnx {__version__}")
        raise typer.Exit


@app.callback()
def common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Train, stream and export linear recurrent neural networks."""
    tracebacks.set(debug)


@app.command()
def train(
    recipe: options.Recipe = None,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option("-o", "--out", help="Run folder to make.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Continue this run, in place.")] = None,
    seeds: Annotated[int | None, typer.Option(min=1, help="Train this many seeds: mean and sd.")] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Resolve, build and run one batch only.")
    ] = False,
    plugin: Plugins = None,
) -> None:
    """Train a recipe, test it and write a run folder.

    A comma list, as in model.layer=lru,s5, trains every alternative in turn and compares them. SIGTERM or
    Ctrl-C saves and exits with code 75; a second one exits at once. --resume RUN goes on with the settings of
    RUN; overrides of trainer.*, task.*, *.dropout, data.workers and data.root count, others are refused.
    """
    from lrnnx_app.reports import show
    from lrnnx_app.train import fit, grid

    if recipe is not None and resume is not None and "=" in recipe:
        recipe, overrides = None, [recipe, *(overrides or ())]
    with outputs.lasting():
        base, cells, configs = grid.plan(recipe, overrides or (), seeds, resume)
        if dry_run:
            for config in configs:
                show.dry_run(config, *fit.dry_run(config))
            return
        if len(cells) > 1 or seeds is not None:
            return _train_grid(base, cells, out, resume)
        folder, summary = fit.train(configs[0], out, resume)
        show.summary(configs[0].task.name, folder, summary)


def _train_grid(recipe: str, cells: Any, out: Path | None, resume: Path | None) -> None:
    from lrnnx_app.reports import show
    from lrnnx_app.train import grid

    parent, outcomes = grid.run(recipe, cells, out, resume)
    failed = {folder: reason for folder, reason in outcomes if reason}
    show.outcome(parent, failed)
    raise typer.Exit(1 if failed else 0)


@app.command()
def evaluate(
    run: RunFolder,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option(help="train, valid or test.")] = "test",
    to_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """Metrics of a run's best checkpoint, on other data or at another rate if overrides say so."""
    from lrnnx_app.errors import nearest
    from lrnnx_app.runs.run import Run
    from lrnnx_app.spec import SPLITS
    from lrnnx_app.train import fit

    if split not in SPLITS:
        raise UserError(f"--split: unknown split '{split}'; {nearest(split, SPLITS)}")
    with terminal.results_only():
        metrics = fit.evaluate(Run(run, overrides or ()), split)
    if to_json:
        return print(as_json(metrics))
    table((split, "value"), [(key, f"{value:.4g}") for key, value in metrics.items()])


@app.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN…", help="Run folders, or folders of runs.")],
    plot: Annotated[Path | None, typer.Option("-o", "--plot", help="Picture to write.")] = None,
    to_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """Compare runs: metric, parameters, state, training throughput, latency of a step on this machine."""
    from dataclasses import asdict

    from lrnnx_app.reports import show

    with terminal.results_only():
        found = show.compared(runs, plot)
    if to_json:
        return print(as_json([asdict(row) for row in found]))
    show.comparison(found)


@app.command()
def checkpoints(
    run: RunFolder,
    to: Annotated[str | None, typer.Option(help="Write them anew as whole or sharded ones.")] = None,
    to_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """List the checkpoints that a run can be resumed from, or change their form."""
    from lrnnx_app.runs import forms
    from lrnnx_app.runs.run import Run

    opened = Run(run)
    if to is not None:
        forms.convert(opened, to)
    found = forms.rows(opened)
    if to_json:
        return print(as_json(found))
    say(*tables.table(found).splitlines() if found else [f"{run}: no checkpoint to resume from"])


app.command()(infer)


@app.command()
def export(
    run: RunFolder,
    output: Annotated[Path, typer.Option("-o", "--output", help="File or folder to write.")],
    format: Annotated[
        str | None,
        typer.Option(help=f"{', '.join(formats.own())}; by the name's ending if left out."),
    ] = None,
    chunk: Annotated[
        int | None, typer.Option(min=1, max=options.MOST_STEPS, help="Samples of a call; the hop by default.")
    ] = None,
    timed: Annotated[bool, typer.Option("--timed", help="dt is an input, as where data have it.")] = False,
    int8: Annotated[bool, typer.Option("--int8", help="Weights in 8 bits.")] = False,
    plugin: Plugins = None,
) -> None:
    """Write the best checkpoint's model in a format that others read, and check what was written."""
    say(*formats.export_run(run, output, format, chunk=chunk, timed=timed, int8=int8))


@app.command()
def recipes(
    name: options.RecipeName = None,
    matrix: Annotated[bool, typer.Option("--matrix", help="A table of layers and data.")] = False,
    explain: Annotated[bool, typer.Option("--explain", help="Each key: value, type, what it means.")] = False,
    to_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """List the shipped recipes, show one resolved, or explain its keys."""
    from lrnnx_app import recipe
    from lrnnx_app.reports import listing

    if matrix and (explain or name is not None):
        raise UserError("--matrix is a table of its own; expected neither NAME nor --explain with it")
    if name is not None and not explain:
        from omegaconf import OmegaConf

        config = recipe.load(name)
        return print(as_json(OmegaConf.to_container(config))) if to_json else say(*listing.yaml(config))
    _show(*(listing.keys(name) if explain else listing.matrix() if matrix else listing.recipes()), to_json)


def _show(columns: Sequence[str], rows: Sequence[Sequence[Any]], to_json: bool) -> None:
    """Print rows as a table, or as objects of JSON."""
    from lrnnx_app.reports import listing

    if to_json:
        return print(as_json([dict(zip(columns, row, strict=True)) for row in rows]))
    table(columns, [map(listing.text, row) for row in rows])


@data.command("show")
def data_show(
    name: options.DataName,
    overrides: Overrides = None,
    plot: Annotated[Path | None, typer.Option("-o", "--plot", help="Picture of examples to write.")] = None,
    to_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """Show what data hold: splits, classes, lengths, times, padding; and a picture of four examples."""
    from dataclasses import asdict

    from lrnnx_app.reports import show

    with terminal.results_only():
        opened, found = show.read(name, overrides or (), plot)
    if to_json:
        return print(as_json({split: asdict(content) for split, content in found.items()}))
    show.data(opened, found)


@preparing.command("recipe")
def prepare_recipe(name: options.DataName, overrides: Overrides = None, plugin: Plugins = None) -> None:
    """Make what a recipe's data need, such as tokens, and keep it in the cache.

    What is done already is kept: the same command goes on where it was stopped.
    """
    from lrnnx_app.reports import inspection

    for split, examples in inspection.prepared(name, overrides or ()):
        say(f"{split}: {examples:,} examples")


@app.command()
def models(to_json: Json = False) -> None:
    """List the trained models that come with lrnnx; a name stands for a run, as in `lrnnx infer NAME`."""
    from lrnnx_app.reports import listing

    _show(*listing.trained_models(), to_json)


@app.command()
def layers(
    markdown: Annotated[bool, typer.Option("--markdown", help="Print the table as Markdown.")] = False,
    to_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """List the layers: paper, kind, rules, event time, state and cost."""
    from lrnnx_app.reports import catalog

    if markdown:
        return print(catalog.markdown())
    _show((*catalog.COLUMNS, catalog.FROM), catalog.rows(), to_json)
    if not to_json:
        say(catalog.LEGEND)


@app.command()
def docs(
    topic: Annotated[str | None, typer.Argument(metavar="[TOPIC]", help="Print this one.")] = None,
) -> None:
    """List the guides that come with lrnnx, or print one."""
    from lrnnx_app.reports import listing

    if topic is not None:
        return say(*listing.topic(topic).splitlines())
    table(("topic", "what it tells"), listing.topics().items())
    say("Print one: lrnnx docs TOPIC")


@app.command()
def doctor(
    build: Annotated[bool, typer.Option("--build", help="Build the kernels ahead of use.")] = False,
    to_json: Json = False,
    plugin: Plugins = None,
) -> None:
    """Show what this machine has and check every operator on it; exit code 1 if anything is wrong."""
    from dataclasses import asdict

    from lrnnx_app.reports import doctor as examine

    with terminal.results_only():
        report = examine.run(build, plugin or ())
    print(as_json(asdict(report)) if to_json else examine.text(report))
    raise typer.Exit(0 if report.ok else 1)


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2."""
    terminal.prepare()
    tracebacks.set(False)
    plugins.forget()
    with outputs.lasting("stderr"):
        sys.exit(_run())


def _run() -> int:
    """The exit code of the command that was typed."""
    try:
        code = app(prog_name="lrnnx", standalone_mode=False)
        sys.stdout.flush()
    except BrokenPipeError:  # nobody reads on, as after `| head`
        terminal.hang_up()
        code = 0
    except Interrupted as stop:
        say(stop, aside=True)
        code = 0 if terminal.quiet else STOPPED  # what started this process shall not take it for a failure
    except typer.Abort:
        code = 130
    except Exception as error:  # those of other libraries too: `_mistake` tells which are a user's
        mistake = _mistake(error)
        if mistake is None or tracebacks.get():
            raise
        code = _fail(mistake)
    return int(code or 0)


def _mistake(error: Exception) -> str | None:
    """The line for an error of the user or the machine; "" after a help text; None if lrnnx is at fault."""
    if isinstance(error, UserError):
        return str(error)
    if isinstance(error, OSError) and (error.filename is not None or error.errno in NO_ROOM):
        return f"{error.filename or 'output'}: {error.strerror}"
    # torch has no class for it
    if isinstance(error, RuntimeError | MemoryError) and "allocate" in str(error):
        return f"out of memory: {str(error).splitlines()[0]}; try smaller sizes, such as data.batch_size"
    usage = getattr(error, "format_message", None)
    return None if usage is None else usage()


def _fail(message: str) -> int:
    if message:
        with contextlib.suppress(OSError):  # standard error leads nowhere
            line = terminal.shown(" ".join(message.split()))
            if len(line) > 2 * HALF_LINE:  # of a word without end
                line = f"{line[:HALF_LINE]}…{line[-HALF_LINE:]}"
            print(f"error: {line}", file=sys.stderr, flush=True)
    return 2


if __name__ == "__main__":
    main()
