"""Random changes to training audio, drawn by the random generator of each example."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lrnnx_app.data.audio_io import read_mono
from lrnnx_app.errors import RecipeError

EARLY = 0.05  # s, of the echoes that a voice keeps
LONGEST = 0.8  # s, in which a room's echoes fall by 60 dB
SPEEDS = 100  # a speed is a multiple of 1/SPEEDS, for which the resampler's filter is short


@dataclass
class AugmentConfig:
    """The largest change of each kind; 0 or "" for none."""

    gain: float = 0.0  # dB, either way
    speed: float = 0.0  # largest relative change of speed, up or down; the pitch changes too, of noises also
    bursts: float = 0.0  # share of the noises that come in bursts, as knocks and claps do
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
        whole = ("reverb_share", "rooms", "clip", "telephone", "bursts")
        for name in (*whole, "speed", "mask_time", "mask_band"):
            if not 0 <= getattr(self, name) <= (1 if name in whole else 0.9):
                raise RecipeError(f"augment.{name}: expected a share, at least 0, not {getattr(self, name)}")
        for name in ("gain", "noise", "colour"):
            if not 0 <= getattr(self, name) < math.inf:
                raise RecipeError(f"augment.{name}: expected at least 0, not {getattr(self, name)}")


class Augment:
    """Draws changes of a voice (speed, reverberation), and of the recorded sound (gain, noise, masks)."""

    def __init__(self, config: AugmentConfig, rate: int) -> None:
        self.config, self.rate = config, rate
        self.response = None
        if config.reverb:
            response = read_mono(Path(config.reverb), rate)
            peak = int(response.abs().argmax())
            self.response = response[peak:] / response.square().sum().sqrt()  # the direct sound is not late

    def voice(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        """(T,) to (T',), which differs from T by the speed only."""
        c, wave = self.config, self.faster(wave, rng)
        if self.response is not None and rng.random() < c.reverb_share:
            wave = convolved(wave, self.response)
        return wave

    def faster(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        """(T,) at another speed: (T',)."""
        if not (most := self.config.speed):
            return wave
        from torchaudio.functional import resample  # here, since inference imports this file

        return resample(wave, SPEEDS + round(SPEEDS * rng.uniform(-most, most)), SPEEDS)

    def sudden(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        """A noise (T,), for a share of them as bursts of it that start at once and die away."""
        if rng.random() >= self.config.bursts:
            return wave
        seconds = len(wave) / self.rate
        loud = np.zeros(len(wave), np.float32)
        for _ in range(max(1, round(seconds * rng.uniform(0.3, 5)))):
            start, decay = int(rng.integers(len(wave))), 10 ** rng.uniform(-2, -0.5) * self.rate
            after = loud[start : start + int(8 * decay)]
            after += 10 ** rng.uniform(-1, 0) * np.exp(-np.arange(len(after), dtype=np.float32) / decay)
        return wave * torch.from_numpy(loud)

    def shelf(self, rng: np.random.Generator) -> tuple[float, float, float, float]:
        """Gains in dB of low and high frequencies, and where they begin in Hz, as of another microphone."""
        low, high = rng.uniform(-1, 1, 2) * self.config.colour
        return low, high, rng.uniform(100, 600), rng.uniform(0.1, 0.3) * self.rate

    def room(self, rng: np.random.Generator) -> Tensor | None:
        """The impulse response of a room, for a share of the voices."""
        return room(self.rate, rng) if rng.random() < self.config.rooms else None

    def recording(self, frames: int, rng: np.random.Generator) -> "Recording":
        """How a mixture of `frames` samples is recorded."""
        c = self.config
        clip = rng.uniform(-15, -1) if rng.random() < c.clip else 0.0
        narrow = rng.random() < c.telephone
        low, high = np.log2((60, self.rate / 2.2))
        width = rng.uniform(0.05, 1) * c.mask_band * (high - low)
        centre = 2 ** rng.uniform(low + width / 2, high - width / 2)
        quality = 1 / (2 ** (width / 2) - 2 ** (-width / 2)) if width else math.inf
        length = int(rng.uniform(0, c.mask_time) * frames)
        return Recording(clip, narrow, (centre, quality), (int(rng.integers(0, frames - length + 1)), length))

    def heard(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        """A whole recording (T,) to (T,)."""
        c = self.config
        if c.colour:
            wave = shelved(wave[None], torch.tensor([self.shelf(rng)]), self.rate)[0]
        if (response := self.room(rng)) is not None:
            wave = convolved(wave, response)
        if c.noise:
            white = torch.from_numpy(rng.standard_normal(len(wave), np.float32))
            wave = wave + white * rng.uniform(0, c.noise) * wave.std(correction=0)
        wave = self.masked(wave, rng)
        return wave * 10 ** (rng.uniform(-c.gain, c.gain) / 20) if c.gain else wave

    def masked(self, wave: Tensor, rng: np.random.Generator) -> Tensor:
        """(T,) as a poor device records it."""
        recording = self.recording(len(wave), rng)
        return recorded(wave[None], wave[None], [recording], self.rate)[0][0]


class Recording(NamedTuple):
    """What a device does to a mixture."""

    clip: float = 0.0  # dB, the level of clipping relative to the peak
    narrow: bool = False  # whether 300 to 3400 Hz are left alone
    notch: tuple[float, float] = (1.0, math.inf)  # centre in Hz and quality of a band that is missing
    gap: tuple[int, int] = (0, 0)  # first sample and length of a silent stretch


def recorded(
    noisy: Tensor, clean: Tensor, recordings: Sequence[Recording], rate: int
) -> tuple[Tensor, Tensor]:
    """Mixtures (B, T) and their targets as devices record them. A target gets the bandwidth alone."""
    clips = [i for i, one in enumerate(recordings) if one.clip]
    if clips:
        levels = noisy.new_tensor([10 ** (recordings[i].clip / 20) for i in clips])
        most = noisy[clips].abs().amax(-1, keepdim=True) * levels[:, None]
        noisy = _put(noisy, clips, noisy[clips].clamp(-most, most))
    narrow = [i for i, one in enumerate(recordings) if one.narrow]
    if narrow:
        noisy, clean = (_put(waves, narrow, telephone(waves[narrow], rate)) for waves in (noisy, clean))
    notched = [i for i, one in enumerate(recordings) if one.notch[1] < math.inf]
    if notched:
        centre, quality = noisy.new_tensor([recordings[i].notch for i in notched]).T[..., None]

        def gain(hertz: Tensor) -> Tensor:
            apart = hertz.square() - centre.square()
            return apart.abs() / (apart.square() + (hertz * centre / quality).square()).sqrt().clamp_min(1e-9)

        noisy = _put(noisy, notched, filtered(noisy[notched], rate, gain))
    if any(one.gap[1] for one in recordings):
        starts, lengths = torch.tensor([one.gap for one in recordings], device=noisy.device).T[..., None]
        time = torch.arange(noisy.shape[1], device=noisy.device)
        noisy = torch.where((time >= starts) & (time < starts + lengths), 0, noisy)
    return noisy, clean


def _put(waves: Tensor, rows: list[int], changed: Tensor) -> Tensor:
    """A copy of (B, T) with some rows changed."""
    waves = waves.clone()
    waves[rows] = changed
    return waves


def shelved(waves: Tensor, shelves: Tensor, rate: int) -> Tensor:
    """Waves (B, T) with low and high frequencies raised or lowered, by shelves (B, 4) of `Augment.shelf`."""
    low, high, bass, treble = shelves.float().T[..., None]

    def gain(hertz: Tensor) -> Tensor:
        share = low / (1 + (hertz / bass) ** 2) + high / (1 + (treble / hertz.clamp_min(1)) ** 2)
        return 10 ** (share / 20)

    return filtered(waves, rate, gain)


def room(rate: int, rng: np.random.Generator) -> Tensor:
    """A random impulse response (T,): the direct sound, then noise that falls by 60 dB in 0.1 s or more."""
    seconds = rng.uniform(0.1, LONGEST)
    ratio = 10 ** (rng.uniform(-5, 10) / 20)  # of the direct to the reverberant sound
    t = np.arange(1, round(seconds * rate)) / rate
    tail = rng.standard_normal(len(t)) * 10 ** (-3 * t / seconds) * (t > rng.uniform(0.001, 0.008))
    tail = np.convolve(tail, (0.25, 0.5, 0.25), "same")  # walls take high frequencies first
    tail /= ratio * max(1e-9, float(np.sqrt(np.square(tail).sum())))
    return torch.from_numpy(np.concatenate(([1.0], tail))).float()


def echoed(waves: Tensor, responses: Tensor, rate: int) -> tuple[Tensor, Tensor]:
    """Voices (B, T) as heard in rooms (B, L), and with the early echoes alone."""
    early = torch.arange(responses.shape[-1], device=waves.device) < EARLY * rate
    heard, direct = convolved(waves, torch.stack((responses, torch.where(early, responses, 0))))
    return heard, direct


def convolved(waves: Tensor, responses: Tensor) -> Tensor:
    """Waves (…, T) through responses (…, L), causally: (…, T)."""
    size = _fast(waves.shape[-1] + responses.shape[-1] - 1)
    product = torch.fft.rfft(waves, size) * torch.fft.rfft(responses, size)
    return torch.fft.irfft(product, size)[..., : waves.shape[-1]]


def filtered(waves: Tensor, rate: int, gain: Callable[[Tensor], Tensor]) -> Tensor:
    """Waves (…, T) through a filter without delay, by its gains at frequencies in Hz."""
    size = _fast(waves.shape[-1])
    passed = gain(torch.fft.rfftfreq(size, 1 / rate, device=waves.device))
    return torch.fft.irfft(torch.fft.rfft(waves, size) * passed, size)[..., : waves.shape[-1]]


def telephone(waves: Tensor, rate: int) -> Tensor:
    """(…, T) with 300 to 3400 Hz alone."""
    return filtered(
        waves, rate, lambda bins: torch.sigmoid((bins - 300) / 20) * torch.sigmoid((3400 - bins) / 50)
    )


def _fast(length: int) -> int:
    """The next power of 2, for which an FFT is fast."""
    return 1 << (length - 1).bit_length()
