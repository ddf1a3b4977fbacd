"""Random changes to training audio, drawn by the random generator of each example."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from lrnnx_app.data.audio_io import read_mono
from lrnnx_app.errors import RecipeError

EARLY = 0.05  # s, of the echoes that a voice keeps
SPEEDS = 100  # a speed is a multiple of 1/SPEEDS, for which the resampler's filter is short


@dataclass
class AugmentConfig:
    """The largest change of each kind; 0 or "" for none."""

    gain: float = 0.0  # dB, either way
    speed: float = 0.0  # largest relative change of speed, up or down; the pitch changes too
    reverb: str = ""  # file with an impulse response
    reverb_share: float = 0.5  # share of the examples with reverberation
    rooms: float = 0.0  # share of the voices that are in a simulated room; the target keeps early echoes
    colour: float = 0.0  # dB, largest gain or loss of a random shelf, of voices and of noises
    clip: float = 0.0  # share of the mixtures that are clipped
    telephone: float = 0.0  # share of the mixtures that hold 300 to 3400 Hz alone, as their targets do
    noise: float = 0.0  # standard deviation of white noise, relative to the signal's
    mask_time: float = 0.0  # share of the samples that one silent gap may take
    mask_band: float = 0.0  # share of the octaves below half the rate that a notch may take

    def __post_init__(self) -> None:
        whole = ("reverb_share", "rooms", "clip", "telephone")
        for name in (*whole, "speed", "mask_time", "mask_band"):
            if not 0 <= getattr(self, name) <= (1 if name in whole else 0.9):
                raise RecipeError(f"augment.{name}: expected a share, at least 0, not {getattr(self, name)}")
        for name in ("gain", "noise", "colour"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RecipeError(f"augment.{name}: expected at least 0, not {getattr(self, name)}")


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
            from torchaudio.functional import resample  # here, since inference imports this file

            wave = resample(wave, SPEEDS + round(SPEEDS * rng.uniform(-c.speed, c.speed)), SPEEDS)
        if self.response is not None and rng.random() < c.reverb_share:
            wave = convolved(wave, self.response)
        return self.coloured(wave, rng)

    def coloured(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        """(T,) with low and high frequencies raised or lowered, as by another microphone."""
        most = self.config.colour
        if not most:
            return wave
        low, high = rng.uniform(-most, most, 2)
        bass, treble = rng.uniform(100, 600), rng.uniform(0.1, 0.3) * self.rate  # Hz, of the corners

        def gain(bins: Tensor) -> Tensor:
            share = low / (1 + (bins / bass) ** 2) + high / (1 + (treble / bins.clamp_min(1)) ** 2)
            return 10 ** (share / 20)

        return filtered(wave, self.rate, gain)

    def in_room(self, wave: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A voice (T,) as it is heard in a room, and with the early echoes alone; often the same."""
        if not self.config.rooms or rng.random() >= self.config.rooms:
            return wave, wave
        response = room(self.rate, rng)
        early = torch.where(torch.arange(len(response)) < EARLY * self.rate, response, 0)
        heard, direct = convolved(wave, torch.stack((response, early)))
        return heard, direct

    def recorded(self, noisy: Tensor, clean: Tensor, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
        """A mixture and its target as a poor device records them: clipped, or of a telephone's bandwidth."""
        c = self.config
        if c.clip and rng.random() < c.clip:
            most = float(noisy.abs().max()) * 10 ** (rng.uniform(-15, -1) / 20)
            noisy = noisy.clamp(-most, most)
        if c.telephone and rng.random() < c.telephone:
            noisy, clean = telephone(torch.stack((noisy, clean)), self.rate)
        return self.masked(noisy, rng), clean

    def heard(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        """(T,) to (T,)."""
        c = self.config
        if c.noise:
            white = torch.from_numpy(rng.standard_normal(len(wave), np.float32))
            wave = wave + white * rng.uniform(0, c.noise) * wave.std(correction=0)
        wave, _ = self.recorded(wave, wave, rng)
        return wave * 10 ** (rng.uniform(-c.gain, c.gain) / 20) if c.gain else wave

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
        from torchaudio.functional import bandreject_biquad

        low, high = np.log2((60, self.rate / 2.2))
        width = rng.uniform(0.05, 1) * self.config.mask_band * (high - low)
        centre = 2 ** rng.uniform(low + width / 2, high - width / 2)
        quality = 1 / (2 ** (width / 2) - 2 ** (-width / 2))
        return bandreject_biquad(wave, self.rate, float(centre), float(quality))


def room(rate: int, rng: np.random.Generator) -> Tensor:
    """A random impulse response (T,): the direct sound, then noise that falls by 60 dB in 0.1 to 0.8 s."""
    seconds, ratio = rng.uniform(0.1, 0.8), 10 ** (rng.uniform(-5, 10) / 20)  # direct to reverberant sound
    t = np.arange(1, round(seconds * rate)) / rate
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / seconds) * (t > rng.uniform(0.001, 0.008))
    tail = np.convolve(tail, (0.25, 0.5, 0.25), "same")  # walls take high frequencies first
    tail /= ratio * max(1e-9, float(np.sqrt(np.square(tail).sum())))
    return torch.from_numpy(np.concatenate(([1.0], tail))).float()


def convolved(wave: Tensor, responses: Tensor) -> Tensor:
    """A wave (T,) through responses (…, L), causally: (…, T)."""
    size = _fast(len(wave) + responses.shape[-1] - 1)
    product = torch.fft.rfft(wave, size) * torch.fft.rfft(responses, size)
    return torch.fft.irfft(product, size)[..., : len(wave)]


def filtered(waves: Tensor, rate: int, gain: Callable[[Tensor], Tensor]) -> Tensor:
    """Waves (…, T) through a filter without delay, by its gains at frequencies in Hz."""
    size = _fast(waves.shape[-1])
    passed = gain(torch.fft.rfftfreq(size, 1 / rate))
    return torch.fft.irfft(torch.fft.rfft(waves, size) * passed, size)[..., : waves.shape[-1]]


def telephone(waves: Tensor, rate: int) -> Tensor:
    """(…, T) with 300 to 3400 Hz alone."""
    return filtered(
        waves, rate, lambda bins: torch.sigmoid((bins - 300) / 20) * torch.sigmoid((3400 - bins) / 50)
    )


def _fast(length: int) -> int:
    """The next power of 2, for which an FFT is fast."""
    return 1 << (length - 1).bit_length()
