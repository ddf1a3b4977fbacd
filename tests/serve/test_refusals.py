"""What a server refuses: each with its code and its reason, and no other stream is disturbed."""

import asyncio
import os
import socket as sockets
import struct
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np
import pytest

from lrnnx_app.serve import server as server_module
from tests.serve.conftest import Client, Started, alone
from tests.serve.test_streams import CHUNK, sound

NAN = np.full(CHUNK, np.nan, "<f4").tobytes()
EVENT = struct.Struct("<if")


async def steady(client: Client, count: int) -> np.ndarray:
    return np.stack([await client.exchange(part) for part in sound(count)])


@pytest.mark.parametrize(
    ("message", "code", "reason"),
    [
        (bytes(1023), 1007, "1023 bytes: expected a multiple of 4, the bytes of a step"),
        (NAN, 1007, "a number is not finite"),
        (bytes(5000), 1009, "the message is too large"),
        ("more", 1003, "expected binary messages, or the text end"),
    ],
    ids=["half a sample", "not a number", "too large", "text"],
)
def test_a_message_that_does_not_fit_ends_its_stream_alone(
    serving: Started, runs: dict[str, Path], message: bytes | str, code: int, reason: str
) -> None:
    async def go() -> np.ndarray:
        async with serving(message_bytes=4096) as served, served.client() as calm, served.client() as bad:
            first = await steady(calm, 2)
            send = bad.socket.send_str if isinstance(message, str) else bad.socket.send_bytes
            await send(message)  # type: ignore[arg-type]
            assert await bad.closed() == (code, reason)
            rest = [await calm.exchange(part) for part in sound(6)[2:]]
            await served.until(lambda: len(list(served.engine.live())) == 1)
            assert not served.engine.away
            assert served.server.closed[code] == 1
            return np.concatenate([first, np.stack(rest)])

    assert np.array_equal(asyncio.run(go()), alone(runs["denoiser"], sound(6)))


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (EVENT.pack(64, 1.0), "a token is not among 0 to 63"),
        (EVENT.pack(-1, 1.0), "a token is not among 0 to 63"),
        (EVENT.pack(0, -1.0), "a dt is negative or not finite"),
        (EVENT.pack(0, float("inf")), "a dt is negative or not finite"),
        (bytes(12), "12 bytes: expected a multiple of 8, the bytes of a step"),
    ],
)
def test_an_event_that_none_can_be_ends_its_stream(serving: Started, event: bytes, reason: str) -> None:
    async def go() -> tuple[int, str]:
        async with serving("events") as served, served.client() as client:
            await client.socket.send_bytes(EVENT.pack(3, 0.5) + event if len(event) == 8 else event)
            return await client.closed()

    assert asyncio.run(go()) == (1007, reason)


def test_frames_that_are_none_and_frames_that_break_off(serving: Started) -> None:
    """Bytes that are no frame are refused; half a frame before the end of a connection is no frame."""

    async def go() -> None:
        async with serving() as served, served.client() as calm:
            async with served.client() as bad:
                transport = bad.socket._response.connection.transport  # type: ignore[union-attr]
                transport.write(b"\xff" * 64)
                code, reason = await bad.closed()
                assert (code, reason) == (1002, "not the frames of a WebSocket")
            await served.until(lambda: len(list(served.engine.live())) == 1)
            assert not served.engine.away
            async with served.client() as half:
                transport = half.socket._response.connection.transport  # type: ignore[union-attr]
                transport.write(b"\x82\xfe\x04\x00abcd" + bytes(100))  # of 1024 bytes
                await asyncio.sleep(0.05)
                await half.cut()
            await served.until(lambda: half.hello["resume"] in served.engine.away)
            assert served.engine.away[half.hello["resume"]].taken == 0
            await steady(calm, 2)

    asyncio.run(go())


def test_messages_beyond_the_rate_are_refused(serving: Started) -> None:
    async def go() -> tuple[int, str]:
        async with serving(messages=10) as served, served.client() as client:
            for _ in range(21):  # two seconds of messages may come at once
                await client.socket.send_bytes(b"")
            return await client.closed()

    assert asyncio.run(go()) == (1008, "more than 10 messages a second; put more into each")


def test_a_client_that_does_not_read_is_closed(
    serving: Started, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its stream waits first, so that nothing piles up; others go on."""
    monkeypatch.setattr(server_module, "SLOW", 0.3)
    monkeypatch.setattr("lrnnx_app.serve.line.CLOSING", 0.3)
    monkeypatch.setattr("lrnnx_app.serve.engine.SPEED", 1000)
    monkeypatch.setattr("lrnnx_app.serve.server.SPEED", 1000)

    async def go() -> np.ndarray:
        async with serving(messages=1e6) as served, served.client() as calm:
            raw = sockets.socket()
            raw.setsockopt(sockets.SOL_SOCKET, sockets.SO_RCVBUF, 4096)
            raw.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(raw, ("127.0.0.1", served.port))
            keys = "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
            keys += "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
            await loop.sock_sendall(raw, f"GET /stream/model HTTP/1.1\r\nHost: h\r\n{keys}\r\n".encode())
            await served.until(lambda: len(list(served.engine.live())) == 2)
            frame = b"\x82\xfe" + struct.pack(">H", 4 * CHUNK) + bytes(4) + bytes(4 * CHUNK)

            async def flood() -> None:
                while True:
                    await loop.sock_sendall(raw, frame)

            flooding = asyncio.ensure_future(flood())
            got = await steady(calm, 20)
            await served.until(lambda: served.server.closed[1008] == 1)
            await served.until(lambda: len(list(served.engine.live())) == 1)
            flooding.cancel()
            await asyncio.gather(flooding, return_exceptions=True)
            raw.close()
            return np.concatenate([got, np.stack([await calm.exchange(part) for part in sound(22)[20:]])])

    assert np.array_equal(asyncio.run(go()), alone(runs["denoiser"], sound(22)))


@pytest.mark.parametrize(
    ("path", "headers", "status", "reason"),
    [
        ("/stream/model", {}, 401, "no token, or a wrong one"),
        ("/stream/model", {"Authorization": "Bearer secre"}, 401, "no token, or a wrong one"),
        ("/stream/model", {"Authorization": "Basic secret"}, 401, "no token, or a wrong one"),
        ("/stream/model", {"Sec-WebSocket-Protocol": "lrnnx, bearer.sécret"}, 401, "no token"),
        ("/metrics", {}, 401, "no token, or a wrong one"),
        ("/stream/other", {"Authorization": "Bearer secret"}, 404, "expected one of: model"),
        ("/stream/model?format=mp3", {"Authorization": "Bearer secret"}, 400, "format: unknown 'mp3'"),
        ("/stream/model?resume=x", {"Authorization": "Bearer secret"}, 410, "no such stream"),
        (
            "/stream/model",
            {"Authorization": "Bearer secret", "Origin": "http://evil.example"},
            403,
            "a page of this origin may not connect",
        ),
        ("/stream/model", {"Authorization": "Bearer secret", "Origin": "null"}, 403, "may not connect"),
        ("/stream/model", {"Authorization": "Bearer secret"}, 400, "WebSocket"),
    ],
)
def test_who_may_not_connect_is_told_why(
    serving: Started, path: str, headers: dict[str, str], status: int, reason: str
) -> None:
    async def go() -> None:
        async with serving(token="secret") as served:
            answer = await served.session.get(served.url(path), headers=headers)
            assert answer.status == status
            assert reason in await answer.text()
            assert not list(served.engine.live())

    asyncio.run(go())


@pytest.mark.parametrize(
    "options",
    [
        {"headers": {"Authorization": "Bearer secret"}},
        {"protocols": ["bearer.secret"]},
        {"protocols": ["lrnnx", "bearer.secret"]},  # as a page does
        {"protocols": ["bearer.secret", "lrnnx"], "origin": "http://localhost:{port}"},
        {"headers": {"Authorization": "bearer secret"}, "origin": "https://friend.example"},
    ],
)
def test_who_may_connect_and_no_token_is_logged(
    serving: Started, options: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    async def go() -> str | None:
        async with serving(token="secret", origins=["https://friend.example:443"]) as served:
            if "origin" in options:
                options["origin"] = options["origin"].format(port=served.port)
            async with served.client(**options) as client:
                await steady(client, 1)
                return client.socket.protocol

    assert asyncio.run(go()) == ("lrnnx" if "lrnnx" in options.get("protocols", ()) else None)
    assert [text for text in caplog.messages if "secret" in text] == []


def test_beyond_the_most_streams_none_is_taken_until_one_leaves(serving: Started) -> None:
    async def go() -> None:
        async with serving(streams=2) as served, served.client() as one:
            async with served.client():
                with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
                    async with served.client():
                        pass
            await served.until(lambda: len(list(served.engine.live())) == 1)
            async with served.client() as client:
                await steady(client, 1)
            await steady(one, 1)

    asyncio.run(go())


def test_health_and_numbers_are_told(serving: Started) -> None:
    async def go() -> None:
        async with serving() as served, served.client() as client:
            await steady(client, 3)
            health = await served.session.get(served.url("/healthz"))
            assert (health.status, await health.text()) == (200, "ok\n")
            answer = await served.session.get(served.url("/metrics"))
            assert answer.headers["Content-Type"].startswith("text/plain; version=0.0.4")
            lines = (await answer.text()).splitlines()
            assert 'lrnnx_streams{model="model"} 1' in lines
            assert 'lrnnx_answer_seconds_count{model="model"} 3' in lines
            assert 'lrnnx_answer_seconds_bucket{model="model",le="+Inf"} 3' in lines
            families = [line.split()[2] for line in lines if line.startswith("# TYPE")]
            assert len(families) == len(set(families))
            served.server.draining = True
            assert (await served.session.get(served.url("/healthz"))).status == 503

    asyncio.run(go())


def test_a_folder_of_pages_is_served_and_nothing_beside_it(serving: Started, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (tmp_path / "page").mkdir()
    (tmp_path / "page" / "index.html").write_text("<p>here")
    os.symlink(tmp_path / "secret", tmp_path / "page" / "link")

    async def go() -> None:
        async with serving(page=tmp_path / "page") as served:
            for path in ("/", "/index.html"):
                assert await (await served.session.get(served.url(path))).text() == "<p>here"
            for path in ("/../secret", "/%2e%2e/secret", "/link", "/none"):
                assert (await served.session.get(served.url(path))).status in (403, 404), path

    asyncio.run(go())
