"""The server: who may connect, the life of a stream, ticks, and an end that answers what came before."""

import asyncio
import hmac
import ssl
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import WSMsgType, web

from lrnnx_app.console.terminal import as_json
from lrnnx_app.errors import UserError
from lrnnx_app.serve import metrics
from lrnnx_app.serve.engine import SPEED, Engine
from lrnnx_app.serve.line import Connection
from lrnnx_app.serve.stream import Stream
from lrnnx_app.serve.wire import GOES, UNALLOWED, UNFIT, Refused, wire_of

AWAY = 60.0  # seconds that the state of a stream is kept for its return
SLOW = 5.0  # seconds after which a client that does not read is closed
LOOK = 0.5  # seconds between looks whether a client that is not read from is there
POLL = 0.002  # seconds between looks whether all streams have a chunk
WAITING = 64  # pieces of a stream after which its messages are not read on
ANY = "*"  # in place of an origin
BEARER = "bearer."  # before the token, in a protocol that a page offers
END = "end"  # the text that ends a stream
DONE = 1000
RESUMED = "resumed by another connection"
LOOPBACK = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Limits:
    """What clients may do.

    Attributes:
        token: which they must show; "" for none.
        origins: pages of other places that may connect; ANY for all.
        message_bytes: of a message at the most.
        messages: of a stream, a second.
    """

    token: str = ""
    origins: Sequence[str] = ()
    message_bytes: int = 1 << 16
    messages: float = 500.0


class Server:
    """Serves engines, by their names, under /stream/NAME.

    Args:
        page: a folder of static files to serve beside them.
    """

    def __init__(self, engines: Sequence[Engine], limits: Limits, page: Path | None = None) -> None:
        self.engines, self.limits = {engine.name: engine for engine in engines}, limits
        self.draining, self.closed = False, Counter[int]()
        self._wakes = {engine.name: asyncio.Event() for engine in engines}
        self._tasks: set[asyncio.Task[None]] = set()
        self.ticking: list[asyncio.Task[None]] = []
        self._origins = {_plain(origin) for origin in limits.origins if origin != ANY}
        self._page = page
        self.app = web.Application()
        self.app.router.add_get("/healthz", self._healthz)
        self.app.router.add_get("/metrics", self._metrics)
        self.app.router.add_get("/stream/{model}", self._stream)
        if page is not None:
            self.app.router.add_get("/", self._index)
            self.app.router.add_static("/", page)

    @asynccontextmanager
    async def listening(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
        """While entered, clients may connect; gives the port.

        Raises:
            UserError: the address cannot be bound.
        """
        runner = web.AppRunner(self.app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, host, port, ssl_context=tls).start()
            except OSError as error:
                raise UserError(f"{host}:{port}: {error.strerror or error}; choose another one") from error
            port = runner.addresses[0][1]
            self._origins |= {(kind, name, port) for kind in ("http", "https") for name in (host, *LOOPBACK)}
            self.ticking = [asyncio.ensure_future(self._run(engine)) for engine in self.engines.values()]
            yield port
        finally:
            tasks = [*self.ticking, *self._tasks]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await runner.cleanup()

    async def drain(self, seconds: float) -> None:
        """Let live streams go on for so long; then answer what came, and close them."""
        self.draining = True
        until = time.monotonic() + seconds
        while time.monotonic() < until and any(True for _ in self._live()):
            await asyncio.sleep(0.05)
        await asyncio.gather(*(self._finish(stream) for stream in list(self._live())))

    async def _finish(self, stream: Stream) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self._answered(stream), SLOW)
        if isinstance(stream.line, Connection):
            await stream.line.close(GOES, "the server stops")

    def _live(self) -> list[Stream]:
        return [stream for engine in self.engines.values() for stream in engine.live()]

    # ---- pages ----
    async def _healthz(self, request: web.Request) -> web.Response:
        return web.Response(
            text="draining\n" if self.draining else "ok\n", status=503 if self.draining else 200
        )

    async def _index(self, request: web.Request) -> web.FileResponse:
        assert self._page is not None
        return web.FileResponse(self._page / "index.html")

    async def _metrics(self, request: web.Request) -> web.Response:
        self._known(request)
        lines = (
            line
            for engine in self.engines.values()
            for line in engine.meter.lines(engine.name, sum(1 for _ in engine.live()), len(engine.away))
        )
        return web.Response(
            body=metrics.text(lines, self.closed).encode(),
            headers={"Content-Type": "text/plain; version=0.0.4; charset=utf-8"},
        )

    # ---- who may connect ----
    def _known(self, request: web.Request) -> None:
        """Refuse who does not show the token: in the header Authorization, or as a page, in a protocol."""
        if not self.limits.token:
            return
        offered = request.headers.get("Sec-WebSocket-Protocol", "").split(",")
        words = [part.strip() for part in offered]
        shown = [word.removeprefix(BEARER) for word in words if word.startswith(BEARER)]
        kind, _, value = request.headers.get("Authorization", "").partition(" ")
        shown += [value.strip()] if kind.lower() == "bearer" else []
        if not any(hmac.compare_digest(each.encode(), self.limits.token.encode()) for each in shown):
            raise web.HTTPUnauthorized(
                text="no token, or a wrong one\n", headers={"WWW-Authenticate": "Bearer"}
            )

    def _same_place(self, request: web.Request) -> None:
        """Refuse a page of another place, which a browser lets connect to any server."""
        origin = request.headers.get("Origin")
        if origin is not None and ANY not in self.limits.origins and _plain(origin) not in self._origins:
            raise web.HTTPForbidden(text="a page of this origin may not connect\n")

    def _admitted(self, engine: Engine, request: web.Request) -> Stream:
        """A new stream, or the one that comes back, in a slot."""
        key = request.query.get("resume")
        if key is None:
            wire = wire_of(engine.task, engine.timed, request.query.get("format", ""))
            stream = Stream(wire, engine.chunk, engine.whole, self.limits.messages)
        elif (found := engine.find(key)) is not None:
            stream = found
        else:
            raise web.HTTPGone(text=f"no such stream: it has ended, or was away for more than {AWAY:g} s\n")
        if stream.owner is not None:  # its client comes back before we know that it went
            old, stream.owner, stream.line = stream.line, None, None
            if isinstance(old, Connection):
                self._spawn(old.close(UNALLOWED, RESUMED))
        elif not engine.join(stream):
            raise web.HTTPServiceUnavailable(text="all streams are taken; try again later\n")
        engine.away.pop(stream.key, None)
        engine.meter.joined += key is None
        engine.meter.resumed += key is not None
        return stream

    # ---- a stream ----
    async def _stream(self, request: web.Request) -> web.StreamResponse:
        self._known(request)
        self._same_place(request)
        engine = self.engines.get(request.match_info["model"])
        if engine is None:
            raise web.HTTPNotFound(text=f"no such model; expected one of: {', '.join(self.engines)}\n")
        if self.draining:
            raise web.HTTPServiceUnavailable(text="the server stops\n")
        try:
            stream = self._admitted(engine, request)
        except Refused as refused:
            raise web.HTTPBadRequest(text=f"{refused.reason}\n") from refused
        stream.owner = line = Connection(self.limits.message_bytes)
        try:
            await line.open(request)
            await line.send(as_json(stream.hello(engine.about)))
            if stream.owner is not line:
                raise Refused(UNALLOWED, RESUMED)
            stream.line = line
            await self._listen(engine, stream, line)
        except Refused as refused:
            await line.close(refused.code, refused.reason)
        finally:
            self.closed[line.code or 1006] += 1
            if stream.owner is line:
                self._left(engine, stream, keep=line.code in (0, 1001, 1006) and not self.draining)
        return line.response

    def _left(self, engine: Engine, stream: Stream, keep: bool) -> None:
        stream.owner = stream.line = None
        engine.leave(stream, keep)
        if keep:
            left = stream.left = time.monotonic()
            asyncio.get_running_loop().call_later(AWAY, _forget, engine, stream, left)

    async def _listen(self, engine: Engine, stream: Stream, line: Connection) -> None:
        """Take messages until one side closes.

        Raises:
            Refused: a message cannot be taken; or the stream has ended, and all of it is answered.
        """
        wake = self._wakes[engine.name]
        if stream.pieces:
            wake.set()
        while not line.code:
            if stream.ended:
                await self._answered(stream)
                if not stream.pieces:
                    raise Refused(DONE, "the stream has ended")
            message = await line.receive()
            if message.type is WSMsgType.BINARY:
                stream.take(message.data, time.monotonic())
                wake.set()
                if len(stream.pieces) > WAITING:
                    await self._answered(stream, WAITING)
            elif message.type is WSMsgType.TEXT:
                if message.data.strip() != END:
                    raise Refused(UNFIT, f"expected binary messages, or the text {END}")
                stream.end(time.monotonic(), engine.delay)
                wake.set()

    async def _answered(self, stream: Stream, left: int = 0) -> None:
        """Wait until so many pieces are left, or the connection is closed."""
        line = stream.line
        while len(stream.pieces) > left and line is not None and line is stream.line and not line.gone:
            stream.moved.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(stream.moved.wait(), LOOK)

    # ---- ticks ----
    async def _run(self, engine: Engine) -> None:
        """Tick once for each chunk's time, sooner if all streams have a chunk or one has several."""
        wake, start = self._wakes[engine.name], 0.0
        while True:
            await wake.wait()
            await asyncio.sleep(max(0.0, start + engine.period / SPEED - time.monotonic()))
            wake.clear()
            live, ready, several = engine.ready()
            if not ready:
                continue
            wake.set()
            now = time.monotonic()
            if ready < live and not several and now < start + engine.period:
                await asyncio.sleep(POLL)
                continue
            start = now
            for stream, message in engine.tick():
                if stream.line is not None:
                    await stream.line.send(message)
                stream.moved.set()
            for stream in list(engine.live()):
                if stream.stuck and now - stream.stuck > SLOW and isinstance(stream.line, Connection):
                    self._spawn(stream.line.close(UNALLOWED, f"the client has not read for {SLOW:g} s"))
                    stream.line = None
                    stream.moved.set()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _forget(engine: Engine, stream: Stream, left: float) -> None:
    """Drop a stream that has not come back since it left."""
    if stream.left == left and engine.away.get(stream.key) is stream:
        del engine.away[stream.key]


def _plain(origin: str) -> tuple[str, str, int | None]:
    """Scheme, host and port of an origin; empty if it is none."""
    try:
        parts = urlsplit(origin)
        return parts.scheme, parts.hostname or "", parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    except ValueError:
        return "", "", None
