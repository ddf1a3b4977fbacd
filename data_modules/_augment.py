"""Random changes to training audio, drawn by the random generator of each example."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torchaudio import functional as audio

from lrnnx_app.data.audio_io import read_mono
from lrnnx_app.errors import RecipeError

SPEEDS = 100  # a speed is a multiple of 1/SPEEDS, for which the resampler's filter is short


@dataclass
class AugmentConfig:
    """The largest change of each kind; 0 or "" for none."""

    gain: float = 0.0  # dB, either way
    speed: float = 0.0  # largest relative change of speed, up or down; the pitch changes too
    reverb: str = ""  # file with an impulse response
    reverb_share: float = 0.5  # share of the examples with reverberation
    noise: float = 0.0  # standard deviation of white noise, relative to the signal's
    mask_time: float = 0.0  # share of the samples that one silent gap may take
    mask_band: float = 0.0  # share of the octaves below half the rate that a notch may take

    def __post_init__(self) -> None:
        for name in ("speed", "mask_time", "mask_band", "reverb_share"):
            if not 0 <= getattr(self, name) <= (1 if name == "reverb_share" else 0.9):
                raise RecipeError(f"augment.{name}: expected a share, at least 0, not {getattr(self, name)}")
        if min(self.gain, self.noise) < 0:
            raise RecipeError("augment.gain and noise: expected at least 0")


class Augment:
    """Changes a voice (speed, reverberation), and the recorded sound (gain, noise, masks)."""

    def __init__(self, config: AugmentConfig, rate: int) -> None:
        self.config, self.rate = config, rate
        self.response = None
        if config.reverb:
            response = read_mono(Path(config.reverb), rate)
            peak = int(response.abs().argmax())
            self.response = response[peak:] / response.square().sum().sqrt()  # the direct sound is not late

    def voice(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        """(T,) to (T',), which differs from T by the speed only."""
        c = self.config
        if c.speed:
            factor = SPEEDS + round(SPEEDS * rng.uniform(-c.speed, c.speed))
            wave = audio.resample(wave, factor, SPEEDS)
        if self.response is not None and rng.random() < c.reverb_share:
            wave = audio.fftconvolve(wave, self.response)[: len(wave)]
        return wave

    def heard(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        """(T,) to (T,)."""
        c = self.config
        if c.noise:
            white = torch.from_numpy(rng.standard_normal(len(wave), np.float32))
            wave = wave + white * rng.uniform(0, c.noise) * wave.std(correction=0)
        wave = self.masked(wave, rng)
        return audio.gain(wave, rng.uniform(-c.gain, c.gain)) if c.gain else wave

    def masked(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        """(T,) with a band of frequencies and a stretch of time missing."""
        c = self.config
        if c.mask_band:
            wave = self._notch(wave, rng)
        if c.mask_time:
            wave = wave.clone()
            length = int(rng.uniform(0, c.mask_time) * len(wave))
            start = int(rng.integers(0, len(wave) - length + 1))
            wave[start : start + length] = 0
        return wave

    def _notch(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        """Without a band of some octaves between 60 Hz and half the rate."""
        low, high = np.log2((60, self.rate / 2.2))
        width = rng.uniform(0.05, 1) * self.config.mask_band * (high - low)
        centre = 2 ** rng.uniform(low + width / 2, high - width / 2)
        quality = 1 / (2 ** (width / 2) - 2 ** (-width / 2))
        return audio.bandreject_biquad(wave, self.rate, float(centre), float(quality))
