"""The base of inference over files or a pipe: options, session, errors of single inputs, and report."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from lrnnx_app.console import terminal
from lrnnx_app.console.interrupts import terminated_as_interrupted
from lrnnx_app.console.terminal import say
from lrnnx_app.disk.files import below
from lrnnx_app.errors import DataError, StreamError, UserError, one_of
from lrnnx_app.infer.report import Recorder, report, text
from lrnnx_app.machine import chosen_device
from lrnnx_app.runs.run import Run
from lrnnx_app.streaming import sources
from lrnnx_app.streaming.numbers import Flushing
from lrnnx_app.streaming.session import StreamingSession, live_chunk
from lrnnx_app.streaming.slots import Pace, Timing, stream, whole
from lrnnx_app.streaming.threads import threads
from lrnnx_app.streaming.tracks import Track
from lrnnx_app.tasks._base import Task

PIPE = Path("-")
SLOTS = 16  # files side by side, unless the user gives a number


@dataclass(frozen=True)
class Options:
    """The user's options; see `lrnnx infer --help`."""

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

    def check(self, inputs: Sequence[Path]) -> None:
        """Raises:
        UserError: options that do not go together, or with these inputs.
        """
        if PIPE in inputs and len(inputs) > 1:
            raise UserError("-: expected no other input beside standard input")
        if PIPE in inputs and self.offline:
            raise UserError("--offline: standard input has no end to wait for; expected a file")
        one_of("--format", self.form, sources.FORMATS)
        if self.chunk_ms is not None and self.steps is not None:
            raise UserError("--chunk-ms and --steps: expected one of them")
        if self.plot is not None and not self.plot.parent.is_dir():
            raise UserError(f"{self.plot}: no such folder; expected a file in an existing one")


class Job:
    """Runs the inputs of one call, each as a track through a session. A subclass defines `track`.

    Attributes:
        streams_only: whether a model that cannot stream is refused, instead of run on whole files.
        out: where results go.
        aside: where the report goes; standard error if results go to a pipe.
        delay: largest delay of a sampling rate conversion, in seconds.
        beyond: number of samples that were clipped because they were too loud.
    """

    streams_only = True

    def __init__(self, run: Run, task: Task, inputs: Sequence[Path], options: Options) -> None:
        self.run, self.task, self.options = run, task, options
        self.model = task.model.to(chosen_device(options.device)).eval()
        self.rate = task.spec.sample_rate
        self.inputs = [file for path in inputs for file in self.found(path)]
        self.out, self.aside = sys.stdout, sys.stderr if self.shows_results() else sys.stdout
        self.delay, self.beyond = 0.0, 0
        self.recorder = Recorder(self.rate, options.plot is not None)
        self._bad: list[str] = []

    # ---- methods that a subclass may define ----
    def found(self, path: Path) -> Iterator[Path]:
        """The files of an input: those in it if it is a folder, else the input itself."""
        yield from below(path) if path != PIPE and path.is_dir() else (path,)

    def shows_results(self) -> bool:
        """Whether results go to standard output."""
        raise NotImplementedError

    def track(self, path: Path) -> Track:
        """The track for one input.

        Raises:
            UserError: the input cannot be used.
        """
        raise NotImplementedError

    def done(self, track: Track) -> None:
        """Called when a track's result is complete."""

    def words(self) -> AbstractContextManager[TextIO]:
        """Where lines of results go."""
        return nullcontext(sys.stdout)

    # ---- methods for all ----
    def go(self) -> int:
        """Run on every input and print the report. Returns the exit code."""
        session = None if self.options.offline else self._session()
        with threads(self.options.threads or (1 if session else None)), Flushing():
            try:
                with terminated_as_interrupted(), self.words() as self.out:
                    timing = self._whole() if session is None else self._streamed(session)
            except BrokenPipeError:  # the reader closed the pipe; later flushes must not fail
                terminal.hang_up()
                return 0
            costs = report(self.model, session, timing, self.rate, self.delay, self.beyond)
        print(text(costs, self.options.as_json), file=self.aside, flush=True)
        self.recorder.draw(self.options.plot)
        if self._bad:
            raise DataError(
                f"{len(self._bad)} of {len(self.inputs)} inputs failed, the others are done: "
                + ", ".join(self._bad)
            )
        return 130 if timing.interrupted else 0

    def pipe(self) -> sources.Pipe:
        """PCM from standard input."""
        options = self.options
        return sources.Pipe(terminal.source(), options.rate or self.rate, options.channels, options.form)

    def _whole(self) -> Timing:
        """Run the model on one whole file after another."""
        total = Timing()
        for track in self._tracks():
            try:
                one = whole(self.model, track)
            except UserError as error:
                self._failed(track.name, error)
                continue
            self.done(track)
            total.steps, total.compute = total.steps + one.steps, total.compute + one.compute
        return total

    def _streamed(self, session: StreamingSession) -> Timing:
        pace = Pace(session.chunk / self.rate) if self.options.realtime else None
        session.warm_up()
        return stream(session, self._tracks(), self.done, pace, self._failed)

    def _tracks(self) -> Iterator[Track]:
        for path in self.inputs:
            try:
                track = self.track(path)
            except UserError as error:
                self._failed(str(path), error)
                continue
            self.delay = max(self.delay, track.delay)
            yield track

    def _failed(self, name: str, error: UserError) -> None:
        """Report the error of one of several inputs and go on; if there is only one, raise it."""
        if len(self.inputs) == 1:
            raise error
        say(f"error: {error}", aside=True)
        self._bad.append(name)

    def _session(self) -> StreamingSession | None:
        """A session; None if the model cannot stream and whole files are allowed."""
        options, hop = self.options, self.model.hop
        slots = options.slots or min(len(self.inputs), SLOTS)
        chunk = options.steps or live_chunk(self.model)
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
            if self.streams_only or options.running or options.realtime or PIPE in self.inputs:
                raise
            return None
