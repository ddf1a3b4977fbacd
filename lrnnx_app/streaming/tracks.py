"""Tracks: one stream each, from its source to its sink."""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from lrnnx_app.data.resample import Resampler
from lrnnx_app.streaming.sinks import Sink
from lrnnx_app.streaming.sources import Resampled, Steps

Watch = Callable[[Tensor, Tensor], None]  # called with inputs and outputs, for a plot


class Track(Protocol):
    """A stream: its steps are read, and the outputs for them are written.

    Attributes:
        name: used in messages.
        live: whether the input arrives in real time, so that reading may wait.
        delay: largest delay of the conversions of the sampling rate, in seconds.
    """

    name: str
    live: bool

    @property
    def delay(self) -> float: ...

    def read(self, count: int) -> Steps:
        """The next `count` steps; fewer only at the end."""
        ...

    def write(self, y: Tensor) -> None:
        """Write the outputs (T, d_output) of the steps read, or one (d_output,) of a model that pools."""
        ...

    def finish(self) -> None:
        """Complete the result, also where the stream ended early."""
        ...

    def abort(self) -> None:
        """Remove the result."""
        ...


class AudioTrack:
    """Mono sound that is converted to the model's rate and back. It writes as many samples as it reads.

    Args:
        name: used in messages.
        source: the input, converted from `rate` to `model_rate` (Hz).
        sink: takes samples at `rate`.
        late: samples by which the model's output is later than its input. So many zeros follow the input, and
            the first outputs are left out.
    """

    def __init__(
        self,
        name: str,
        source: Resampled,
        sink: Sink,
        rate: int,
        model_rate: int,
        live: bool = False,
        watch: Watch | None = None,
        late: int = 0,
    ) -> None:
        self.name, self.live, self.rate = name, live, rate
        self._source, self._sink, self._watch = source, sink, watch
        self._back = Resampler(model_rate, rate)
        self._written, self._x = 0, torch.zeros(0)
        self._owed = self._early = late  # zeros that are still to be read, outputs still to be left out

    @property
    def delay(self) -> float:
        """Largest delay of the conversions of the sampling rate, in seconds."""
        return self._source.delay + self._back.delay

    @property
    def beyond(self) -> int:
        """Number of samples that were clipped because they were too loud."""
        return self._source.beyond

    @property
    def seconds(self) -> float:
        return self._written / self.rate

    def read(self, count: int) -> Steps:
        x = self._source.read(count)
        zeros = min(self._owed, count - len(x))
        self._owed -= zeros
        self._x = torch.cat((x, x.new_zeros(zeros))) if zeros else x
        return Steps(self._x[:, None])

    def write(self, y: Tensor) -> None:
        if self._watch is not None:
            self._watch(self._x, y[:, 0])
        y = y[self._early :]
        self._early -= min(self._early, len(self._x))
        self._emit(self._back.push(y[:, 0]))

    def finish(self) -> None:
        self._emit(self._back.finish())
        self._sink.close()

    def abort(self) -> None:
        self._sink.abort()

    def _emit(self, samples: Tensor) -> None:
        samples = samples[: self._source.taken - self._written]
        self._written += len(samples)
        if len(samples):
            self._sink.write(samples)


class OutputTrack:
    """A stream whose result is its last output, such as the classes of a file.

    Args:
        name: used in messages.
        read: returns the next steps.
        show: called after each chunk with the time so far and the latest output (d_output,).
        done: called once at the end with the same.
        rate: steps per unit of time, for steps without dt.
        delay: see `Track`.
    """

    def __init__(
        self,
        name: str,
        read: Callable[[int], Steps],
        done: Callable[[float, Tensor], None],
        show: Callable[[float, Tensor], None] | None = None,
        rate: int = 1,
        live: bool = False,
        delay: float = 0.0,
    ) -> None:
        self.name, self.live, self.delay = name, live, delay
        self._read, self._done, self._show, self._rate = read, done, show, rate
        self._time, self._elapsed, self._latest = 0.0, 0.0, None

    def read(self, count: int) -> Steps:
        steps = self._read(count)
        self._elapsed = len(steps.x) / self._rate if steps.dt is None else float(steps.dt.sum())
        return steps

    def write(self, y: Tensor) -> None:
        self._time += self._elapsed
        self._latest = y if y.ndim == 1 else y[-1]
        if self._show is not None:
            self._show(self._time, self._latest)

    def finish(self) -> None:
        if self._latest is not None:
            self._done(self._time, self._latest)

    def abort(self) -> None:
        pass


def in_parts(whole: Steps) -> Callable[[int], Steps]:
    """A function that reads the given steps part by part."""
    at = 0

    def read(count: int) -> Steps:
        nonlocal at
        part = slice(at, at + count)
        at += count
        return Steps(whole.x[part], None if whole.dt is None else whole.dt[part])

    return read
