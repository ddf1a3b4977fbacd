"""Runs a long stream at full speed; measures memory, time of a chunk, and the error against float64."""

import copy
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrnnx_app.bench.report import place
from lrnnx_app.models._base import Model
from lrnnx_app.streaming.session import StreamingSession, live_chunk

SEGMENTS = 60
REFERENCE_HOPS = 64  # hops in a chunk of the float64 stream, so that layers use other code for it
ALLOWED_ERROR = 1e-4  # largest relative error of a segment
ALLOWED_GROWTH = 32.0  # MiB by which the smallest memory use may grow from the first half to the second


def rows(model: Model, device: str, seconds: float) -> Iterator[dict[str, Any]]:
    """One dictionary for each of SEGMENTS parts of a stream of `seconds`, when it is over.

    Noise goes through a session hop by hop, and through a float64 copy of the model in long chunks. If the
    error does not grow, nothing drifts.
    """
    model = model.to(device)
    rate, hop = model.spec.sample_rate, max(model.hop, 1)
    reference = StreamingSession(copy.deepcopy(model).double(), chunk=REFERENCE_HOPS * hop)
    session = StreamingSession(model, chunk=live_chunk(model))
    session.warm_up()
    unit = max(reference.chunk, session.chunk)
    length = max(1, round(seconds * rate / SEGMENTS / unit)) * unit
    started = time.perf_counter()
    for segment in range(SEGMENTS):
        x = 0.1 * torch.randn(1, length, model.spec.d_input, generator=torch.Generator().manual_seed(segment))
        y, times = _timed(session, x)
        expected = torch.cat([reference.push(part).cpu() for part in x.split(reference.chunk, 1)], 1)
        row: dict[str, Any] = {
            "stream s": (segment + 1) * length / rate,
            "wall s": time.perf_counter() - started,
            "chunk ms": 1000 * session.chunk / rate,
            "p50 ms": float(np.percentile(times, 50)),
            "p99 ms": float(np.percentile(times, 99)),
            "MiB": resident(),
            "error": float((y - expected).norm() / expected.norm()),
            "finite": all(bool(leaf.isfinite().all()) for leaf in session.state().values()),
        }
        if device == "cuda":
            row["GPU MiB"] = torch.cuda.memory_allocated() / 2**20
        yield row


def _timed(session: StreamingSession, x: Tensor) -> tuple[Tensor, list[float]]:
    outputs, times = [], []
    for part in x.split(session.chunk, 1):
        start = time.perf_counter()
        outputs.append(session.push(part).cpu())
        times.append(1e3 * (time.perf_counter() - start))
    return torch.cat(outputs, 1).double(), times


def resident() -> float:
    """Memory of this process in MiB; its peak, if the system does not tell the present use."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / 2**20
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2 ** (
            20 if sys.platform == "darwin" else 10
        )


def verdict(rows: list[dict[str, Any]]) -> tuple[bool, str]:
    """Whether memory and error did not grow and all numbers are finite, and a sentence about it."""
    settled = rows[max(1, len(rows) // 10) :]
    keys = [key for key in ("MiB", "GPU MiB") if key in settled[0]]
    early, late = settled[: max(1, len(settled) // 2)], settled[len(settled) // 2 :]
    # The minimum is compared, since an allocator may return memory late; a leak raises the minimum too.
    growth = {key: min(row[key] for row in late) - min(row[key] for row in early) for key in keys}
    error = max(row["error"] for row in rows)
    finite = all(row["finite"] for row in rows)
    ok = finite and error < ALLOWED_ERROR and max(growth.values()) < ALLOWED_GROWTH
    grown = ", ".join(f"{value:+.1f} {key}" for key, value in growth.items())
    pace = f"p50 of a chunk {settled[0]['p50 ms']:.3g} → {settled[-1]['p50 ms']:.3g} ms"
    drift = f"error to float64 {rows[0]['error']:.1e} → {rows[-1]['error']:.1e}, at most {error:.1e}"
    return (
        ok,
        f"{rows[-1]['stream s']:.0f} s: {grown} from half to half; {pace}; {drift}; finite: {finite}",
    )


def write_plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Memory, time of a chunk and error over the stream."""
    from matplotlib.figure import Figure

    from lrnnx_app.plots import save

    figure = Figure(figsize=(7, 6), layout="constrained")
    parts = {
        "memory (MiB)": {"process": "MiB", "GPU": "GPU MiB"},
        "a chunk (ms)": {"p50": "p50 ms", "p99": "p99 ms", "its length": "chunk ms"},
        "relative error to float64": {"": "error"},
    }
    minutes = [row["stream s"] / 60 for row in rows]
    plots = figure.subplots(len(parts), 1, sharex=True)
    for axes, (title, curves) in zip(plots, parts.items(), strict=True):
        shown = {label: [row[key] for row in rows] for label, key in curves.items() if key in rows[0]}
        for label, values in shown.items():
            axes.plot(minutes, values, "k:" if label == "its length" else "-", label=label)
        axes.set_ylim(0, 1.15 * max(map(max, shown.values())) or None)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        if len(shown) > 1:
            axes.legend(fontsize=8, ncols=len(shown))
    plots[-1].set_xlabel("minutes of audio")
    figure.suptitle(place(), fontsize=9)
    save(figure, path)
