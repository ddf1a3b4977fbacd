"""One live stream: what came in and waits for its turn, what was answered, and its connection."""

import asyncio
import secrets
from collections import deque
from typing import Any, NamedTuple, Protocol

from torch import Tensor

from lrnnx_app.serve.wire import SAMPLES, UNALLOWED, Refused, Wire

BURST = 2.0  # seconds of messages at the most that may come at once


class Piece(NamedTuple):
    """Steps that are fed together: when they came, their bytes, and how many of them are answered."""

    came: float
    steps: bytes
    answered: int


class Line(Protocol):
    """A connection, as a stream sees it."""

    @property
    def gone(self) -> bool:
        """Whether nothing can be sent any more."""
        ...

    def waiting(self) -> int:
        """Bytes that were sent and that the client's system has not taken."""
        ...

    async def send(self, message: bytes | str) -> None: ...


class Stream:
    """The state of one stream outside its session.

    Args:
        wire: how its steps and outputs travel.
        chunk: most steps that are fed together.
        whole: whether always so many are fed; else a message is fed as it came.
        rate: messages a second that it may send.

    Attributes:
        key: the token by which its client resumes it.
        owner: the connection that it belongs to; None while its client is away.
        line: the same once the client was greeted, and until it is closed.
        state: its session's state while it is away; None before its first step.
        taken, given: steps that came, steps that were answered.
        time: seconds, or the sum of dt, that were answered.
        ended: whether its client has sent the end.
        moved: set when a piece was answered or the stream is refused.
        stuck: since when its client does not read; 0 if it does.
        left: when its client went away.
    """

    def __init__(self, wire: Wire, chunk: int, whole: bool, rate: float) -> None:
        self.wire, self.key = wire, secrets.token_urlsafe(16)
        self.pieces: deque[Piece] = deque()
        self.line: Line | None = None
        self.owner: object = None
        self.state: dict[str, Tensor] | None = None
        self.taken = self.given = 0
        self.time = self.stuck = self.left = 0.0
        self.moved, self.ended = asyncio.Event(), False
        self._chunk, self._whole, self._rest = chunk, whole, bytearray()
        self._rate, self._credit, self._last = rate, BURST * rate, 0.0

    def take(self, message: bytes, now: float) -> None:
        """Let the steps of a message wait for their turn.

        Raises:
            Refused: the message holds no steps, or too many messages came.
        """
        self._credit = min(BURST * self._rate, self._credit + (now - self._last) * self._rate) - 1
        self._last = now
        if self._credit < 0:
            raise Refused(UNALLOWED, f"more than {self._rate:g} messages a second; put more into each")
        self.wire.check(message)
        self.taken += len(message) // self.wire.step.itemsize
        size = self._chunk * self.wire.step.itemsize
        if not self._whole:
            for start in range(0, len(message), size):
                self._add(message[start : start + size], now)
        elif not self._rest and len(message) == size:
            self._add(message, now)
        else:
            self._rest += message
            while len(self._rest) >= size:
                self._add(bytes(self._rest[:size]), now)
                del self._rest[:size]

    def end(self, now: float, delay: int) -> None:
        """Nothing more comes: silence fetches the last `delay` outputs and fills the last chunk."""
        item = self.wire.step.itemsize
        size, self.ended = self._chunk * item, True
        if self.wire.gives == SAMPLES:
            self._rest += bytes(delay * item)
        for start in range(0, len(self._rest), size):
            part = bytes(self._rest[start : start + size])
            self.pieces.append(Piece(now, part.ljust(size, b"\0"), len(part) // item))
        self._rest.clear()

    def _add(self, steps: bytes, now: float) -> None:
        self.pieces.append(Piece(now, steps, len(steps) // self.wire.step.itemsize))

    def hello(self, about: dict[str, Any]) -> dict[str, Any]:
        """The first message to its client."""
        own = {"format": self.wire.form, "gives": self.wire.gives, "resume": self.key}
        return about | own | {"taken": self.taken, "given": self.given}
