"""The report of a stream's speed and memory, as text or JSON, and a picture of its first minute."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrnnx_app.console import terminal
from lrnnx_app.machine import peaks
from lrnnx_app.models._base import Model
from lrnnx_app.streaming.session import StreamingSession
from lrnnx_app.streaming.slots import Timing
from lrnnx_app.tasks._base import Meaning

DRAWN_SECONDS = 60
DRAWN_POINTS = 5000
WORDS = {  # in the text of a report, if it holds the key
    "lookahead_ms": "look-ahead {lookahead_ms} ms",
    "resampling_ms": "conversion of the rate {resampling_ms} ms",
    "latency_ms": "latency {latency_ms} ms ({algorithmic_ms} algorithmic + {chunk_p99_ms} compute)",
    "chunk_p50_ms": "chunk p50 {chunk_p50_ms} ms, p95 {chunk_p95_ms} ms, p99 {chunk_p99_ms} ms",
    "real_time_factor": "real-time factor {real_time_factor}",
    "prompt_ms": "prompt {prompt_ms} ms",
    "tokens_per_second": "{tokens_per_second} tokens/s",
    "threads": "threads {threads}",
    "restarts": "{restarts} restarts of a stream that was not finite",
    "samples_beyond": "{samples_beyond} samples too loud",
    "misses": "{misses} chunks late, at most {late_ms} ms",
    "peak_mib": "memory {peak_mib:.0f} MiB",
    "peak_gpu_mib": "GPU {peak_gpu_mib:.0f} MiB, graph {graph}",
}


def report(
    model: Model,
    session: StreamingSession | None,
    timing: Timing,
    rate: int,
    delay: float,
    beyond: int = 0,
) -> dict[str, Any]:
    """Latency and times of a chunk (ms), real-time factor and memory (MiB); fewer without a session.

    Args:
        rate: steps of the model per second; 0 if they have no rate.
        delay: delay of sampling rate conversions, in seconds.
        beyond: number of samples that were clipped because they were too loud.
    """
    costs: dict[str, Any] = {"steps": timing.steps, "compute_seconds": round(timing.compute, 3)}
    if beyond:
        costs["samples_beyond"] = beyond
    device = next(model.parameters()).device
    if device.type == "cpu":
        costs["threads"] = torch.get_num_threads()
    if rate:
        costs["lookahead_ms"] = round(1000 * model.lookahead / rate, 2)
        if timing.steps:
            costs["real_time_factor"] = round(timing.compute * rate / timing.steps, 4)
    if session is not None:
        if rate:
            if delay:
                costs["resampling_ms"] = round(1000 * delay, 2)
            costs["algorithmic_ms"] = round(1000 * ((session.chunk + model.delay) / rate + delay), 2)
        costs |= timing.percentiles()
        if rate:
            costs["latency_ms"] = round(costs["algorithmic_ms"] + costs["chunk_p99_ms"], 2)
        if timing.paced:
            costs["misses"], costs["late_ms"] = timing.misses, round(1000 * timing.late, 2)
        if timing.restarts:
            costs["restarts"] = timing.restarts
        costs["slots"] = session.batch
        costs["graph"] = session.graph_reason or "replayed"
    return costs | peaks(device)


def text(costs: dict[str, Any], as_json: bool) -> str:
    """The report as one line of JSON, or as text."""
    if as_json:
        return terminal.as_json(costs)
    given = {"graph": "none", **costs}
    return " · ".join(words.format_map(given) for key, words in WORDS.items() if key in costs)


class Recorder:
    """Keeps inputs and outputs of the first minute for a plot, if one is wanted."""

    def __init__(self, rate: int, wanted: bool) -> None:
        self.rate, self.wanted = rate, wanted
        self._waves: tuple[list[Tensor], list[Tensor]] = ([], [])
        self._times: list[float] = []
        self._meanings: list[Meaning] = []

    def waves(self, x: Tensor, y: Tensor) -> None:
        if self.wanted and len(self._waves[0]) * len(x) < DRAWN_SECONDS * self.rate:
            self._waves[0].append(x.clone())
            self._waves[1].append(y.clone())

    def meaning(self, time: float, meaning: Meaning) -> None:
        if self.wanted and len(self._times) < DRAWN_POINTS:
            self._times.append(time)
            self._meanings.append(meaning)

    def draw(self, path: Path | None) -> None:
        """Spectrograms of input and output, or the values of an output over time."""
        from lrnnx_app import plots

        if path is None:
            return
        if self._waves[0]:
            pair = {name: torch.cat(w) for name, w in zip(("input", "output"), self._waves, strict=True)}
            plots.save(plots.spectrograms(pair, self.rate), path)
        elif self._times:
            unit = "s" if self.rate else "steps or the data's unit"
            first = self._meanings[0]
            curves = {name: [m.values[name] for m in self._meanings] for name in sorted(first.values)}
            plots.save(plots.curves(self._times, curves, unit, first.column), path)
