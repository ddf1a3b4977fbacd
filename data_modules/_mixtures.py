"""Noisy speech, mixed on the fly from clean clips and music, babble or coloured noise."""

import csv
import math
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from data_modules._augment import Augment
from data_modules._splits import own
from lrnnx_app.data.audio_io import Clips, excerpt, find_audio
from lrnnx_app.errors import DataError
from lrnnx_app.spec import Example

ASSETS = Path(__file__).parent / "assets" / "prompts"
VOICES = 3  # clips summed into babble
CLEAN, ALONE, MIXED = range(3)  # kinds of examples: without noise, without speech, with both


class Collection(Protocol):
    """Waveforms (T,) by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


def mixtures(config: Any, split: str) -> "Mixtures":
    """The embedded prompts and music, or the files below `root` and `noise_root`.

    Raises:
        DataError: a folder is missing or holds nothing.
    """
    c = config
    if bool(c.root) != bool(c.noise_root):
        missing = "data.noise_root" if c.root else "data.root"
        raise DataError(
            f"{missing}: expected a folder, since data.root (clean) and data.noise_root go together"
        )
    if c.root:
        speech = own(Path(c.root), split, c.split, partial(find_audio, what="clean speech"))
        noises = own(Path(c.noise_root), split, c.split, partial(find_audio, what="noise"))
        noise = Clips(noises, c.sample_rate)
    else:
        speech = [path for path, _ in prompts(split)]
        noise = _embedded_music(split, c.sample_rate)
    return Mixtures(Clips(speech, c.sample_rate), noise, c, train=split == "train")


class Mixtures:
    """The noisy examples of one split."""

    def __init__(self, speech: Clips, noise: Collection, config: Any, train: bool) -> None:
        self.speech, self.noise, self.config, self.train = speech, noise, config, train
        self.augment = Augment(config.augment, config.sample_rate) if train else None
        whole = np.tile(speech.lengths, config.mixtures)
        each = round(config.seconds * config.sample_rate)
        self.lengths = np.full(config.examples_per_epoch, each) if train else whole

    def __len__(self) -> int:
        return self.config.examples_per_epoch if self.train else len(self.speech) * self.config.mixtures

    def example(self, index: int, rng: np.random.Generator) -> Example:
        c, index = self.config, index % len(self.speech)
        heard = clean = self.speech[index]
        if self.augment is not None:
            frames = self.lengths[0]
            enough = math.ceil(frames * (1 + c.augment.speed))
            clean = part(clean, enough, rng) if len(clean) > enough else clean
            heard, clean = self.augment.in_room(part(self.augment.voice(clean, rng), frames, rng), rng)
        kind, noisy, level = self._kind(rng), heard, rng.uniform(c.snr_min, c.snr_max)
        if kind != CLEAN:
            noise = self._noise(index, len(clean), rng)
            power = heard.square().mean().clamp_min(1e-10) / noise.square().mean().clamp_min(1e-10)
            scaled = noise * torch.sqrt(power) * 10 ** (-level / 20)
            noisy, clean = (scaled, torch.zeros_like(clean)) if kind == ALONE else (heard + scaled, clean)
        gain = 1 / max(1.0, float(noisy.abs().max()))
        if self.augment is not None:
            noisy, clean = self.augment.recorded(noisy, clean, rng)
            gain *= 10 ** (rng.uniform(c.level_min, 0) / 20)
        return Example(noisy[:, None] * gain, clean[:, None] * gain, name=self.speech.paths[index].stem)

    def _kind(self, rng: np.random.Generator) -> int:
        c = self.config
        if not self.train or not c.clean + c.alone:
            return MIXED
        return int(rng.choice(3, p=(c.clean, c.alone, 1 - c.clean - c.alone)))

    def _noise(self, index: int, frames: int, rng: np.random.Generator) -> Tensor:
        c = self.config
        kind = rng.choice(3, p=[c.music, c.babble, c.coloured])
        if kind == 0:
            noise = excerpt(self.noise[int(rng.integers(len(self.noise)))], frames, rng)
            return noise if self.augment is None else self.augment.coloured(noise, rng)
        if kind == 1 and len(self.speech) > 1:
            others = (index + rng.integers(1, len(self.speech), VOICES)) % len(self.speech)
            return torch.stack([excerpt(self.speech[int(k)], frames, rng) for k in others]).sum(0)
        return coloured_noise(frames, rng.uniform(0, 2), rng)


def part(clip: Tensor, frames: int, rng: np.random.Generator) -> Tensor:
    """A random part of a clip (T,); a shorter clip is set at a random place in silence."""
    spare = len(clip) - frames
    if spare >= 0:
        start = int(rng.integers(0, spare + 1))
        return clip[start : start + frames]
    before = int(rng.integers(0, -spare + 1))
    return torch.nn.functional.pad(clip, (before, -spare - before))


def coloured_noise(frames: int, beta: float, rng: np.random.Generator) -> Tensor:
    """Gaussian noise (T,) with a 1/f^beta power spectrum; 0 is white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(rng.standard_normal(frames))
    bins = np.maximum(np.arange(len(spectrum)), 1)
    return torch.from_numpy(np.fft.irfft(spectrum * bins ** (-beta / 2), frames)).float()


def prompts(split: str | None = None) -> list[tuple[Path, str]]:
    """The embedded clips and their speakers, of one split or all."""
    with (ASSETS / "index.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [(ASSETS / row["file"], row["speaker"]) for row in rows if split in (None, row["split"])]


def _embedded_music(split: str, rate: int) -> Collection:
    tracks = Clips(find_audio(ASSETS / "music", "music"), rate)
    if split == "train":
        return tracks[0], tracks[1]
    half = len(tracks[2]) // 2
    return (tracks[2][:half],) if split == "valid" else (tracks[2][half:],)
