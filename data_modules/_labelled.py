"""Recordings to classify, and recordings whose samples are predicted."""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data_modules._augment import Augment
from data_modules._mixtures import part
from data_modules._speech_commands import Clip
from lrnnx_app.data.audio_io import read_mono
from lrnnx_app.spec import Example

KEPT = 512  # decoded files that a process keeps in memory


class Labelled:
    """Clips of `seconds`: a random part for training, else the middle. Silence fills a short clip."""

    def __init__(self, clips: Sequence[Clip], config: Any, train: bool) -> None:
        self.clips, self.config, self.train = clips, config, train
        self.labels = [clip.label for clip in clips]
        self.frames = round(config.seconds * config.sample_rate)
        self.augment = Augment(config.augment, config.sample_rate)
        self._read = lru_cache(KEPT)(read_mono)

    def __len__(self) -> int:
        return len(self.clips)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        clip = self.clips[index]
        wave = self._read(clip.path, self.config.sample_rate)
        begin, end = (round(share * len(wave)) for share in clip.part)
        wave = wave[begin:end]
        long = clip.part != (0.0, 1.0)  # a random place in a long recording, in every split
        if self.train:
            wave = self.augment.voice(wave, rng)
        wave = part(wave, self.frames, rng) if self.train or long else _middle(wave, self.frames)
        if self.train:
            wave = self.augment.heard(wave, rng)
        return Example(wave[:, None], torch.tensor(clip.label), name=clip.path.stem)


class Continued:
    """Parts of recordings (T, 1) with the sample that follows each; evaluation takes each clip's middle."""

    def __init__(self, clips: Sequence[Clip], config: Any, train: bool) -> None:
        self.labelled = Labelled(clips, config, train)
        self.labelled.frames += 1

    def __len__(self) -> int:
        return len(self.labelled)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        x, _, _, name = self.labelled.example(index, rng)
        return Example(x[:-1], x[1:], name=name)


def _middle(wave: Tensor, frames: int) -> Tensor:
    spare = len(wave) - frames
    if spare >= 0:
        return wave[spare // 2 : spare // 2 + frames]
    return torch.nn.functional.pad(wave, (-spare // 2, -spare - (-spare // 2)))
