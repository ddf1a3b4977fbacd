"""A trained run on a user's files or pipe: which tracks, through which session, and the report."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from torch import Tensor

from lrnnx_app.console import terminal
from lrnnx_app.console.interrupts import terminated_as_interrupted
from lrnnx_app.console.tables import table
from lrnnx_app.console.terminal import as_json, say, shown
from lrnnx_app.data.audio_io import check_rate, find_audio, open_audio
from lrnnx_app.disk import atomic
from lrnnx_app.disk.files import below
from lrnnx_app.errors import DataError, StreamError, UserError, nearest
from lrnnx_app.infer.report import Recorder, report, text
from lrnnx_app.machine import chosen_device
from lrnnx_app.runs.run import Run, build_data
from lrnnx_app.streaming import sources
from lrnnx_app.streaming.numbers import Flushing
from lrnnx_app.streaming.session import StreamingSession
from lrnnx_app.streaming.sinks import AudioFile, Pcm, Sink
from lrnnx_app.streaming.slots import Pace, Timing, stream, whole
from lrnnx_app.streaming.threads import threads
from lrnnx_app.streaming.tracks import AudioTrack, OutputTrack, Track, in_parts

PIPE = Path("-")
CHUNK_SECONDS = 0.016  # of a model that takes single steps
CHUNK_STEPS = 64  # where steps have no rate
SLOTS = 16  # files side by side unless said otherwise


@dataclass(frozen=True)
class Options:
    """What the user chose; see `lrnnx infer --help`."""

    output: Path | None = None
    chunk_ms: float | None = None
    steps: int | None = None
    offline: bool = False
    running: bool = False
    realtime: bool = False
    slots: int | None = None
    rate: int | None = None
    channels: int = 1
    form: str = "s16le"
    device: str | None = None
    plot: Path | None = None
    as_json: bool = False
    threads: int | None = None


def infer(run: Run, inputs: Sequence[Path], options: Options) -> int:
    """Run on every input, print results and a report; the exit code.

    Raises:
        UserError: an input, the output or an option does not serve; files done before are kept.
    """
    _check(inputs, options)
    job = Job(run, inputs, options)
    with threads(options.threads or (1 if job.session else None)), Flushing():
        try:
            with terminated_as_interrupted():
                timing = job.stream()
        except BrokenPipeError:  # the reader of our output has left; a later flush must not complain
            terminal.hang_up()
            return 0
        costs = report(job.model, job.session, timing, job.rate, job.delay, job.beyond)
    print(text(costs, options.as_json), file=job.aside, flush=True)
    job.recorder.draw(options.plot)
    job.check()
    return 130 if timing.interrupted else 0


class Job:
    """Tracks and a session for one call.

    Attributes:
        out: where classes go; aside: where the report goes, standard error if results go to standard output.
        delay: seconds that conversions of the rate add, the worst of all tracks.
        beyond: samples that were taken for the loudest that a stream takes.
    """

    def __init__(self, run: Run, inputs: Sequence[Path], options: Options) -> None:
        task = run.task()
        self.run, self.options, self.spec = run, options, task.spec
        self.model = task.model.to(chosen_device(options.device)).eval()
        self.rate = task.spec.sample_rate
        self.denoises = run.recipe.task.name == "denoise"
        self.names = task.spec.classes or tuple(map(str, range(task.spec.d_output)))
        self.inputs = list(self._files(inputs))
        self.results = self._outputs() if self.denoises else {}
        self.piped = options.output == PIPE or (self.denoises and PIPE in inputs and options.output is None)
        shown = self.piped if self.denoises else options.output in (None, PIPE)
        self.out, self.aside = sys.stdout, sys.stderr if shown else sys.stdout
        self.delay, self.beyond = 0.0, 0
        self._bad: list[str] = []
        self.recorder = Recorder(self.rate, self.names, options.plot is not None)
        self.session = None if options.offline else self._session()

    def stream(self) -> Timing:
        """Everything through the session, or file by file in one go."""
        with self._words() as self.out:
            return self._streamed()

    def _words(self) -> AbstractContextManager[TextIO]:
        output = self.options.output
        if self.denoises or output is None or output == PIPE:
            return nullcontext(sys.stdout)
        if any(path.exists() and output.exists() and path.samefile(output) for path in self.inputs):
            raise DataError(f"{output}: is the input; name another output")
        if not output.parent.is_dir():
            raise DataError(f"{output}: no such folder; make {output.parent} first")
        return _kept(output)

    def _streamed(self) -> Timing:
        if self.session is None:
            total = Timing()
            for track in self._tracks():
                try:
                    one = whole(self.model, track)
                except UserError as error:
                    self._failed(track.name, error)
                    continue
                self._done(track)
                total.steps, total.compute = total.steps + one.steps, total.compute + one.compute
            return total
        pace = Pace(self.session.chunk / self.rate) if self.options.realtime else None
        self.session.warm_up()
        return stream(self.session, self._tracks(), self._done, pace, self._failed)

    def check(self) -> None:
        """Raises:
        DataError: some of several inputs did not serve; names them, after all others are done.
        """
        if self._bad:
            raise DataError(
                f"{len(self._bad)} of {len(self.inputs)} inputs failed, the others are done: "
                + ", ".join(self._bad)
            )

    def _failed(self, name: str, error: UserError) -> None:
        """One of several inputs does not serve; the only one ends the job."""
        if len(self.inputs) == 1:
            raise error
        say(f"error: {error}", aside=True)
        self._bad.append(name)

    def _session(self) -> StreamingSession | None:
        """A session; None for a classifier that cannot stream and need not."""
        options, hop = self.options, self.model.hop
        slots = options.slots or min(len(self.inputs), SLOTS)
        chunk = options.steps or (hop if hop > 1 else round(CHUNK_SECONDS * self.rate) or CHUNK_STEPS)
        if not self.rate and (options.chunk_ms is not None or options.realtime):
            raise UserError(
                "--chunk-ms and --realtime: this run's steps have no rate; choose --steps instead"
            )
        if options.chunk_ms is not None:
            chunk = round(options.chunk_ms * self.rate / 1000)
        if chunk < 1 or chunk % hop:
            unit = f"{hop} steps" + (f" ({1000 * hop / self.rate:g} ms)" if self.rate else "")
            raise StreamError(f"a chunk of {chunk} steps: expected a multiple of the model's hop, {unit}")
        try:
            return StreamingSession(self.model, slots, chunk)
        except StreamError:
            if self.denoises or options.running or options.realtime or PIPE in self.inputs:
                raise
            return None

    def _files(self, inputs: Sequence[Path]) -> Iterator[Path]:
        for path in inputs:
            if path != PIPE and path.is_dir():
                yield from find_audio(path, "recordings") if self.denoises else below(path)
            else:
                yield path

    def _outputs(self) -> dict[Path, Path]:
        """Where each input's result goes: `output` is a file for one input, a folder for several.

        Raises:
            DataError: the output is missing, or does not fit the number of inputs, or two would be one.
        """
        output = self.options.output
        if output == PIPE or (output is None and self.inputs == [PIPE]):
            if len(self.inputs) > 1:
                raise DataError("-o -: expected one input, since raw PCM has no place for file names")
            return {}
        if output is None:
            raise DataError("-o: expected a file for the result, or a folder for several inputs")
        if len(self.inputs) == 1 and not output.is_dir():
            results = {self.inputs[0]: output}
        elif not output.is_dir():
            raise DataError(
                f"{output}: expected an existing folder, since there are {len(self.inputs)} inputs"
            )
        else:
            results = {path: output / path.name for path in self.inputs}
        for path, target in results.items():
            if target.exists() and path.exists() and target.samefile(path):
                raise DataError(f"{target}: is the input; name another output")
        if len(set(results.values())) < len(results):
            raise DataError(f"{output}: two inputs have the same name; run them one by one")
        return results

    def _tracks(self) -> Iterator[Track]:
        for path in self.inputs:
            try:
                track = self._audio(path) if self.denoises else self._classified(path)
            except UserError as error:
                self._failed(str(path), error)
                continue
            self.delay = max(self.delay, track.delay)
            yield track

    def _audio(self, path: Path) -> Track:
        options = self.options
        if path == PIPE:
            blocks = self._pipe()
            rate, subtype = blocks.rate, "FLOAT" if options.form == "f32le" else None
        else:
            reader = open_audio(path)
            rate, subtype = reader.samplerate, reader.subtype
            blocks = sources.file_blocks(reader, path)
        check_rate(path, rate, self.rate)
        sink: Sink = (
            Pcm(terminal.target(), options.form)
            if self.piped
            else AudioFile(self.results[path], rate, subtype)
        )
        name = str(path)
        watch = self.recorder.waves if path == self.inputs[0] else None
        source = sources.Resampled(blocks, rate, self.rate)
        return AudioTrack(name, source, sink, rate, self.rate, path == PIPE, watch)

    def _classified(self, path: Path) -> Track:
        steps = max(self.rate, 1)
        show = partial(self._say, str(path), True) if self.options.running or path == PIPE else None
        done = partial(self._say, str(path), False) if show is None else lambda *_: None
        if path == PIPE:
            if not self.rate or self.spec.d_input != 1:
                raise DataError("-: this run does not classify audio samples; expected files")
            blocks = self._pipe()
            check_rate("--rate", blocks.rate, self.rate)
            audio = sources.Resampled(blocks, blocks.rate, self.rate)

            def read(count: int) -> sources.Steps:
                return sources.Steps(audio.read(count)[:, None])

            return OutputTrack("-", read, done, show, steps, True, audio.delay)
        if not path.is_file():
            raise DataError(f"{path}: no such file")
        example = build_data(self.run.recipe).read(path)
        return OutputTrack(str(path), in_parts(sources.Steps(example.x, example.dt)), done, show, steps)

    def _pipe(self) -> sources.Pipe:
        options = self.options
        return sources.Pipe(terminal.source(), options.rate or self.rate, options.channels, options.form)

    def _say(self, name: str, running: bool, time: float, output: Tensor) -> None:
        """Print a track's output, of a chunk or the last one."""
        shares = output.float().softmax(-1)
        if running and name == str(self.inputs[0]):
            self.recorder.shares(time, shares)
        ranked = sorted(zip(self.names, shares.tolist(), strict=True), key=lambda pair: -pair[1])
        at = {"seconds" if self.rate else "time": round(time, 4)} if running else {}
        if self.options.as_json:
            self._print(as_json({"file": name, **at, "classes": dict(ranked)}))
        elif running:
            self._print(shown(f"{name}  {time:10.3f}  {ranked[0][0]}  {ranked[0][1]:.4f}"))
        else:
            rows: list[dict[str, Any]] = [{name: key, "probability": share} for key, share in ranked]
            self._print(table(rows))

    def _print(self, line: str) -> None:
        print(line, file=self.out, flush=True)

    def _done(self, track: Track) -> None:
        if not isinstance(track, AudioTrack):
            return
        if track.beyond:
            self.beyond += track.beyond
            what = f"{track.beyond} samples beyond {sources.LOUDEST:g} times full scale were taken for that"
            say(f"{track.name}: {what}", aside=True)
        if not self.piped:
            name = str(self.results[Path(track.name)])
            line = {"file": name, "seconds": round(track.seconds, 3)}
            say(text(line, True) if self.options.as_json else f"{name}: {track.seconds:.2f} s")


@contextmanager
def _kept(output: Path) -> Iterator[TextIO]:
    """A text that gets its name when it is whole; if nothing comes of it, what stood there stays."""
    place = output.resolve()
    beside = not place.exists() or place.is_file()  # a device or a pipe has nothing beside it
    whole = atomic.whole(place) if beside else nullcontext(place)
    with whole as path, path.open("w", encoding="utf-8") as file:
        yield file


def _check(inputs: Sequence[Path], options: Options) -> None:
    if PIPE in inputs and len(inputs) > 1:
        raise UserError("-: expected no other input beside standard input")
    if PIPE in inputs and options.offline:
        raise UserError("--offline: standard input has no end to wait for; expected a file")
    if options.form not in sources.FORMATS:
        raise UserError(f"--format: unknown '{options.form}'; {nearest(options.form, sources.FORMATS)}")
    for name, value in (
        ("--rate", options.rate),
        ("--channels", options.channels),
        ("--slots", options.slots),
        ("--threads", options.threads),
    ):
        if value is not None and value < 1:
            raise UserError(f"{name}: expected at least 1, not {value}")
    if options.chunk_ms is not None and options.steps is not None:
        raise UserError("--chunk-ms and --steps: expected one of them")
    if options.plot is not None and not options.plot.parent.is_dir():
        raise UserError(f"{options.plot}: no such folder; expected a file in an existing one")
