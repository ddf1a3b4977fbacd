"""Many tracks through one session, side by side: a slot that becomes free takes the next track."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from lrnnx_app.console.terminal import say
from lrnnx_app.errors import UserError
from lrnnx_app.models._base import Model
from lrnnx_app.streaming.numbers import Flushing, bounded
from lrnnx_app.streaming.session import StreamingSession
from lrnnx_app.streaming.sources import Steps
from lrnnx_app.streaming.tracks import Track

RECENT = 100_000  # chunks whose times are kept
EVERYTHING = 1 << 62  # more steps than any source has


@dataclass
class Timing:
    """Work and time of streams.

    Attributes:
        steps: number of steps, of all streams.
        compute: seconds of reading, computing and writing, without waiting for live input.
        chunks: seconds of each of the latest chunks.
        restarts: number of resets of streams whose numbers were not finite.
        paced: whether chunks had deadlines.
        misses: number of chunks that were not done when the next one arrived.
        late: seconds by which the worst of these was late.
    """

    steps: int = 0
    compute: float = 0.0
    chunks: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    restarts: int = 0
    paced: bool = False
    misses: int = 0
    late: float = 0.0
    interrupted: bool = False

    def percentiles(self) -> dict[str, float]:
        """Milliseconds that 50, 95 and 99 % of the chunks stayed within, by their names in a report."""
        shares = (50, 95, 99)
        found = 1000 * np.percentile(self.chunks or (0.0,), shares)
        return {f"chunk_p{share}_ms": round(float(ms), 3) for share, ms in zip(shares, found, strict=True)}


@dataclass
class Pace:
    """Delays chunks so that they come at the rate of a live source."""

    seconds: float  # of a chunk
    start: float = 0.0
    count: int = 0

    def wait(self) -> None:
        """Sleep until the next chunk would have arrived."""
        self.start = self.start or time.perf_counter()
        self.count += 1
        time.sleep(max(0.0, self.start + self.count * self.seconds - time.perf_counter()))

    def late(self) -> float:
        """Seconds from the arrival of the next chunk to now; negative if this chunk was done in time."""
        return time.perf_counter() - self.start - (self.count + 1) * self.seconds


def stream(
    session: StreamingSession,
    tracks: Iterable[Track],
    done: Callable[[Track], None],
    pace: Pace | None = None,
    failed: Callable[[str, UserError], None] | None = None,
) -> Timing:
    """Run every track from its start to its end, and call `done` with each track that has ended.

    If a track's input or output fails, the track is aborted, or finished early if it is live. Then `failed`
    is called with its name and the error; if that returns, the other tracks go on. Without `failed` the error
    is raised. Ctrl-C finishes all running tracks early. After any other error they are aborted.
    """
    timing, waiting = Timing(paced=pace is not None), iter(tracks)
    slots: list[Track | None] = [None] * session.batch
    try:
        while _fill(slots, waiting, session):
            if pace:
                pace.wait()
            started = time.perf_counter()
            parts = [
                None if track is None else _part(slots, i, track, session.chunk, failed)
                for i, track in enumerate(slots)
            ]
            ready = time.perf_counter()
            before = list(session.restarts)
            outputs = _push(session, parts, timing)
            timing.restarts += _told(session.restarts, before, slots)
            for i, (track, part) in enumerate(zip(slots, parts, strict=True)):
                if track is None or part is None:
                    continue
                with _on_its_own(slots, i, track, failed):
                    if len(part.x):
                        track.write(outputs[i] if outputs.ndim == 2 else outputs[i, : len(part.x)])
                    if len(part.x) < session.chunk:
                        track.finish()
                        slots[i] = None
                        done(track)
            live = any(track is not None and track.live for track in slots)
            timing.compute += time.perf_counter() - (ready if live else started)
            if pace and (late := pace.late()) > 0:
                timing.misses, timing.late = timing.misses + 1, max(timing.late, late)
    except KeyboardInterrupt:
        timing.interrupted = True
        for track in filter(None, slots):
            track.finish()
            done(track)
    except BaseException:
        for track in filter(None, slots):
            track.abort()
        raise
    return timing


@contextmanager
def _on_its_own(
    slots: list[Track | None], i: int, track: Track, failed: Callable[[str, UserError], None] | None
) -> Iterator[None]:
    """Wraps reading or writing of one track: if it fails, only this track ends, and its slot becomes free."""
    try:
        yield
    except UserError as error:
        slots[i] = None
        if track.live:
            track.finish()
        else:
            track.abort()
        if failed is None:
            raise
        failed(track.name, error)


def _part(
    slots: list[Track | None],
    i: int,
    track: Track,
    count: int,
    failed: Callable[[str, UserError], None] | None,
) -> Steps | None:
    with _on_its_own(slots, i, track, failed):
        return track.read(count)
    return None


def _told(now: list[int], before: list[int], slots: list[Track | None]) -> int:
    """The number of streams that were reset; prints a line for each."""
    found = [i for i, (count, old) in enumerate(zip(now, before, strict=True)) if count > old]
    for i in found:
        track = slots[i]
        if track is not None:
            say(f"{track.name}: the model's state was not finite; the stream began anew", aside=True)
    return len(found)


def whole(model: Model, track: Track) -> Timing:
    """Run the model once over a whole track."""
    timing, started = Timing(), time.perf_counter()
    try:
        x, dt = track.read(EVERYTHING)
        like = next(model.parameters())
        x = x.to(like.device) if model.spec.tokens else bounded(x.to(like), model.spec)
        with torch.inference_mode(), Flushing():
            y, _ = model.eval()(x[None], dt=None if dt is None else dt[None].to(like))
        track.write(y[0].cpu())
        track.finish()
    except BaseException:
        track.abort()
        raise
    timing.steps, timing.compute = len(x), time.perf_counter() - started
    timing.chunks.append(timing.compute)
    return timing


def _fill(slots: list[Track | None], waiting: Iterator[Track], session: StreamingSession) -> bool:
    """Give each free slot the next track and reset its state. False if no track is left to run."""
    free = [track is None for track in slots]
    for i, empty in enumerate(free):
        slots[i] = next(waiting, None) if empty else slots[i]
    fresh = [empty and track is not None for empty, track in zip(free, slots, strict=True)]
    if any(fresh):
        session.reset(fresh)
    return any(track is not None for track in slots)


def _push(session: StreamingSession, parts: list[Steps | None], timing: Timing) -> Tensor:
    """The outputs of one chunk, on the CPU. If a track ends in the middle of a hop, silence fills it."""
    lengths = [0 if part is None else len(part.x) for part in parts]
    if not any(lengths):
        return torch.zeros(session.batch, 0, session.spec.d_output)
    some = next(part for part in parts if part is not None)
    x = some.x.new_zeros(session.batch, session.chunk, *some.x.shape[1:])
    dt = None if some.dt is None else some.dt.new_zeros(session.batch, session.chunk)
    for i, part in enumerate(parts):
        if part is not None:
            x[i, : lengths[i]] = part.x
            if dt is not None and part.dt is not None:
                dt[i, : lengths[i]] = part.dt
    started = time.perf_counter()
    if session.hop > 1 or all(length in (0, session.chunk) for length in lengths):
        active = None if all(lengths) else [length > 0 for length in lengths]
        y = session.push(x, dt, active=active)
    else:
        y = session.push(x, dt, lengths=lengths)
    y = y.cpu()
    timing.chunks.append(time.perf_counter() - started)
    timing.steps += sum(lengths)
    return y
