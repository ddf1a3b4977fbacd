"""Pictures of a run. Every function returns a matplotlib figure that the caller saves and closes."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

FFT = 512
FLOOR_DB = -80.0
CURVES = 10  # classes shown over time


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
            extent=(0, len(waves[title]) / sample_rate, 0, sample_rate / 2000),
        )
        axis.set(title=title, xlabel="time (s)")
    axes[0].set_ylabel("frequency (kHz)")
    if image is not None:
        figure.colorbar(image, ax=axes, label="dB")
    return figure


def probabilities(times: list[float], shares: Tensor, names: Sequence[str], unit: str) -> Figure:
    """The likeliest classes of a stream over its time; shares (T, classes)."""
    figure = _figure(8, 3.5)
    axes = figure.subplots()
    for index in shares.amax(0).topk(min(CURVES, shares.shape[1])).indices.tolist():
        axes.plot(times, shares[:, index].numpy(), label=names[index])
    axes.set(xlabel=f"time ({unit})", ylabel="probability", ylim=(0, 1))
    axes.legend(loc="center left", bbox_to_anchor=(1, 0.5))
    axes.grid(alpha=0.3)
    return figure


def confusion_matrix(counts: np.ndarray, classes: tuple[str, ...]) -> Figure:
    """Counts (true, predicted) with their numbers."""
    size = max(3.5, 0.45 * len(counts) + 1)
    figure = _figure(size, size)
    axis = figure.subplots()
    axis.imshow(counts, cmap="Blues")
    names = classes or tuple(map(str, range(len(counts))))
    axis.set(xlabel="predicted", ylabel="true")
    axis.set_xticks(range(len(names)), names)
    axis.set_yticks(range(len(names)), names)
    if len(counts) <= 40:
        for (row, column), count in np.ndenumerate(counts):
            dark = count > counts.max() / 2
            axis.text(
                column,
                row,
                str(int(count)),
                ha="center",
                va="center",
                color="white" if dark else "black",
                fontsize=7,
            )
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
    figure = _figure(4.5 * len(curves), 3.2)
    for axis, (metric, splits) in zip(
        figure.subplots(1, len(curves), squeeze=False)[0], curves.items(), strict=True
    ):
        for split, points in splits.items():
            axis.plot(
                *zip(*points, strict=True),
                label=split,
                marker="o" if len(points) < 30 else None,
                markersize=3,
            )
        axis.set(title=metric, xlabel="step")
        axis.legend()
        axis.grid(alpha=0.3)
    return figure
