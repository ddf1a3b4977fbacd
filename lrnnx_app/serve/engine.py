"""The streams of one model: slots of sessions, fed together at each tick."""

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

from lrnnx_app.errors import RunError
from lrnnx_app.models._base import Model
from lrnnx_app.runs.run import Run
from lrnnx_app.serve.metrics import Meter
from lrnnx_app.serve.stream import Piece, Stream
from lrnnx_app.serve.wire import GIVES, SAMPLES
from lrnnx_app.streaming.session import StreamingSession, live_chunk

STEPS_TICK = 0.01  # seconds between ticks of a model whose steps have no rate
SPEED = 4  # times its own rate at which a stream may be fed
FULL = 1 << 15  # bytes that a client may leave unread before its stream waits

Answer = tuple[Stream, bytes | str]


class Engine:
    """Feeds the live streams of one run, one chunk of each that has one at a tick.

    Streams have slots in sessions of a fixed number of streams. A session computes all its slots at each
    tick, in the same shapes: what one stream gets does not depend on the others, to the last bit.

    Args:
        name: of the model, for clients.
        streams: most live streams.
        slots: streams of a session; a smaller session costs less while few streams are live.

    Attributes:
        period: seconds of a chunk.
        away: streams whose client is away, by their keys.

    Raises:
        RunError: the task of the run has no inference that streams.
        StreamError: the model cannot be streamed.
    """

    def __init__(self, name: str, run: Run, device: str, streams: int, slots: int) -> None:
        self.task = run.task()
        if self.task.inference not in GIVES:
            kind = run.recipe.task.name
            raise RunError(f"{run.path}: the task {kind} gives no samples or classes; it cannot be served")
        model, spec = self.task.model.to(device).eval(), self.task.spec
        self.name, self.delay, self.chunk = name, model.delay, live_chunk(model)
        self.timed = model.hop == 1 and run.timed
        self.whole = model.hop > 1 or GIVES[self.task.inference] == SAMPLES
        self.period = self.chunk / spec.sample_rate if spec.sample_rate else STEPS_TICK
        self.streams, self.away, self.meter = streams, dict[str, Stream](), Meter()
        slots = min(slots, streams)
        self.banks = [
            Bank(model, slots, self.chunk, self.timed, self.whole) for _ in range(-(-streams // slots))
        ]
        self.about: dict[str, Any] = {
            "model": name,
            "rate": spec.sample_rate,
            "chunk": self.chunk,
            "delay": model.delay,
            "lookahead": model.lookahead,
        }

    def live(self) -> Iterator[Stream]:
        """The streams that have a slot."""
        return (stream for bank in self.banks for stream in bank.streams if stream is not None)

    def join(self, stream: Stream) -> bool:
        """Give the stream a slot, with the state that it had; False if all are taken."""
        if sum(1 for _ in self.live()) >= self.streams:
            return False
        bank = next(bank for bank in self.banks if None in bank.streams)
        bank.join(stream)
        return True

    def leave(self, stream: Stream, keep: bool) -> None:
        """Free the stream's slot, and keep its state for its return if `keep`."""
        for bank in self.banks:
            if stream in bank.streams:
                bank.leave(stream, keep)
        if keep:
            if len(self.away) >= self.streams:
                self.away.pop(next(iter(self.away)))  # the one that is away for longest
            self.away[stream.key] = stream

    def find(self, key: str) -> Stream | None:
        """The stream of that key, away or live."""
        return self.away.get(key) or next((stream for stream in self.live() if stream.key == key), None)

    def ready(self) -> tuple[int, int, bool]:
        """How many streams are live, how many have a piece and a client who reads, if any has several."""
        live = list(self.live())
        ready = [stream for stream in live if stream.pieces and stream.line is not None]
        return len(live), len(ready), any(len(stream.pieces) > 1 and not stream.stuck for stream in ready)

    def tick(self) -> list[Answer]:
        """Feed one piece of each stream that has one and whose client reads; returns the answers."""
        now, answers = time.monotonic(), []
        for bank in self.banks:
            fed = [i for i, stream in enumerate(bank.streams) if stream is not None and _fit(stream, now)]
            if fed:
                answers += bank.feed(fed, self.meter)
        if answers:
            self.meter.tick(time.monotonic() - now, self.period)
        self.meter.restarts = sum(sum(bank.session.restarts) for bank in self.banks)
        return answers


def _fit(stream: Stream, now: float) -> bool:
    """Whether a piece of the stream can be fed and answered now; notes since when its client does not."""
    if not stream.pieces or stream.line is None or stream.line.gone:
        return False
    if stream.line.waiting() <= FULL:
        stream.stuck = 0.0
        return True
    stream.stuck = stream.stuck or now
    return False


class Bank:
    """One session, the streams in its slots, and its input."""

    def __init__(self, model: Model, slots: int, chunk: int, timed: bool, whole: bool) -> None:
        self.session = StreamingSession(model, slots, chunk)
        self.session.warm_up(timed)
        self.streams: list[Stream | None] = [None] * slots
        spec = model.spec
        shape = (slots, chunk) if spec.tokens else (slots, chunk, spec.d_input)
        self._x = np.zeros(shape, np.int64 if spec.tokens else np.float32)
        self._dt = np.zeros((slots, chunk), np.float32) if timed else None
        self._whole, self._rate = whole, spec.sample_rate

    def join(self, stream: Stream) -> None:
        at = self.streams.index(None)
        self.streams[at] = stream
        if stream.state is None:
            self.session.reset([i == at for i in range(len(self.streams))])
        else:
            self.session.load_state(stream.state, [at])

    def leave(self, stream: Stream, keep: bool) -> None:
        at = self.streams.index(stream)
        self.streams[at] = None
        stream.state = self.session.state([at]) if keep else None

    def feed(self, slots: list[int], meter: Meter) -> list[Answer]:
        """Feed one piece of the stream in each of these slots; returns their answers."""
        turns: list[tuple[int, Stream, Piece]] = []
        lengths = [0] * len(self.streams)
        for i in slots:
            stream = self.streams[i]
            assert stream is not None
            piece = stream.pieces.popleft()
            dt = None if self._dt is None else self._dt[i]
            lengths[i] = stream.wire.fill(piece.steps, self._x[i], dt)
            stream.time += lengths[i] / self._rate if self._rate else self._elapsed(i, lengths[i])
            turns.append((i, stream, piece))
        x, dt = torch.from_numpy(self._x), None if self._dt is None else torch.from_numpy(self._dt)
        if self._whole:
            y = self.session.push(x, dt, active=[length > 0 for length in lengths])
        else:  # one way through the model for every tick, whoever is fed how much
            y = self.session.push(x, dt, lengths=lengths)
        y, now, answers = y.float().cpu().numpy(), time.monotonic(), []
        for i, stream, piece in turns:
            stream.given += piece.answered
            answers.append(
                (stream, stream.wire.answer(y[i] if y.ndim == 2 else y[i, : piece.answered], stream.time))
            )
            meter.answer(now - piece.came)
        return answers

    def _elapsed(self, i: int, count: int) -> float:
        return float(count) if self._dt is None else float(self._dt[i, :count].sum(dtype=np.float64))
