"""Times streaming: chunks of many streams (voices), with and without a graph, and steps of every layer."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrnnx_app.bench.report import place
from lrnnx_app.errors import LrnnxError
from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._build import build_layer
from lrnnx_app.layers._constants import frozen
from lrnnx_app.models._base import Model
from lrnnx_app.ops.advance import advance
from lrnnx_app.ops.capture import CaptureError, capture
from lrnnx_app.ops.row_linear import row_linear
from lrnnx_app.registry import LAYERS
from lrnnx_app.streaming.session import StreamingSession, live_chunk

VOICES = {"cuda": (1, 16, 256, 1024, 4096), "cpu": (1, 4, 16)}
MODES = {"cuda": (("cuda graph", True), ("cuda", False)), "cpu": (("cpu", False),)}
PUSHES = (20, 2000)  # least and most pushes that are timed
INPUTS = 8  # different chunks, used in turn
STEP_WIDTH, STEP_BATCHES, STEP_STATES = 512, (1, 64), {"lru": 256, "s5": 256, "s7": 256}
REPLAYS = 20
MATMULS = ((512, 2048), (1024, 512), (512, 512), (1024, 64), (32, 1024))  # inputs and outputs
CHAIN = 20  # matmuls in a row


def rows(
    model: Model, device: str, voices: Sequence[int] = (), hops: Sequence[int] = (1,), seconds: float = 2.0
) -> list[dict[str, Any]]:
    """One dictionary for each mode, number of voices and chunk: time of a push with its result, in ms.

    Args:
        voices: numbers of streams side by side; VOICES if empty.
        hops: sizes of chunks in hops; for a model without hop, in chunks of 16 ms.
        seconds: most seconds for each row.

    Raises:
        LrnnxError: results with and without a graph are not equal in every bit.
    """
    model = model.to(device)
    found = []
    for count in voices or VOICES[device]:
        for chunk in (hop * live_chunk(model) for hop in hops):
            if device == "cuda":
                check_graph(model, count, chunk)
            for mode, graph in MODES[device]:
                times, reason = push_times(model, count, chunk, graph, seconds)
                found.append(
                    _row(model, mode, count, chunk, times) | ({"note": reason} if graph and reason else {})
                )
    return found


def _row(model: Model, mode: str, voices: int, chunk: int, times: np.ndarray) -> dict[str, Any]:
    length = 1000 * chunk / model.spec.sample_rate
    p50, p99 = (float(np.percentile(times, share)) for share in (50, 99))
    return {
        "mode": mode,
        "voices": voices,
        "chunk ms": length,
        "p50 ms": p50,
        "p99 ms": p99,
        "latency ms": length + p99,
        "real-time factor": float(times.mean()) / length,
        "voices × real time": voices * length / float(times.mean()),
        "in time": "yes" if p99 < length else "no",
    }


def push_times(model: Model, voices: int, chunk: int, graph: bool, seconds: float) -> tuple[np.ndarray, str]:
    """The time of each push in ms, and the reason if no graph was replayed."""
    session = StreamingSession(model, voices, chunk, graph=graph)
    session.warm_up()
    shape = (INPUTS, voices, chunk, model.spec.d_input)
    inputs = 0.1 * torch.randn(shape, device=session.device)
    times: list[float] = []
    end = time.perf_counter() + seconds
    for i in range(PUSHES[1]):
        if i > PUSHES[0] and time.perf_counter() > end:
            break
        start = time.perf_counter()
        session.push(inputs[i % INPUTS])
        _wait(session.device)
        times.append(1e3 * (time.perf_counter() - start))
    return np.array(times[3:]), session.graph_reason


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def check_graph(model: Model, voices: int, chunk: int) -> None:
    """Raise LrnnxError unless results with and without a graph are equal in every bit."""
    graph, plain = (StreamingSession(model, voices, chunk, graph=wanted) for wanted in (True, False))
    for _ in range(3):
        x = 0.1 * torch.randn(voices, chunk, model.spec.d_input, device=graph.device)
        if not torch.equal(graph.push(x), plain.push(x)):
            raise LrnnxError(f"{voices} voices in chunks of {chunk}: graph and no graph differ")


def largest(model: Model, device: str, seconds: float = 1.0) -> int:
    """The most voices, to within an eighth, for which 99 % of hops take less time than a hop lasts."""
    model = model.to(device)
    chunk = live_chunk(model)

    def in_time(voices: int) -> bool:
        try:
            times, _ = push_times(model, voices, chunk, device == "cuda", seconds)
        except torch.OutOfMemoryError:
            return False
        return bool(np.percentile(times, 99) < 1000 * chunk / model.spec.sample_rate)

    best = 0
    while in_time(max(1, 2 * best)):
        best = max(1, 2 * best)
    for part in (2, 4, 8):
        more = best + math.ceil(best / part)
        best = more if best >= part and in_time(more) else best
    return best


def step_rows(
    device: str, names: Sequence[str] = (), batches: Sequence[int] = STEP_BATCHES
) -> list[dict[str, Any]]:
    """One dictionary for each layer of width STEP_WIDTH: µs of a step, state included, for each batch."""
    found = []
    for name in names or sorted(LAYERS):
        config = LAYERS[name].Config()
        if name in STEP_STATES:
            config.d_state = STEP_STATES[name]
        if any(field.name == "mode" for field in fields(config)):
            config.mode = "neck"
        layer = build_layer(name, STEP_WIDTH, config)
        assert isinstance(layer, Layer)
        layer = frozen(layer.to(device))
        times = {f"batch {batch} µs": _step_us(layer, batch, device) for batch in batches}
        found.append({"layer": name, "states": layer.n_states, **times})
    return found


def _step_us(layer: Layer, batch: int, device: str) -> float:
    x = torch.randn(batch, layer.d_model, device=device)
    state = layer.init_state(batch)
    active = torch.ones(batch, dtype=torch.bool, device=device)

    def run() -> torch.Tensor:
        with torch.inference_mode():
            y, new = layer.step(x, state)
            advance(state, new, active)
        return y

    return _us(run, x.device)


def matmul_rows(device: str, batches: Sequence[int] = (1, 16, 64)) -> list[dict[str, Any]]:
    """One dictionary for each matmul of typical steps: µs of one in a chain, by `row_linear` and by torch."""
    found = []
    for inputs, outputs in MATMULS:
        weight, row = torch.randn(outputs, inputs, device=device), {}
        for batch in batches:
            x = torch.randn(batch, inputs, device=device)
            for name, run in (("row_linear", row_linear), ("torch", torch.nn.functional.linear)):
                chain = partial(_repeated, run, x, weight)
                row[f"{name} batch {batch} µs"] = _us(chain, x.device) / CHAIN
        found.append({"inputs": inputs, "outputs": outputs, **row})
    return found


def _repeated(run: Callable[..., torch.Tensor], *args: torch.Tensor) -> torch.Tensor:
    with torch.inference_mode():
        return [run(*args) for _ in range(CHAIN)][-1]


def _us(run: Callable[[], torch.Tensor], device: torch.device) -> float:
    if device.type == "cpu":
        return 1e3 * min(_cpu_ms(run) for _ in range(3))
    try:
        graph, _ = capture(run, device)
    except CaptureError:
        return math.nan
    return 1e3 * min(_replay_ms(graph.replay) for _ in range(5))


def _cpu_ms(run: Callable[[], object]) -> float:
    for _ in range(3):
        run()
    start = time.perf_counter()
    for _ in range(REPLAYS):
        run()
    return 1e3 * (time.perf_counter() - start) / REPLAYS


def _replay_ms(replay: Callable[[], object]) -> float:
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(4_000_000)  # the GPU waits while the host enqueues, so the time has no launches in it
    start.record()
    for _ in range(REPLAYS):
        replay()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / REPLAYS


def write_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """The curve from latency (chunk and p99 of its computation) to throughput, one for each mode."""
    from matplotlib.figure import Figure

    from lrnnx_app.plots import save

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for mode in dict.fromkeys((row["mode"], row["chunk ms"]) for row in rows):
        own = [row for row in rows if (row["mode"], row["chunk ms"]) == mode]
        points = sorted((row["latency ms"], row["voices × real time"], row["voices"]) for row in own)
        axes.plot(*zip(*[p[:2] for p in points], strict=True), "o-", label=f"{mode[0]}, chunk {mode[1]:g} ms")
        for latency, throughput, voices in points:
            axes.annotate(
                str(voices), (latency, throughput), fontsize=7, xytext=(3, 3), textcoords="offset points"
            )
    axes.set(xscale="log", yscale="log", xlabel="latency: chunk and p99 of its computation (ms)")
    axes.set(ylabel="throughput (voices × real time)", title=place())
    axes.grid(alpha=0.3, which="both")
    axes.legend(fontsize=8)
    save(figure, path)
