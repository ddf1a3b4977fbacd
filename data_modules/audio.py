"""Noisy speech, mixed on the fly from clean clips and music, babble or coloured noise."""

import csv
import math
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from lrnnx_app.audio_io import Clips, excerpt, find_audio
from lrnnx_app.data import DataModule, DataSpec, Example, Source
from lrnnx_app.errors import DataError, RecipeError

ASSETS = Path(__file__).parent / "assets" / "prompts"
VOICES = 3  # clips summed into babble


class Audio(DataModule):
    """Pairs of noisy and clean speech (T, 1).

    Embedded: prompts of three speakers; two music tracks for training, a third one's halves for
    validation and test. With `root` and `noise_root`: every audio file below them, any rate, mixed down
    to mono; each file belongs to one split by a hash of its path. Babble is made of other clips of the
    same split. Validation and test mix each clip `mixtures` times, the same way in every run.
    """

    @dataclass
    class Config(DataModule.Config):
        noise_root: str = ""  # folder of noise files, in place of the embedded music
        sample_rate: int = 16000  # Hz
        seconds: float = 2.0  # length of a training example
        snr_min: float = -2.0  # dB
        snr_max: float = 10.0  # dB
        music: float = 0.4  # share of mixtures with music or the user's noise files
        babble: float = 0.3
        coloured: float = 0.3  # noise with a 1/f^β spectrum, β in [0, 2]
        examples_per_epoch: int = 1600
        mixtures: int = 3

        def __post_init__(self) -> None:
            shares = (self.music, self.babble, self.coloured)
            if min(shares) < 0 or not math.isclose(sum(shares), 1):
                raise RecipeError(f"music, babble and coloured: expected shares that sum to 1, not {shares}")
            if self.snr_min > self.snr_max:
                raise RecipeError(f"snr_min: expected at most snr_max ({self.snr_max}), not {self.snr_min}")
            if not self.sample_rate * self.seconds >= 1:
                raise RecipeError(f"seconds: expected at least one sample, not {self.seconds}")

    def __init__(self, config: Config, seed: int = 0) -> None:
        super().__init__(config, seed)
        self.spec = DataSpec(d_input=1, d_output=1, sample_rate=config.sample_rate)

    def source(self, split: str) -> Source:
        c = self.config
        if bool(c.root) != bool(c.noise_root):
            missing = "data.noise_root" if c.root else "data.root"
            raise DataError(
                f"{missing}: expected a folder, since data.root (clean) and data.noise_root go together"
            )
        if c.root:
            speech = _share(find_audio(Path(c.root), "clean speech"), Path(c.root), split)
            noise = Clips(
                _share(find_audio(Path(c.noise_root), "noise"), Path(c.noise_root), split), c.sample_rate
            )
        else:
            speech = _embedded_speech(split)
            noise = _embedded_music(split, c.sample_rate)
        return Mixtures(Clips(speech, c.sample_rate), noise, c, train=split == "train")


class Collection(Protocol):
    """Waveforms (T,) by number."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Tensor: ...


class Mixtures:
    """The noisy examples of one split."""

    def __init__(self, speech: Clips, noise: Collection, config: Audio.Config, train: bool) -> None:
        self.speech, self.noise, self.config, self.train = speech, noise, config, train

    def __len__(self) -> int:
        return self.config.examples_per_epoch if self.train else len(self.speech) * self.config.mixtures

    def example(self, index: int, rng: np.random.Generator) -> Example:
        index %= len(self.speech)
        clean = self._crop(self.speech[index], rng) if self.train else self.speech[index]
        level = rng.uniform(self.config.snr_min, self.config.snr_max)
        noise = self._noise(index, len(clean), rng)
        power = clean.square().mean().clamp_min(1e-10) / noise.square().mean().clamp_min(1e-10)
        noisy = clean + noise * torch.sqrt(power) * 10 ** (-level / 20)
        gain = 1 / max(1.0, float(noisy.abs().max()))
        if self.train:
            gain *= 10 ** (rng.uniform(-12, 0) / 20)
        return Example(noisy[:, None] * gain, clean[:, None] * gain, name=self.speech.paths[index].stem)

    def _crop(self, clip: Tensor, rng: np.random.Generator) -> Tensor:
        """A random part; a shorter clip is set at a random place in silence."""
        frames = round(self.config.seconds * self.config.sample_rate)
        spare = len(clip) - frames
        if spare >= 0:
            start = int(rng.integers(0, spare + 1))
            return clip[start : start + frames]
        before = int(rng.integers(0, -spare + 1))
        return torch.nn.functional.pad(clip, (before, -spare - before))

    def _noise(self, index: int, frames: int, rng: np.random.Generator) -> Tensor:
        c = self.config
        kind = rng.choice(3, p=[c.music, c.babble, c.coloured])
        if kind == 0:
            return excerpt(self.noise[int(rng.integers(len(self.noise)))], frames, rng)
        if kind == 1 and len(self.speech) > 1:
            others = (index + rng.integers(1, len(self.speech), VOICES)) % len(self.speech)
            return torch.stack([excerpt(self.speech[int(k)], frames, rng) for k in others]).sum(0)
        return coloured_noise(frames, rng.uniform(0, 2), rng)


def coloured_noise(frames: int, beta: float, rng: np.random.Generator) -> Tensor:
    """Gaussian noise (T,) with a 1/f^beta power spectrum; 0 is white, 1 pink, 2 brown."""
    spectrum = np.fft.rfft(rng.standard_normal(frames))
    bins = np.maximum(np.arange(len(spectrum)), 1)
    return torch.from_numpy(np.fft.irfft(spectrum * bins ** (-beta / 2), frames)).float()


def _embedded_speech(split: str) -> list[Path]:
    with (ASSETS / "index.csv").open(newline="") as file:
        return [ASSETS / row["file"] for row in csv.DictReader(file) if row["split"] == split]


def _embedded_music(split: str, rate: int) -> Collection:
    tracks = Clips(find_audio(ASSETS / "music", "music"), rate)
    if split == "train":
        return tracks[0], tracks[1]
    half = len(tracks[2]) // 2
    return (tracks[2][:half],) if split == "valid" else (tracks[2][half:],)


def _share(paths: list[Path], root: Path, split: str) -> list[Path]:
    """The files of one split: a tenth each for validation and test, by a hash of the relative path.

    Raises:
        DataError: no file fell to this split.
    """
    part = {0: "valid", 1: "test"}
    chosen = [
        path
        for path in paths
        if part.get(zlib.crc32(path.relative_to(root).as_posix().encode()) % 10, "train") == split
    ]
    if not chosen:
        raise DataError(f"{root}: none of its {len(paths)} files fell to the {split} split; add more files")
    return chosen
