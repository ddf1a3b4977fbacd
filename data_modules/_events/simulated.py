"""Embedded events, all simulated: a line sensor that a digit moves past, and a cochlea that hears prompts."""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from data_modules._events.recording import Recording, Sensor
from lrnnx_app.data.audio_io import read_mono

ASSETS = Path(__file__).parents[1] / "assets"
DIGITS, PROMPTS = ASSETS / "digits" / "digits.npz", ASSETS / "prompts"
DIGITS_ENDS = {"train": (0, 1297), "valid": (1297, 1497), "test": (1497, 1797)}
SEED = 2024

SIDE, COLUMNS = 16, 2  # rows that the sensor sees of an enlarged digit, and pixels of a row
EYE = Sensor(COLUMNS, SIDE, 2)
STEPS, THRESHOLD, DARK = 120, 0.5, 0.15  # samples of a saccade; change of log intensity; dark current
SACCADE_MS = (40.0, 80.0)

RATE, BANDS, HOP, WINDOW = 8000, 32, 32, 256
EAR = Sensor(BANDS, 1, 1)
SECONDS, STRIDE, LOWEST, HIGHEST = 1.0, 0.5, 100.0, 3800.0  # of an excerpt, to the next; Hz of the bands
VOICES = ("en", "it", "ru")
GAIN, LEAK, FIRE = 0.1, 0.8, 1.0  # of the drive; of a neuron's charge per hop; charge of a spike
TIRE, RECOVER = 0.5, 0.97  # what a spike adds to the charge that the next one needs; what stays of it per hop
FEWEST = 16  # spikes of a second that is not silence


def digits(split: str) -> Iterator[Recording]:
    """Each digit swept once past two columns of pixels, right to left, which fire where log intensity changes
    by a threshold: what was its width is now time. Speed and the start of the sweep differ."""
    with np.load(DIGITS) as data:
        chosen = slice(*DIGITS_ENDS[split])
        images, labels = data["images"][chosen].astype(np.float32) / 16, data["labels"][chosen]
    large = torch.nn.functional.interpolate(
        torch.from_numpy(images)[:, None], size=(SIDE, SIDE), mode="bilinear", align_corners=False
    )[:, 0]
    wide = np.pad(large.clamp(0, 1).numpy(), ((0, 0), (0, 0), (4, 4)))
    light = np.log(DARK + wide)
    rng = np.random.default_rng([SEED, *DIGITS_ENDS[split]])
    n, path = len(images), wide.shape[2] - COLUMNS - 1
    start, span = rng.uniform(0, 2, n), rng.uniform(*SACCADE_MS, n) * 1000
    level = np.full((n, SIDE, COLUMNS), np.log(DARK), np.float32)
    found = []
    for step in range(STEPS):
        place = start + (path - start) * step / (STEPS - 1)
        left, part = np.floor(place).astype(int), (place % 1)[:, None, None]
        columns = [
            light[np.arange(n), :, np.minimum(left + k, wide.shape[2] - 1)] for k in range(COLUMNS + 1)
        ]
        seen = np.stack(columns, -1)
        now = seen[..., :-1] * (1 - part) + seen[..., 1:] * part
        count = np.trunc((now - level) / THRESHOLD).astype(int)
        level = level + count * THRESHOLD
        which, y, x = np.nonzero(count)
        times = np.abs(count[which, y, x])
        which, y, x, sign = (np.repeat(v, times) for v in (which, y, x, count[which, y, x] > 0))
        t = (step + rng.uniform(0, 1, len(which))) / STEPS * span[which]
        found.append((which, t.astype(np.int64), (sign * SIDE + y) * COLUMNS + x))
    which, t, token = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((t, which))
    ends = np.searchsorted(which[order], np.arange(n + 1))
    for i in range(n):
        part = order[ends[i] : ends[i + 1]]
        if len(part):
            yield Recording(t[part], token[part], int(labels[i]), f"simulated digit {i}")


def spikes(split: str) -> Iterator[Recording]:
    """Seconds of the prompts of three speakers, as spoken and backwards (a class each), heard by leaky
    neurons on bands of equal width in log frequency, which tire as they fire."""
    with (PROMPTS / "index.csv").open(newline="", encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    parts, facts = [], []
    for row in rows:
        wave = read_mono(PROMPTS / row["file"], RATE)
        size = round(SECONDS * RATE)
        for begin in range(0, max(1, len(wave) - size + 1), round(STRIDE * RATE)):
            part = torch.nn.functional.pad(wave[begin : begin + size], (0, max(0, size - len(wave))))
            for backwards in (False, True):
                parts.append(part.flip(0) if backwards else part)
                label = 2 * VOICES.index(row["speaker"]) + backwards
                facts.append((label, f"simulated spikes of {row['file']} at {begin / RATE:g} s", row["file"]))
    rng = np.random.default_rng([SEED, len(parts)])
    for (t, band), fact in zip(_hear(torch.stack(parts), rng), facts, strict=True):
        if len(t) > FEWEST:
            yield Recording(t, band, *fact)


def _bank() -> torch.Tensor:
    """Triangles over the bins of a spectrum, (bins, BANDS)."""
    bins = torch.arange(WINDOW // 2 + 1) * RATE / WINDOW
    edges = torch.logspace(np.log10(LOWEST), np.log10(HIGHEST), BANDS + 2)
    width = (edges[1:] - edges[:-1]).clamp_min(RATE / WINDOW)
    up = (bins[:, None] - (edges[1:-1] - width[:-1])) / width[:-1]
    down = ((edges[1:-1] + width[1:]) - bins[:, None]) / width[1:]
    return torch.minimum(up, down).clamp_min(0)


def _hear(waves: torch.Tensor, rng: np.random.Generator) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Times in µs and bands of the spikes of each wave (n, T)."""
    waves = waves / waves.abs().amax(1, keepdim=True).clamp_min(1e-4)
    bank, window = _bank(), torch.hann_window(WINDOW)
    drive = torch.stack(
        [
            torch.log1p(
                torch.stft(w, WINDOW, HOP, window=window, return_complex=True).abs().square().T @ bank
            )
            for w in waves
        ]
    ).numpy()  # hearing is compressive
    charge, fatigue = np.zeros((len(waves), BANDS)), np.zeros((len(waves), BANDS))
    found = []
    for step in range(drive.shape[1]):
        charge = LEAK * charge + GAIN * drive[:, step]
        fatigue = RECOVER * fatigue
        fired = charge > FIRE + fatigue
        charge[fired] = 0
        fatigue[fired] += TIRE
        which, band = np.nonzero(fired)
        t = (step + rng.uniform(0, 1, len(which))) * HOP / RATE * 1e6
        found.append((which, t.astype(np.int64), band))
    which, t, band = (np.concatenate(column) for column in zip(*found, strict=True))
    order = np.lexsort((t, which))
    for part in np.split(order, np.searchsorted(which[order], np.arange(1, len(waves)))):
        yield t[part], band[part]
