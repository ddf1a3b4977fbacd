"""Pictures of a run. Every function returns a matplotlib figure that the caller saves and closes."""

import csv
import io
import math
import textwrap
from collections.abc import Mapping, Sequence
from functools import cache
from itertools import zip_longest
from pathlib import Path

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from lrnnx_app.console.terminal import shown
from lrnnx_app.disk import atomic
from lrnnx_app.errors import RunError
from lrnnx_app.spec import DataSpec, Example

FFT = 512
FEW_CHANNELS = 4  # that are drawn as lines
FLOOR_DB = -80.0
CURVES = 10  # classes shown over time
PANELS = 4  # side by side
NUMBERED = 40  # classes up to which a confusion matrix has its numbers
LETTER = 0.08  # inches that a letter takes
TALLEST = 60.0  # inches


def label(text: object, most: int = 30, across: int | None = None) -> str:
    """Text as a picture takes it: of at most `most` letters, in lines of `across`, and no formula.

    What is too long loses its middle. Letters that the font lacks are escaped, as control characters are.
    """
    line = "".join(
        letter if ord(letter) in _letters() else letter.encode("ascii", "backslashreplace").decode()
        for letter in shown(text)
    )
    if len(line) > most:
        line = f"{line[: most // 2]}…{line[len(line) - (most - 1) // 2 :]}"
    return textwrap.fill(line, across or most).replace("$", r"\$")


@cache
def _letters() -> frozenset[int]:
    """The characters that the font of pictures has."""
    return frozenset(get_font(findfont(FontProperties())).get_charmap())


def _figure(width: float, height: float) -> Figure:
    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def spectrograms(waves: dict[str, Tensor], sample_rate: int) -> Figure:
    """Power spectrograms side by side, dB relative to the loudest bin of all; waves are (T,)."""
    figure = _figure(4 * len(waves), 3)
    axes = figure.subplots(1, len(waves), sharey=True, squeeze=False)[0]
    window = torch.hann_window(FFT)
    powers = {}
    for title, wave in waves.items():
        padded = torch.nn.functional.pad(wave.float(), (0, max(0, FFT - len(wave))))
        powers[title] = torch.stft(padded, FFT, FFT // 4, window=window, return_complex=True).abs().square()
    loudest = max(float(power.max()) for power in powers.values()) or 1.0
    image = None
    for axis, (title, power) in zip(axes, powers.items(), strict=True):
        decibel = 10 * torch.log10(power / loudest).clamp_min(FLOOR_DB / 10)
        image = axis.imshow(
            decibel.numpy(),
            origin="lower",
            aspect="auto",
            vmin=FLOOR_DB,
            vmax=0,
            extent=(0, max(1, len(waves[title])) / sample_rate, 0, sample_rate / 2000),
        )
        axis.set(title=label(title), xlabel="time (s)")
    axes[0].set_ylabel("frequency (kHz)")
    if image is not None:
        figure.colorbar(image, ax=axes, label="dB")
    return figure


def curves(times: list[float], values: Mapping[str, Sequence[float]], unit: str, what: str) -> Figure:
    """Values of a stream over its time by name, such as probabilities; those that reach highest."""
    figure = _figure(8, 3.5)
    axes = figure.subplots()
    for name in sorted(values, key=lambda name: -max(values[name]))[:CURVES]:
        axes.plot(times, values[name], label=label(name))
    axes.set(xlabel=f"time ({unit})", ylabel=what)
    if what == "probability":
        axes.set(ylim=(0, 1))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    return figure


def confusion_matrix(counts: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """Counts (true, predicted), with their numbers unless there are many classes."""
    names = [label(name) for name in classes or range(len(counts))]
    longest, most = max(map(len, names)), max(1, counts.max())
    numbered = len(names) <= NUMBERED
    size = max(2.5, (0.45 if numbered else 0.16) * len(names)) + 0.8 + LETTER * longest
    figure = _figure(min(size, TALLEST), min(size, TALLEST))
    axis = figure.subplots()
    axis.imshow(counts, cmap="Blues", vmin=0, vmax=most)
    axis.set(xlabel="predicted", ylabel="true")
    named = range(0, len(names), math.ceil(size / TALLEST))
    axis.set_xticks(named, [names[i] for i in named], rotation=90 if longest > 3 else 0, fontsize=8)
    axis.set_yticks(named, [names[i] for i in named], fontsize=8)
    if numbered:
        for (row, column), count in np.ndenumerate(counts):
            dark = count > 0.7 * most
            axis.text(
                column,
                row,
                str(int(count)) if count < 1e6 else f"{count:.0e}",
                ha="center",
                va="center",
                color="white" if dark else "black",
                fontsize=7,
            )
    return figure


def reliability(bins: np.ndarray, error: float) -> Figure:
    """Accuracy over confidence, and how often each confidence is given.

    Args:
        bins: (3, bins): rows, summed confidence and number right in equal bins of confidence.
        error: expected calibration error, for the title.
    """
    rows, confidence, right = bins
    used = rows > 0
    figure = _figure(4, 4.6)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    upper.plot((0, 1), (0, 1), color="grey", linestyle="--", label="calibrated")
    upper.plot(confidence[used] / rows[used], right[used] / rows[used], marker="o", label="model")
    upper.set(ylabel="accuracy", ylim=(0, 1.02), title=f"calibration error {error:.3f}")
    upper.legend()
    width = 1 / len(rows)
    lower.bar((np.arange(len(rows)) + 0.5) * width, rows / max(rows.sum(), 1), 0.9 * width)
    lower.set(xlabel="confidence", ylabel="share", xlim=(0, 1))
    return figure


def examples(rows: Sequence[Example], titles: Sequence[str], spec: DataSpec) -> Figure:
    """A panel for each example, drawn as its data call for."""
    across = min(PANELS, len(rows)) if _is_picture(rows[0], spec) else min(2, len(rows))
    down = -(-len(rows) // across)
    figure = _figure(*((2.3 * across, 2.6 * down) if across > 2 else (6 * across, 2.2 * down)))
    for axis, row, title in zip_longest(figure.subplots(down, across, squeeze=False).flat, rows, titles):
        if row is None:
            axis.set_axis_off()
            continue
        _example(axis, row, spec)
        axis.set_title(label(title, 84, 28 if across > 2 else 84), fontsize=9)
    return figure


def _is_picture(row: Example, spec: DataSpec) -> bool:
    """Grey or colour pixels, row by row, of a square."""
    side = math.isqrt(len(row.x))
    pixels = row.x.ndim == 2 and row.x.shape[1] in (1, 3) and side > 1 and side * side == len(row.x)
    return pixels and row.dt is None and not spec.sample_rate and not row.y.ndim


def _example(axis: Axes, row: Example, spec: DataSpec) -> None:
    """Pixels as a picture, tokens as points, few channels as lines, many as a picture over time."""
    x = row.x.float().numpy() if row.x.ndim == 2 else row.x.numpy()
    if _is_picture(row, spec):
        side = math.isqrt(len(x))
        low, high = x.min(), x.max()
        axis.imshow(((x - low) / (high - low or 1)).reshape(side, side, -1), cmap="gray")
        return axis.set_axis_off()
    time, unit = np.arange(len(x)), "step"
    if row.dt is not None:
        time, unit = np.cumsum(row.dt.double().numpy()), "time"
    elif spec.sample_rate:
        time, unit = time / spec.sample_rate, "time (s)"
    axis.set_xlabel(unit)
    if row.x.ndim == 1:
        axis.scatter(time, x, s=np.clip(2e4 / max(1, len(x)), 0.5, 12), linewidths=0)
        axis.set(ylabel="token", ylim=(-0.5, spec.d_input - 0.5))
    elif x.shape[1] <= FEW_CHANNELS:
        lines = axis.plot(time, x, linewidth=0.6)
        if row.y.ndim == 2 and row.y.is_floating_point():
            axis.plot(time, row.y.float().numpy(), linewidth=0.6, color="black", label="target")
            lines[0].set_label("input")
            axis.legend(loc="upper right", fontsize=7)
    else:
        edges = (time[0], time[-1] + (time[-1] == time[0]), -0.5, x.shape[1] - 0.5)
        axis.imshow(x.T, aspect="auto", origin="lower", interpolation="nearest", extent=edges)
        axis.set_ylabel("channel")


def surprise(tokens: Tensor, bits: Tensor, width: int = 80) -> Figure:
    """Bytes (T,) as text, each on a ground as dark as it was unexpected, in bits (T,)."""
    lines = -(-len(tokens) // width)
    figure = _figure(0.11 * width + 1, 0.24 * lines + 0.6)
    axis = figure.subplots()
    ground = np.full(lines * width, np.nan)
    ground[: len(bits)] = bits.numpy()
    image = axis.imshow(ground.reshape(lines, width), aspect="auto", cmap="Reds", vmin=0, vmax=8)
    for place, token in enumerate(tokens.tolist()):
        sign = chr(token) if 32 <= token < 127 else "·"
        style = {"ha": "center", "va": "center", "fontsize": 7, "family": "monospace"}
        axis.text(place % width, place // width, sign, parse_math=False, **style)
    axis.set_axis_off()
    figure.colorbar(image, ax=axis, label="bits")
    return figure


def prediction(target: Tensor, output: Tensor) -> Figure:
    """A signal (T, C) and its prediction from the steps before, a panel for each of the first channels."""
    shown = min(target.shape[1], FEW_CHANNELS)
    figure = _figure(8, 2.2 * shown)
    for channel, axis in enumerate(figure.subplots(shown, 1, sharex=True, squeeze=False)[:, 0]):
        axis.plot(target[:, channel].numpy(), linewidth=0.8, label="signal")
        axis.plot(output[:, channel].numpy(), linewidth=0.8, linestyle="--", label="predicted")
        axis.grid(alpha=0.3)
        axis.set_xlabel("step" if channel == shown - 1 else "")
    figure.axes[0].legend(loc="upper right", fontsize=7)
    return figure


def learning_curves(metrics_csv: Path) -> Figure | None:
    """One panel per metric, its training and validation values over the steps; None without any."""
    curves: dict[str, dict[str, list[tuple[int, float]]]] = {}
    with metrics_csv.open(newline="") as file:
        for row in csv.DictReader(file):
            for key, value in row.items():
                split, _, metric = key.partition("/")
                if split in ("train", "valid") and value:
                    curves.setdefault(metric, {}).setdefault(split, []).append(
                        (int(row["step"]), float(value))
                    )
    if not curves:
        return None
    across = min(PANELS, len(curves))
    down = -(-len(curves) // across)
    figure = _figure(4.5 * across, 3.2 * down)
    for axis, entry in zip_longest(figure.subplots(down, across, squeeze=False).flat, curves.items()):
        if entry is None:
            axis.set_axis_off()
            continue
        metric, splits = entry
        for split, points in splits.items():
            axis.plot(
                *zip(*points, strict=True),
                label=split,
                marker="o" if len(points) < 30 else None,
                markersize=3,
            )
        axis.set(title=label(metric), xlabel="step")
        axis.legend()
        axis.grid(alpha=0.3)
    return figure


def comparison(
    names: Sequence[str], panels: dict[str, tuple[Sequence[float], Sequence[float | None]]]
) -> Figure:
    """Horizontal bars of each name, a panel for each quantity: its values and their spreads or None."""
    names = [label(name, 60) for name in names]
    width = 0.5 + LETTER * max(map(len, names)) + 3 * len(panels)
    figure = _figure(width, min(TALLEST, 1.2 + 0.35 * len(names)))
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axis, (title, (values, spreads)) in zip(axes, panels.items(), strict=True):
        axis.barh(
            range(len(names)),
            values,
            xerr=[math.nan if s is None else s for s in spreads],
            capsize=3,
            color="tab:blue",
        )
        low, high = (
            f(v + d * (s or 0) for v, s in zip(values, spreads, strict=True))
            for f, d in ((min, -1), (max, 1))
        )
        if low > 0.5 * high:  # differences between large values would not be seen from zero
            margin = 0.3 * (high - low) or 0.1 * high
            axis.set_xlim(low - margin, high + margin)
        axis.xaxis.set_major_locator(MaxNLocator(4))
        axis.set(title=label(title))
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(names)), names)
    axes[0].invert_yaxis()
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write a picture in one move.

    Raises:
        RunError: the file cannot be written as what its ending says; whatever stood there is as it was.
    """
    picture = io.BytesIO()
    try:
        figure.savefig(picture, dpi=130, format=path.suffix[1:] or "png")
        with atomic.whole(path) as part:
            part.write_bytes(picture.getvalue())
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: {error}; expected a writable .png, .pdf or .svg") from error
