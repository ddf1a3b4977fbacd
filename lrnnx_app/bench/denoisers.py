"""Judges denoisers of speech side by side: quality by kind and level of noise, harm to clean speech, cost."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad
from torchaudio.functional import resample

from lrnnx_app.bench._peers import Denoiser
from lrnnx_app.recipe import load_recipe
from lrnnx_app.runs.run import build_data
from lrnnx_app.tasks._perceptual import Perceptual
from lrnnx_app.tasks.denoise import si_snr

RATE = 16000  # Hz, of the clips
SNRS = (-5, 0, 5, 10)  # dB
LEVELS = (-40, -30, -20, -10, 10)  # dB, beside the level of the clip
LONGEST = 8  # s, of a clip
LATEST = 0.2  # s, longest delay that is looked for
KINDS = 8  # most folders of noise that are kinds
CHECKED = 6  # clips, for what else is measured than improvements
OFFSET = 0.2  # of full scale
QUIETEST = -200.0  # dB, said of digital silence
RECIPE = "denoise"  # whose data module mixes


class Mixture(NamedTuple):
    kind: str
    snr: int
    noisy: Tensor
    clean: Tensor


def mixtures(folder: Path | None, count: int) -> list[Mixture]:
    """`count` clips for each kind of noise and ratio, alike in every run.

    Args:
        folder: one with `speech` and `noise`, whose own folders are kinds of noise if they are few; None for
            the embedded test clips.

    Raises:
        DataError: a folder is missing, or has too few files.
    """
    found, recipe = [], load_recipe(RECIPE)
    for kind, settings in _kinds(folder).items():
        for snr in SNRS:
            data = replace(recipe.data, **settings, snr_min=snr, snr_max=snr)
            source = build_data(replace(recipe, data=data)).source("test")
            rows = np.random.default_rng(len(found)).permutation(len(source))
            for number in range(count):
                row = int(rows[number % len(rows)])
                example = source.example(row, np.random.default_rng([abs(snr), number]))
                noisy, clean = (wave[: LONGEST * RATE, 0] for wave in (example.x, example.y))
                found.append(Mixture(kind, snr, noisy, clean))
    return found


def _kinds(folder: Path | None) -> dict[str, dict[str, Any]]:
    """Settings of the data module for each kind of noise."""
    shares = ("music", "babble", "coloured")
    found: dict[str, dict[str, Any]] = {
        name: {share: float(share == name) for share in shares} for name in shares
    }
    if folder is None:
        return found
    noise = folder / "noise"
    below = sorted(path for path in noise.iterdir() if path.is_dir()) if noise.is_dir() else []
    parts = below if 1 < len(below) <= KINDS else [noise]
    own = {"root": str(folder / "speech"), "noise_root": str(noise), "split": [0.01, 0.01, 0.98]}
    files = {path.name: found["music"] | own | {"noise_root": str(path)} for path in parts}
    return files | {name: found[name] | own for name in shares[1:]}


def rows(
    denoisers: Iterable[Denoiser], clips: list[Mixture]
) -> Iterator[tuple[dict[str, Any], list[dict[str, float]]]]:
    """For each denoiser a row of means over clips, its checks and its cost; and the scores of every clip."""
    for denoiser in denoisers:
        judged = _Judged(denoiser, clips[0].clean)
        scores = [_scores(clip, judged(clip.noisy)) for clip in clips]
        yield {"denoiser": denoiser.name} | _means(scores) | _checks(judged, clips) | judged.cost(), scores


def _means(scores: list[dict[str, float]]) -> dict[str, float]:
    """Means over clips; a clip without speech has no PESQ and no STOI."""
    return {name: float(np.nanmean([score[name] for score in scores])) for name in scores[0]}


class _Judged:
    """A denoiser of waves (T,) at RATE. Its delay is measured by a clip, and taken out."""

    def __init__(self, denoiser: Denoiser, clip: Tensor) -> None:
        self.denoiser, self.delay = denoiser, 0
        self.heard = self.spent = 0.0  # s of sound and of CPU time
        latest = round(LATEST * denoiser.rate)
        given = pad(resample(clip, RATE, denoiser.rate), (0, latest))
        spectra = torch.fft.rfft(torch.stack((self._frames(given), given)), 2 * len(given))
        self.delay = int(torch.fft.irfft(spectra[0] * spectra[1].conj())[:latest].argmax())

    def __call__(self, wave: Tensor) -> Tensor:
        found = self._frames(pad(resample(wave, RATE, self.denoiser.rate), (0, self.delay)))[self.delay :]
        return resample(found, self.denoiser.rate, RATE)[: len(wave)]

    def _frames(self, wave: Tensor) -> Tensor:
        frame, step = self.denoiser.frame, self.denoiser.start()
        frames = pad(wave, (0, -len(wave) % frame)).view(-1, frame).numpy()
        step(frames[0])  # what makes a first call slow
        step, before = self.denoiser.start(), time.process_time()
        found = [step(each) for each in frames]
        self.spent += time.process_time() - before
        self.heard += len(wave) / self.denoiser.rate
        return torch.from_numpy(np.concatenate(found))[: len(wave)]

    def cost(self) -> dict[str, float]:
        return {
            "% of a core": 100 * self.spent / self.heard,
            "latency ms": 1000 * (self.denoiser.frame + self.delay) / self.denoiser.rate,
        }


def _scores(clip: Mixture, denoised: Tensor) -> dict[str, float]:
    """Scores of a denoised clip, less those of the noisy one; DNSMOS whole, since it has no reference."""
    gains = {"SI-SNR": float(si_snr(denoised, clip.clean) - si_snr(clip.noisy, clip.clean))}
    heard = Perceptual(RATE)
    heard.update(clip.noisy, denoised, clip.clean)
    found = {key: float(value) for key, value in heard.compute().items()}
    for name in ("pesq", "stoi"):
        if name not in heard.absent:
            gains[name.upper()] = found.get(name, math.nan) - found.get(f"{name}_noisy", math.nan)
    if find_spec("speechmos") is not None:
        gains["DNSMOS"] = _opinion(denoised)
    return gains


def _opinion(wave: Tensor) -> float:
    """DNSMOS (Reddy et al. 2022): the overall opinion that listeners would have, 1 to 5."""
    from speechmos import dnsmos  # pyright: ignore[reportMissingImports]  (an extra)

    sound = (wave / max(1.0, float(wave.abs().max()))).numpy()
    return float(dnsmos.run(sound, RATE, return_df=False)["ovrl_mos"])


def _checks(judged: _Judged, clips: list[Mixture]) -> dict[str, float]:
    """What a denoiser does to clean speech, silence, an offset, and other levels than usual."""
    some = [clip for clip in clips if clip.snr == SNRS[-2]][:CHECKED]

    def gain(change: Callable[[Tensor], Tensor]) -> float:
        """The mean SI-SNR of what becomes of changed inputs."""
        return float(torch.stack([si_snr(judged(change(clip.noisy)), clip.clean) for clip in some]).mean())

    usual = gain(lambda wave: wave)
    levels = [gain(lambda wave, level=level: wave * 10 ** (level / 20)) - usual for level in LEVELS]
    heard, ratios, gains = Perceptual(RATE), [], []
    for clip in clips[:: -(-len(clips) // CHECKED)]:
        denoised = judged(clip.clean)
        heard.update(clip.clean, denoised, clip.clean)
        ratios.append(float(si_snr(denoised, clip.clean)))
        gains.append(float(denoised @ clip.clean / clip.clean.square().sum()))
    hum = judged(torch.zeros(4 * RATE))[RATE:].square().mean().sqrt().item()
    return {
        "levels ± dB": max(map(abs, levels)),
        "clean SI-SNR": sum(ratios) / len(ratios),
        "clean level dB": 20 * math.log10(max(1e-10, sum(gains) / len(gains))),
        **({} if "pesq" in heard.absent else {"clean PESQ": float(heard.compute()["pesq"])}),
        "silence dB": 20 * math.log10(hum) if hum else QUIETEST,
        "offset dB": gain(lambda wave: wave + OFFSET) - usual,
    }


def by(
    key: str, denoiser: str, clips: list[Mixture], scores: list[dict[str, float]]
) -> Iterator[dict[str, Any]]:
    """A row for each score, with its means by `kind` of noise or by `snr`."""
    groups: dict[str, list[dict[str, float]]] = {}
    for clip, score in zip(clips, scores, strict=True):
        groups.setdefault(f"{clip.snr} dB" if key == "snr" else clip.kind, []).append(score)
    means = {name: _means(some) for name, some in groups.items()}
    for score in scores[0]:
        yield {"denoiser": denoiser, "mean": score} | {name: found[score] for name, found in means.items()}


def write_plot(found: list[dict[str, Any]], path: Path) -> None:
    """Quality over cost: a point for each denoiser."""
    from matplotlib.figure import Figure

    from lrnnx_app.plots import save

    score = "PESQ" if "PESQ" in found[0] else "SI-SNR"
    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    for row in found:
        axes.plot(row["% of a core"], row[score], "o")
        axes.annotate(row["denoiser"], (row["% of a core"], row[score]), (4, 4), textcoords="offset points")
    axes.set(xscale="log", xlabel="% of a core", ylabel=f"improvement of {score}")
    axes.margins(x=0.2)
    axes.grid(alpha=0.3)
    save(figure, path)
