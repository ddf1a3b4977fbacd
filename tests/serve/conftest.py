"""A server of untrained models in the loop of a test, and clients for it."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest
import torch

from lrnnx_app.runs.run import Run
from lrnnx_app.serve.engine import Engine
from lrnnx_app.serve.server import Limits, Server
from lrnnx_app.streaming.session import StreamingSession
from tests.streaming.conftest import runs

__all__ = ["runs"]
SLOTS = 4
Started = Callable[..., AbstractAsyncContextManager["Served"]]


class Served:
    """A server that listens, and how to reach it."""

    def __init__(self, server: Server, port: int, session: aiohttp.ClientSession) -> None:
        self.server, self.port, self.session = server, port, session
        self.engine = next(iter(server.engines.values()))

    def url(self, path: str = "/stream/model") -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    @asynccontextmanager
    async def client(self, query: str = "", **options: Any) -> AsyncIterator["Client"]:
        async with self.session.ws_connect(self.url() + query, **options) as socket:
            yield Client(socket, await socket.receive_json())

    async def until(self, true: Callable[[], bool]) -> None:
        """Wait until something is so."""
        async with asyncio.timeout(20):
            while not true():
                await asyncio.sleep(0.005)


class Client:
    """A connection, and the server's first message to it."""

    def __init__(self, socket: aiohttp.ClientWebSocketResponse, hello: dict[str, Any]) -> None:
        self.socket, self.hello = socket, hello

    async def exchange(self, sound: np.ndarray) -> np.ndarray:
        """Send a chunk; returns the answer."""
        await self.socket.send_bytes(sound.tobytes())
        return np.frombuffer(await self.socket.receive_bytes(timeout=20), sound.dtype)

    async def closed(self) -> tuple[int, str]:
        """Code and reason of the close, after what else comes."""
        while (message := await self.socket.receive(timeout=20)).type is not aiohttp.WSMsgType.CLOSE:
            assert message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT), message
        return message.data, message.extra or ""

    async def cut(self) -> None:
        """Go without a word."""
        transport = self.socket._response.connection.transport  # type: ignore[union-attr]
        transport.abort()


@pytest.fixture
def serving(runs: dict[str, Path]) -> Started:
    """Start a server: `async with serving("denoiser") as served`."""

    @asynccontextmanager
    async def start(
        kind: str = "denoiser",
        streams: int = 8,
        slots: int = SLOTS,
        page: Path | None = None,
        device: str = "cpu",
        **limits: Any,
    ) -> AsyncIterator[Served]:
        engine = Engine("model", Run(runs[kind]), device, streams, slots)
        server = Server([engine], Limits(**limits), page)
        async with server.listening("127.0.0.1", 0) as port, aiohttp.ClientSession() as session:
            yield Served(server, port, session)

    return start


def alone(run: Path, sound: np.ndarray, device: str = "cpu") -> np.ndarray:
    """What a session gives for sound (chunks, chunk) that goes through it undisturbed."""
    session = StreamingSession(Run(run).task().model.to(device), SLOTS)
    x = torch.from_numpy(sound)[:, None, :, None].expand(-1, SLOTS, -1, -1)
    return np.stack([session.push(part)[0, :, 0].cpu().numpy() for part in x])
