"""`lrnnx bench …`: parses, delegates, prints. Whatever needs torch is imported where it is used."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from lrnnx_app.console import options, tables
from lrnnx_app.console.options import Device
from lrnnx_app.console.terminal import say
from lrnnx_app.errors import UserError
from lrnnx_app.machine import chosen_device

app = typer.Typer(no_args_is_help=True, help="Time parts of the package on this machine.")

JsonFile = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="Write rows here.")]
RecordFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Put rows into this record, in place of those it has.")
]
AgainstFile = Annotated[
    Path | None, typer.Option(metavar="FILE", help="Exit with 1 if a time is 5 % longer than in this record.")
]
PlotFile = Annotated[Path | None, typer.Option(metavar="FILE", help="Write a plot here.")]
Threads = Annotated[int, typer.Option("--threads", min=1, max=options.MOST_THREADS, help="Of a CPU.")]
MOST = 2**20  # of streams, of hops in a chunk, of devices


@app.command("ops")
def ops_command(
    json_file: JsonFile = None,
    record: RecordFile = None,
    against: AgainstFile = None,
    plot: PlotFile = None,
    device: Device = None,
) -> None:
    """Time the operators alone, as shares of the copy bandwidth."""
    from lrnnx_app.bench import ops, report

    ending = _Ending(json_file, record, against, plot)
    rows = ops.rows(chosen_device(device, tuple(ops.TIMED)))
    say(*tables.table(rows).splitlines())
    if plot is not None:
        report.write_plot(rows, plot)
    ending.take(rows)


@app.command("layers")
def layers_command(
    names: Annotated[list[str] | None, typer.Argument(help="Layers to time; all if none is named.")] = None,
    d_state: Annotated[int | None, typer.Option(min=1, help="States, for the layers that have them.")] = None,
    json_file: JsonFile = None,
    record: RecordFile = None,
    against: AgainstFile = None,
    device: Device = None,
) -> None:
    """Time layers, forward and forward plus backward."""
    from lrnnx_app.bench import layers

    ending = _Ending(json_file, record, against)
    rows = layers.rows(chosen_device(device), names or None, d_state=d_state)
    say(*tables.table(rows).splitlines())
    ending.take(rows)


@app.command("scaling")
def scaling_command(
    devices: Annotated[
        str, typer.Option(help="Numbers of devices, such as 2,4; all GPUs by default, or 2 processes.")
    ] = "",
    strategy: Annotated[str | None, typer.Option(help="ddp or fsdp; both by default.")] = None,
    steps: Annotated[int, typer.Option(min=1, help="Steps to time.")] = 30,
    precision: Annotated[str, typer.Option(help="32-true or bf16-mixed.")] = "32-true",
    case: Annotated[str, typer.Option(help="A word of the cases to time, such as S6.")] = "",
    sequence: Annotated[
        str, typer.Option(help="Split one sequence of so many steps, such as 65536,262144, over devices.")
    ] = "",
    recompute: Annotated[bool, typer.Option("--recompute", help="With --sequence: keep less.")] = False,
    limit: Annotated[
        float, typer.Option(callback=options.positive, help="With --sequence: seconds for each row.")
    ] = 300.0,
    json_file: JsonFile = None,
    device: Device = None,
) -> None:
    """Time training on several devices: speed against one, memory of each, and the losses' difference."""
    import torch

    from lrnnx_app.bench import report, scaling, sequences
    from lrnnx_app.errors import one_of

    check_targets(json_file)
    device = chosen_device(device)
    most = torch.cuda.device_count() if device == "cuda" else 2
    counts = _numbers("--devices", devices) or [2**i for i in range(1, most.bit_length())]
    names = (one_of("--strategy", strategy, scaling.STRATEGIES),) if strategy else ()
    one_of("--precision", precision, scaling.PRECISIONS)
    lengths = _numbers("--sequence", sequence)
    if lengths and min(lengths) < max(counts, default=1):
        raise UserError("--sequence: expected a step for each device at least")
    found = (
        sequences.rows(device, counts, lengths, steps, precision, case, recompute, limit)
        if lengths
        else scaling.rows(device, counts, steps, names, precision, case)
    )
    rows = []
    for row in found:
        rows.append(row)
        say(tables.line(row), aside=True)
    say(*tables.table(rows).splitlines())
    if json_file is not None:
        report.write_json(rows, json_file)


class _Ending:
    """What becomes of rows; files that do not fit are refused before anything is timed."""

    def __init__(
        self, json_file: Path | None, record: Path | None, against: Path | None, plot: Path | None = None
    ) -> None:
        from lrnnx_app.bench import records

        check_targets(json_file, record, plot)
        self.json_file, self.record, self.against = json_file, record, against
        self.before = None if against is None else records.read(against)
        if record is not None and record.exists():
            records.read(record)

    def take(self, rows: tables.Rows) -> None:
        from lrnnx_app.bench import records, report

        if self.json_file is not None:
            report.write_json(rows, self.json_file)
        if self.record is not None:
            records.keep(rows, self.record)
        if self.before is not None:
            slow, count = records.slower(rows, self.before)
            say(*tables.table(slow).splitlines() if slow else ())
            say(f"{count - len(slow)} of {count} times are at most 5 % longer than in {self.against}")
            raise typer.Exit(1 if slow or not count else 0)


def check_targets(*paths: Path | None) -> None:
    """Refuse, before anything is timed, a file whose folder does not exist."""
    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise UserError(f"{path}: no such folder; expected a file in an existing one")


RunArgument = Annotated[
    Path | None,
    typer.Argument(metavar="[RUN]", help="A run folder; the denoiser with fresh weights if none."),
]


@app.command("streaming")
def streaming_command(
    run: RunArgument = None,
    voices: Annotated[str, typer.Option(help="Streams side by side, such as 1,16,256.")] = "",
    hops: Annotated[str, typer.Option(help="Chunks, in hops of the model.")] = "1",
    seconds: Annotated[float, typer.Option(callback=options.positive, help="For each row.")] = 2.0,
    largest: Annotated[bool, typer.Option("--largest", help="Search the most voices that keep up.")] = False,
    steps: Annotated[bool, typer.Option("--steps", help="Time single steps of every layer too.")] = False,
    json_file: JsonFile = None,
    record: RecordFile = None,
    against: AgainstFile = None,
    plot: PlotFile = None,
    device: Device = None,
    cpu_threads: Threads = 1,
) -> None:
    """Time a live stream: latency and throughput over voices and chunks, with and without a CUDA graph."""
    from lrnnx_app.bench import report, streaming
    from lrnnx_app.runs.run import audio_model
    from lrnnx_app.streaming.threads import threads

    ending = _Ending(json_file, record, against, plot)
    model, device = audio_model(run), chosen_device(device)
    with threads(cpu_threads):
        rows = streaming.rows(model, device, _numbers("--voices", voices), _numbers("--hops", hops), seconds)
        say(*tables.table(rows).splitlines(), report.place())
        if largest:
            most = streaming.largest(model, device, seconds)
            say(f"voices whose p99 stays under the hop: {most}")
        more_tables = [streaming.step_rows(device)] if steps else []
        if steps and device == "cuda":  # elsewhere both columns are torch's
            more_tables.append(streaming.matmul_rows(device))
        for more in more_tables:
            say(*tables.table(more).splitlines())
        if plot is not None:
            streaming.write_plot(rows, plot)
        ending.take(sum(more_tables, rows))


@app.command("soak")
def soak_command(
    run: RunArgument = None,
    seconds: Annotated[
        float, typer.Option(callback=options.positive, help="Of audio, streamed at full speed.")
    ] = 3600.0,
    json_file: JsonFile = None,
    plot: PlotFile = None,
    device: Device = None,
    cpu_threads: Threads = 1,
) -> None:
    """Stream for hours: memory, speed and error to float64 must stay where they are; exit code 1 if not."""
    from lrnnx_app.bench import report, soak
    from lrnnx_app.runs.run import audio_model
    from lrnnx_app.streaming.threads import threads

    check_targets(json_file, plot)
    rows = []
    with threads(cpu_threads):
        for row in soak.rows(audio_model(run), chosen_device(device), seconds):
            rows.append(row)
            print(f"\r{tables.line(row)}", end="", file=sys.stderr, flush=True)
        ok, words = soak.verdict(rows)
        print(file=sys.stderr)
        print(words)
        if json_file is not None:
            report.write_json(rows, json_file)
        if plot is not None:
            soak.write_plot(rows, plot)
    raise typer.Exit(0 if ok else 1)


@app.command("serve")
def serve_command(
    run: Annotated[str, typer.Argument(metavar="RUN", help="A run folder of sound, or a shipped name.")],
    voices: Annotated[str, typer.Option(help="Streams side by side, such as 8,16,32.")] = "8",
    seconds: Annotated[float, typer.Option(callback=options.positive, help="For each row.")] = 10.0,
    slots: Annotated[
        int | None, typer.Option(min=1, max=options.MOST_SLOTS, help="Of a session; all voices by default.")
    ] = None,
    largest: Annotated[bool, typer.Option("--largest", help="Search the most voices in time.")] = False,
    json_file: JsonFile = None,
    device: Device = None,
) -> None:
    """Load `lrnnx serve` from another process: round trips over voices; it has one core on a CPU."""
    from lrnnx_app.bench import report, serving

    check_targets(json_file)
    device, counts = chosen_device(device), _numbers("--voices", voices)
    found = (serving.row(run, count, seconds, device, slots) for count in counts)
    rows = []
    for row in serving.search(run, seconds, device) if largest else found:
        rows.append(row)
        say(tables.line(row), aside=True)
    say(*tables.table(rows).splitlines(), report.place())
    if largest:
        most, alone = serving.most(rows), serving.alone(run, device, seconds)
        say(f"voices in time: {most}; of the session alone: {alone}")
    if json_file is not None:
        report.write_json(rows, json_file)


@app.command("denoisers")
def denoisers_command(
    folder: Annotated[
        Path | None,
        typer.Argument(help="A folder with speech and noise; the embedded test clips if none is given."),
    ] = None,
    models: Annotated[
        str, typer.Option(help="Runs or shipped names, such as denoise,runs/mine; all that ship by default.")
    ] = "",
    count: Annotated[int, typer.Option(min=1, max=1000, help="Clips for each kind of noise and ratio.")] = 4,
    alone: Annotated[bool, typer.Option("--alone", help="Leave out denoisers of other packages.")] = False,
    json_file: JsonFile = None,
    plot: PlotFile = None,
) -> None:
    """Judge denoisers beside those of other packages: quality, harm to clean speech, cost on one thread."""
    from lrnnx_app.bench import _peers, denoisers, report
    from lrnnx_app.registry import trained
    from lrnnx_app.streaming.threads import threads

    check_targets(json_file, plot)
    clips = denoisers.mixtures(folder, count)
    others, absent = ([], []) if alone else _peers.peers()
    names = [name.strip() for name in models.split(",") if name.strip()] or sorted(trained())
    rows, parts = [], {"kind": [], "snr": []}
    with threads(1):
        systems = [each for name in names for each in _peers.ours(name)]
        for row, scores in denoisers.rows([*systems, *others], clips):
            rows.append(row)
            for key, part in parts.items():
                part.extend(denoisers.by(key, row["denoiser"], clips, scores))
            say(tables.line(row), aside=True)
    say(f"{len(clips)} mixtures; changes from the noisy sound; DNSMOS and clean scores whole")
    for some in (rows, *parts.values()):
        say(*tables.table(some).splitlines(), "")
    if absent:
        say(f"not installed: {', '.join(absent)}; pip install 'lrnnx-app[bench-denoisers]'", aside=True)
    if json_file is not None:
        report.write_json(sum(parts.values(), rows), json_file)
    if plot is not None:
        denoisers.write_plot(rows, plot)


def _numbers(option: str, text: str) -> list[int]:
    """Positive integers between commas."""
    try:
        found = [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        found = [0]
    if not 1 <= min(found, default=1) <= max(found, default=1) <= MOST:
        raise UserError(f"{option}: expected positive integers such as 1,16,256, not '{text}'")
    return found
