"""Loads a server of live streams from another process: the time from a chunk sent to its answer."""

import asyncio
import os
import random
import subprocess
import sys
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrnnx_app.bench import streaming
from lrnnx_app.errors import LrnnxError, needs
from lrnnx_app.models._base import Model
from lrnnx_app.runs.run import audio_model
from lrnnx_app.streaming.session import StreamingSession
from lrnnx_app.streaming.threads import threads

try:
    import aiohttp
except ImportError as missing:
    raise needs("serve", missing) from missing

GOAL = 0.040  # seconds of a round trip that 99 % shall stay within
LATE = 0.100  # seconds after which an answer counts as late
PUSHES = 100  # of the session alone
SETTLE = 1.0  # seconds after the last connect that are not measured
CLOCK = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


@contextmanager
def server(run: str, voices: int, slots: int, device: str) -> Iterator[tuple[str, int]]:
    """The address and the process of `lrnnx serve`.

    Raises:
        LrnnxError: it does not start.
    """
    words = ["serve", run, "--port", "0", "--streams", str(voices), "--slots", str(slots)]
    command = [sys.executable, "-m", "lrnnx_app.cli", *words, "--device", device, "--drain", "0"]
    with _on(_shares(device)[0]):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        if "/stream/" not in line:
            raise LrnnxError(f"{run}: the server did not start; `lrnnx serve {run}` says why")
        yield line.split()[0].replace("ws", "http", 1), process.pid
    finally:
        process.terminate()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def _shares(device: str) -> tuple[list[int], list[int]]:
    """The cores of the server, which is one if it computes on a CPU, and those of the load."""
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
    at = 1 if device == "cpu" else len(cores) - 1
    return (cores[:at], cores[at:]) if len(cores) > 1 else (cores, cores)


@contextmanager
def _on(cores: list[int]) -> Iterator[None]:
    """While entered, this thread and what it starts have these cores, where the system allows it."""
    if not cores:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def row(run: str, voices: int, seconds: float, device: str, slots: int | None = None) -> dict[str, Any]:
    """Round trips of so many voices that send a chunk whenever one would be recorded.

    Beside the server's share of a core stands that of the session alone, for the same chunks.

    Raises:
        StreamError: the model is not for sound.
    """
    model = audio_model(Path(run))
    with server(run, voices, slots or voices, device) as (address, process), _on(_shares(device)[1]):
        trips, busy = asyncio.run(_load(address, voices, seconds, process))
    p50, p99 = (1000 * float(np.percentile(trips, share)) for share in (50, 99))
    return {
        "voices": voices,
        "slots": slots or voices,
        "p50 ms": p50,
        "p99 ms": p99,
        "worst ms": 1000 * float(trips.max()),
        "chunks": len(trips),
        "late": int((trips > LATE).sum()),
        "server's CPU": busy,
        **({"session's CPU": _session_share(model, voices)} if device == "cpu" else {}),
    }


def _session_share(model: Model, voices: int) -> float:
    """The share of a core that a session takes for so many voices."""
    session = StreamingSession(model, voices)
    session.warm_up()
    x = 0.1 * torch.randn(voices, session.chunk, session.spec.d_input)
    with threads(1), _on(_shares("cpu")[0]):
        started = time.thread_time()
        for _ in range(PUSHES):
            session.push(x)
        return (time.thread_time() - started) * session.spec.sample_rate / session.chunk / PUSHES


def alone(run: str, device: str, seconds: float) -> int:
    """The most voices of the session alone, on the cores that a server has."""
    with threads(1), _on(_shares(device)[0]):
        return streaming.largest(audio_model(Path(run)), device, seconds)


def good(found: dict[str, Any]) -> bool:
    """Whether 99 % of the round trips stayed within GOAL and none was late."""
    return found["p99 ms"] < 1000 * GOAL and not found["late"]


def most(rows: list[dict[str, Any]]) -> int:
    """The largest number of voices that is good."""
    return max((row["voices"] for row in rows if good(row)), default=0)


def search(run: str, seconds: float, device: str, start: int = 8) -> Iterator[dict[str, Any]]:
    """A row for each number of voices that is tried; the largest good one is the most, within an eighth."""
    best, voices = 0, start
    while good(found := row(run, voices, seconds, device)):
        yield found
        best, voices = voices, 2 * voices
    yield found
    for part in (2, 4, 8):
        if (more := best + best // part) > best:
            yield (found := row(run, more, seconds, device))
            best = more if good(found) else best


async def _load(address: str, voices: int, seconds: float, process: int) -> tuple[np.ndarray, float]:
    """Round trips in seconds, and the share of a core that the server took."""
    trips: list[float] = []
    begin, end = asyncio.Event(), asyncio.Event()
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(connector=connector) as session:
        tasks = []
        for _ in range(voices):
            tasks.append(asyncio.ensure_future(_voice(session, address, begin, end, trips)))
            await asyncio.sleep(0.005)
        await asyncio.sleep(SETTLE)
        before, started = _cpu_seconds(process), time.perf_counter()
        begin.set()
        await asyncio.sleep(seconds)
        busy = (_cpu_seconds(process) - before) / (time.perf_counter() - started)
        end.set()
        await asyncio.gather(*tasks)
    return np.array(trips), busy


async def _voice(
    session: aiohttp.ClientSession,
    address: str,
    begin: asyncio.Event,
    end: asyncio.Event,
    trips: list[float],
) -> None:
    async with session.ws_connect(address, compress=0) as socket:
        hello = await socket.receive_json()
        period = hello["chunk"] / hello["rate"]
        sound = [
            (0.1 * np.random.default_rng(i).standard_normal(hello["chunk"])).astype("<f4").tobytes()
            for i in range(4)
        ]
        sent: deque[float] = deque()

        async def answers() -> None:
            async for message in socket:
                if message.type in (aiohttp.WSMsgType.BINARY, aiohttp.WSMsgType.TEXT):
                    trip = time.perf_counter() - sent.popleft()
                    if begin.is_set() and not end.is_set():
                        trips.append(trip)

        reading = asyncio.ensure_future(answers())
        due = time.perf_counter() + random.random() * period
        count = 0
        while not end.is_set():
            await asyncio.sleep(due - time.perf_counter())
            sent.append(time.perf_counter())
            await socket.send_bytes(sound[count % len(sound)])
            due, count = due + period, count + 1
        with suppress(TimeoutError):
            await asyncio.wait_for(socket.close(), 5)
        reading.cancel()


def _cpu_seconds(process: int) -> float:
    """CPU time of a process; 0 where the system does not tell."""
    path = Path(f"/proc/{process}/stat")
    if not path.is_file():
        return 0.0
    fields = path.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / CLOCK
