"""`lrnnx serve`: opens the runs, listens, and stops in good order when a signal asks for it."""

import asyncio
import gc
import signal
import ssl
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lrnnx_app.console.terminal import say
from lrnnx_app.errors import DataError, UserError, needs
from lrnnx_app.machine import chosen_device
from lrnnx_app.registry import trained
from lrnnx_app.runs.run import Run
from lrnnx_app.serve.engine import Engine
from lrnnx_app.streaming.threads import threads

try:
    from lrnnx_app.serve.server import ANY, LOOPBACK, Limits, Server
except ImportError as missing:
    raise needs("serve", missing) from missing

SLOTS = 8  # streams of a session on a CPU, unless the user gives a number


@dataclass(frozen=True)
class Options:
    """The user's options; see `lrnnx serve --help`."""

    host: str = "127.0.0.1"
    port: int = 8765
    streams: int = 64
    slots: int | None = None
    message_bytes: int = Limits.message_bytes
    messages: float = Limits.messages
    token_file: Path | None = None
    origins: Sequence[str] = ()
    certificate: Path | None = None
    key: Path | None = None
    page: Path | None = None
    drain: float = 10.0
    device: str | None = None


def serve(runs: Sequence[str], options: Options) -> None:
    """Serve the runs, each given as RUN or NAME=RUN, until a signal stops it.

    Raises:
        UserError: an option does not fit, a run cannot be served, or the address cannot be bound.
    """
    for origin in options.origins:
        if origin != ANY and not origin.startswith(("http://", "https://")):
            raise UserError(f"--origin {origin}: expected a place such as https://example.org, or {ANY}")
    limits = Limits(_token(options.token_file), options.origins, options.message_bytes, options.messages)
    tls, device = _tls(options), chosen_device(options.device)
    if options.page is not None and not (options.page / "index.html").is_file():
        raise DataError(f"{options.page}: expected a folder with an index.html")
    slots = options.slots or (SLOTS if device == "cpu" else options.streams)
    with threads(1):
        engines = [Engine(name, run, device, options.streams, slots) for name, run in _named(runs).items()]
        gc.collect()
        gc.freeze()  # a full collection of all that torch brings takes longer than a chunk
        try:
            asyncio.run(_serve(engines, limits, options, tls))
        finally:
            gc.unfreeze()


async def _serve(engines: list[Engine], limits: Limits, options: Options, tls: ssl.SSLContext | None) -> None:
    server = Server(engines, limits, options.page)
    signals = _signals()
    async with server.listening(options.host, options.port, tls) as port:
        for engine in engines:
            host = f"[{options.host}]" if ":" in options.host else options.host
            _introduce(engine, f"{'wss' if tls else 'ws'}://{host}:{port}")
        if not limits.token and options.host not in LOOPBACK:
            say(f"whoever reaches {options.host} may connect; --token-file names who may", aside=True)
        await _first(signals.get(), *server.ticking)
        say("stopping: live streams may go on for a while; once more to stop at once", aside=True)
        await _first(signals.get(), server.drain(options.drain), *server.ticking)


async def _first(*works: Awaitable[None]) -> None:
    """Wait until one of these is done; what it raises is raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in done:
        task.result()


def _introduce(engine: Engine, place: str) -> None:
    session = engine.banks[0].session
    graph = f"without a CUDA graph: {session.graph_reason}" if session.graph_reason else "a CUDA graph a tick"
    say(f"{place}/stream/{engine.name}  {engine.streams} streams in sessions of {session.batch}, {graph}")


def _signals() -> asyncio.Queue[None]:
    """Gives one entry for each SIGTERM or Ctrl-C from now on."""
    loop, came = asyncio.get_running_loop(), asyncio.Queue[None]()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):  # Windows, where Ctrl-C raises KeyboardInterrupt
            loop.add_signal_handler(number, came.put_nowait, None)
    return came


def _named(runs: Sequence[str]) -> dict[str, Run]:
    """The runs by the names that clients use: the given ones, or those of their recipes.

    Raises:
        UserError: two have the same name.
    """
    found: dict[str, Run] = {}
    for text in runs:
        name, _, path = ("", "", text) if Path(text).exists() else text.rpartition("=")
        run = Run(path)
        name = name or (path if path in trained() else run.recipe.name or run.path.name)
        if name in found:
            raise UserError(f"{text}: there is a model '{name}' already; expected NAME=RUN with another name")
        found[name] = run
    return found


def _token(path: Path | None) -> str:
    if path is None:
        return ""
    try:
        token = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: not readable ({error}); expected a file with a token") from error
    if not token or not token.isprintable() or set(token) & set(' ,"'):
        raise DataError(f"{path}: expected one word of letters, digits and . _ ~ - as the token")
    return token


def _tls(options: Options) -> ssl.SSLContext | None:
    if options.certificate is None and options.key is None:
        return None
    if options.certificate is None:
        raise UserError("--key: expected --certificate with it")
    context: Any = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(options.certificate, options.key)
    except (OSError, ssl.SSLError) as error:
        raise DataError(f"{options.certificate}: no certificate with its key in PEM ({error})") from error
    return context
