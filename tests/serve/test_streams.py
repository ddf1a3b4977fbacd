"""Streams of a server: what they get is what a session gives, whatever others do; they pause and return."""

import asyncio
import json
import random
from pathlib import Path

import aiohttp
import numpy as np
import pytest
import torch

from lrnnx_app.runs.run import Run
from lrnnx_app.serve import server as server_module
from lrnnx_app.streaming.session import StreamingSession
from tests.serve.conftest import SLOTS, Client, Served, Started, alone

CHUNK = 256


def sound(chunks: int, seed: int = 0) -> np.ndarray:
    return (0.3 * np.random.default_rng(seed).standard_normal((chunks, CHUNK))).astype("<f4")


@pytest.mark.parametrize("size", [1, 255, 256, 700, 9 * 256])
def test_samples_are_those_of_a_session_however_they_come(
    serving: Started, runs: dict[str, Path], size: int
) -> None:
    """All of the input is answered, the last part of a chunk too."""
    x = sound(9)[:, :CHUNK].reshape(-1)[: -CHUNK // 3]
    padded = np.pad(x, (0, -len(x) % CHUNK)).reshape(-1, CHUNK)

    async def go() -> bytes:
        async with serving(messages=1e6) as served, served.client() as client:
            assert client.hello["chunk"] == CHUNK
            for start in range(0, len(x), size):
                await client.socket.send_bytes(x[start : start + size].tobytes())
            await client.socket.send_str("end")
            got = b""
            async for message in client.socket:
                got += message.data
            assert client.socket.close_code == 1000
            return got

    got = np.frombuffer(asyncio.run(go()), "<f4")
    assert np.array_equal(got, alone(runs["denoiser"], padded).reshape(-1)[: len(x)])


def test_16_bit_samples_are_answered_in_16_bits(serving: Started, runs: dict[str, Path]) -> None:
    x = (sound(4) * 2**15).astype("<i2")

    async def go() -> np.ndarray:
        async with serving() as served, served.client("?format=s16le") as client:
            return np.stack([await client.exchange(part) for part in x])

    expected = alone(runs["denoiser"], x.astype(np.float32) / 2**15) * 2**15
    assert np.abs(asyncio.run(go()) - expected).max() <= 0.5


def test_no_stream_is_disturbed_by_others_that_come_and_go(
    serving: Started, runs: dict[str, Path], device: str
) -> None:
    """Others connect, send, leave, vanish, come back and misbehave at random; nothing is left of them."""
    draw, refusals = random.Random(0), set[int]()

    async def other(served: Served, seed: int) -> None:
        key = ""
        for turn in range(6):
            try:
                async with served.client(f"?resume={key}" if key else "") as client:
                    key = client.hello["resume"]
                    for part in sound(draw.randrange(6), seed + turn):
                        await client.exchange(part)
                    kind = draw.randrange(4)
                    if kind == 0:
                        await client.cut()
                    elif kind == 1:
                        await client.socket.send_bytes(b"odd")
                        assert (await client.closed())[0] == 1007
                    elif kind == 2:
                        await client.socket.send_bytes(bytes(100))  # part of a chunk
                    key = key if kind == 0 else ""
            except aiohttp.WSServerHandshakeError as error:
                refusals.add(error.status)
                key = ""
            await asyncio.sleep(draw.random() / 50)

    async def steady(served: Served, seed: int) -> np.ndarray:
        async with served.client() as client:
            return np.stack([await client.exchange(part) for part in sound(60, seed)])

    async def go() -> list[np.ndarray]:
        async with serving(streams=10, device=device) as served:
            calm = [asyncio.ensure_future(steady(served, seed)) for seed in range(3)]
            await asyncio.sleep(0.1)
            await asyncio.gather(*(other(served, 100 * i) for i in range(9)))
            got = await asyncio.gather(*calm)
            await served.until(lambda: not list(served.engine.live()))
            assert len(served.engine.away) <= served.engine.streams
            await served.until(lambda: not served.server._tasks)
            assert refusals <= {503}  # all streams are taken
            return got

    for seed, got in enumerate(asyncio.run(go())):
        assert np.array_equal(got, alone(runs["denoiser"], sound(60, seed), device))


def test_a_stream_that_was_cut_off_goes_on_where_it_was(serving: Started, runs: dict[str, Path]) -> None:
    x = sound(8)

    async def go() -> np.ndarray:
        async with serving() as served:
            async with served.client() as client:
                first = [await client.exchange(part) for part in x[:3]]
                await client.socket.send_bytes(x[3, :100].tobytes())  # which must not be lost
                await served.until(lambda: next(served.engine.live()).taken == 3 * CHUNK + 100)
                await client.cut()
            await served.until(lambda: client.hello["resume"] in served.engine.away)
            async with served.client() as another:  # takes its slot
                await another.exchange(sound(1, 9)[0])
                async with served.client(f"?resume={client.hello['resume']}") as client:
                    assert (client.hello["taken"], client.hello["given"]) == (3 * CHUNK + 100, 3 * CHUNK)
                    await client.socket.send_bytes(x[3, 100:].tobytes())
                    first.append(np.frombuffer(await client.socket.receive_bytes(), "<f4"))
                    return np.stack(first + [await client.exchange(part) for part in x[4:]])

    assert np.array_equal(asyncio.run(go()), alone(runs["denoiser"], x))


def test_a_stream_that_is_cut_off_after_its_end_is_answered_when_it_returns(
    serving: Started, runs: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def go() -> tuple[bytes, int | None]:
        async with serving() as served:
            monkeypatch.setattr(served.engine, "tick", list)  # nothing is fed for now
            async with served.client() as client:
                await client.socket.send_bytes(sound(1)[0, :100].tobytes())
                await client.socket.send_str("end")
                await served.until(lambda: next(served.engine.live()).ended)
                await client.cut()
            monkeypatch.undo()
            await served.until(lambda: bool(served.engine.away))
            async with served.client(f"?resume={client.hello['resume']}") as client:
                return b"".join([message.data async for message in client.socket]), client.socket.close_code

    got, code = asyncio.run(go())
    padded = np.pad(sound(1)[:, :100], ((0, 0), (0, CHUNK - 100)))
    assert code == 1000
    assert np.array_equal(np.frombuffer(got, "<f4"), alone(runs["denoiser"], padded)[0, :100])


def test_a_client_that_comes_back_before_its_old_connection_ends_takes_over(
    serving: Started, runs: dict[str, Path]
) -> None:
    x = sound(4)

    async def go() -> np.ndarray:
        async with serving() as served, served.client() as old:
            got = [await old.exchange(part) for part in x[:2]]
            async with served.client(f"?resume={old.hello['resume']}") as new:
                assert await old.closed() == (1008, "resumed by another connection")
                return np.stack(got + [await new.exchange(part) for part in x[2:]])

    assert np.array_equal(asyncio.run(go()), alone(runs["denoiser"], x))


def test_a_stream_is_forgotten_in_time_or_when_it_says_good_bye(
    serving: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "AWAY", 1.0)

    async def gone(served: Served, client: Client) -> None:
        await served.until(lambda: not served.engine.away and not list(served.engine.live()))
        answer = await served.session.get(served.url() + f"?resume={client.hello['resume']}")
        assert answer.status == 410
        assert "has ended, or was away" in await answer.text()

    async def go() -> None:
        async with serving() as served:
            async with served.client() as client:
                await client.cut()
            await served.until(lambda: bool(served.engine.away))
            await gone(served, client)
            async with served.client() as client:
                await client.exchange(sound(1)[0])
            await gone(served, client)

    asyncio.run(go())


def test_a_pause_changes_nothing(serving: Started, runs: dict[str, Path]) -> None:
    async def go() -> np.ndarray:
        async with serving() as served, served.client() as client, served.client() as other:
            got = []
            for part in sound(4):
                got.append(await client.exchange(part))
                for _ in range(3):
                    await other.exchange(part)
            return np.stack(got)

    assert np.array_equal(asyncio.run(go()), alone(runs["denoiser"], sound(4)))


def test_a_classifier_of_events_gives_classes(serving: Started, runs: dict[str, Path]) -> None:
    """Messages of any number of events; each is answered, and by a session's classes."""
    draw = np.random.default_rng(0)
    parts = []
    for count in (1, 64, 7, 150, 3):
        steps = np.zeros(count, [("x", "<i4"), ("dt", "<f4")])
        steps["x"], steps["dt"] = draw.integers(0, 64, count), draw.random(count)
        parts.append(steps)

    async def go() -> list[dict[str, float]]:
        async with serving("events") as served, served.client() as client, served.client() as other:
            assert (client.hello["gives"], client.hello["format"]) == ("classes", "steps")
            got = []
            for steps in parts:
                await client.socket.send_bytes(steps.tobytes())
                await other.socket.send_bytes(parts[1].tobytes())
                for _ in range(-(-len(steps) // 64)):
                    got.append(await client.socket.receive_json(timeout=20))
            return got

    got = asyncio.run(go())
    task = Run(runs["events"]).task()
    session = StreamingSession(task.model, SLOTS, 64)
    steps = np.concatenate(parts)
    x, dt = torch.from_numpy(steps["x"].astype(np.int64)), torch.from_numpy(steps["dt"].copy())
    y = session.push(x.expand(SLOTS, -1), dt.expand(SLOTS, -1))
    assert len(got) == 7
    assert list(got[-1]["classes"]) == list(task.meaning(y[0]).values)
    assert got[-1]["classes"] == pytest.approx(task.meaning(y[0]).values, rel=1e-4)
    assert got[-1]["time"] == pytest.approx(float(dt.sum()), rel=1e-4)
    assert json.dumps(got)


def test_a_classifier_of_sound_gives_classes_with_the_time(serving: Started) -> None:
    async def go() -> list[dict[str, float]]:
        async with serving("classifier") as served, served.client("?format=s16le") as client:
            got = []
            for _ in range(2):
                await client.socket.send_bytes(bytes(512))
                got.append(await client.socket.receive_json(timeout=20))
            return got

    first, second = asyncio.run(go())
    assert (first["seconds"], second["seconds"]) == (0.016, 0.032)
    assert set(first["classes"]) == {"no", "yes", "else"}
