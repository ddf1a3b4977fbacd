"""Sound: noisy speech to denoise, words and voices to classify, samples to predict."""

import math
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch

from data_modules._augment import AugmentConfig
from data_modules._labelled import Continued, Labelled
from data_modules._mixtures import mixtures, prompts
from data_modules._pairs import pairs
from data_modules._pictures import by_class, class_of, classes_of
from data_modules._speech_commands import TWELVE, WORDS, Clip, speech_commands
from data_modules._splits import own
from lrnnx_app.data.audio_io import SUFFIXES, find_audio, read_mono
from lrnnx_app.data.module import DataModule, Source
from lrnnx_app.errors import RecipeError, one_of
from lrnnx_app.spec import DataSpec, Example

LAYOUTS = ("mixtures", "pairs", "speech_commands", "folders", "voices", "continued")
PAIRED = ("speed", "reverb", "rooms", "colour", "clip", "telephone", "noise", "bursts")
UNUSED = {"mixtures": ("gain", "noise"), "pairs": PAIRED}  # kinds of augmentation; elsewhere bursts
CLASSES = {len(WORDS): WORDS, len(TWELVE): TWELVE}


class Audio(DataModule):
    """Waveforms (T, 1) at `sample_rate`, from files of any rate, as the mean of their channels. By `layout`:

    mixtures         noisy and clean speech. Embedded: prompts of three speakers, two music tracks for
                     training, and the halves of a third track for validation and test. With `root` and
                     `noise_root`: all audio files below them. Babble is made from other clips of the same
                     split. Validation and test mix each clip `mixtures` times, alike in every run.
    pairs            noisy and clean speech in the folders of VoiceBank+DEMAND, resampled once into a cache.
                     Two speakers are used for validation.
    speech_commands  Speech Commands v2, split by its own lists: 35 words, or 10 with "unknown" and "silence".
    folders          one folder for each class below `root`. Files whose names are equal before "_nohash_"
                     stay in one split.
    voices           embedded: the speaker of a prompt, English, Italian or Russian. No clip is in two splits.
    continued        samples to predict, from the embedded prompts or from all files below `root`.

    The user's files are split by folders train, valid and test if there are such. Else they are ordered by a
    hash of their paths, and split into the shares of `split`.
    """

    @dataclass
    class Config(DataModule.Config):
        layout: str = "mixtures"  # mixtures | pairs | speech_commands | folders | voices | continued
        noise_root: str = ""  # folder of noise files, instead of the embedded music
        sample_rate: int = 16000  # Hz, of the model's input
        seconds: float = 2.0  # s, length of an example for training, classification or prediction
        classes: int = 35  # words of Speech Commands, 35 or 12 (10 with "unknown" and "silence")
        snr_min: float = -2.0  # dB, lowest ratio of speech to noise in a mixture
        snr_max: float = 10.0  # dB, highest ratio of speech to noise in a mixture
        music: float = 0.4  # share of mixtures with music or the user's noise files
        babble: float = 0.3  # share of mixtures with other voices
        coloured: float = 0.3  # share of mixtures with noise of a 1/f^β spectrum, β in [0, 2]
        examples_per_epoch: int = 1600  # mixtures that an epoch draws
        clean: float = 0.0  # share of the training mixtures without noise
        alone: float = 0.0  # share of the training mixtures without speech
        level_min: float = -12.0  # dB, lowest level of a training mixture; the highest is full scale
        mixtures: int = 3  # times that each clip is mixed in validation and test
        augment: AugmentConfig = field(default_factory=AugmentConfig)  # of training examples

        def __post_init__(self) -> None:
            one_of("layout", self.layout, LAYOUTS)
            for name in UNUSED.get(self.layout, ("bursts",)):
                if getattr(self.augment, name) != getattr(AugmentConfig(), name):
                    raise RecipeError(f"augment.{name}: layout {self.layout} does not use it; leave it out")
            shares = (self.music, self.babble, self.coloured)
            if min(shares) < 0 or not math.isclose(sum(shares), 1):
                raise RecipeError(f"music, babble and coloured: expected shares that sum to 1, not {shares}")
            if not (self.clean >= 0 and self.alone >= 0 and self.clean + self.alone <= 1):
                raise RecipeError(
                    f"clean and alone: expected shares of at most 1 together, not {self.clean}, {self.alone}"
                )
            if not -math.inf < self.level_min <= 0:
                raise RecipeError(f"level_min: expected 0 dB or less, not {self.level_min}")
            if not -math.inf < self.snr_min <= self.snr_max < math.inf:
                raise RecipeError(
                    f"snr_min: expected a number up to snr_max ({self.snr_max}), not {self.snr_min}"
                )
            if not self.sample_rate * self.seconds >= 1:
                raise RecipeError(f"seconds: expected at least one sample, not {self.seconds}")
            if self.classes not in CLASSES:
                raise RecipeError(
                    f"classes: expected one of {', '.join(map(str, CLASSES))}, not {self.classes}"
                )

    @classmethod
    def small(cls, folder: Path) -> dict[str, Any]:
        return {"seconds": 0.1, "examples_per_epoch": 8, "mixtures": 1}

    @cached_property
    def spec(self) -> DataSpec:  # pyright: ignore[reportIncompatibleVariableOverride]  (derived here)
        """The description of the data; reads the user's folders only for the names of classes."""
        c = self.config
        if c.layout in ("mixtures", "pairs", "continued"):
            return DataSpec(d_input=1, d_output=1, sample_rate=c.sample_rate, target="step")
        if c.layout == "speech_commands":
            classes = CLASSES[c.classes]
        elif c.layout == "voices":
            classes = tuple(sorted({speaker for _, speaker in prompts()}))
        else:
            classes = classes_of(c.root)
        return DataSpec(1, len(classes), classes=classes, sample_rate=c.sample_rate, target="class")

    def source(self, split: str) -> Source:
        c, train = self.config, split == "train"
        if c.layout == "mixtures":
            return mixtures(c, split)
        if c.layout == "pairs":
            return pairs(c, split)
        if c.layout == "continued":
            return Continued(self._recordings(split), c, train)
        return Labelled(self._clips(split), c, train)

    def read(self, path: Path) -> Example:
        """A whole recording."""
        return Example(read_mono(path, self.config.sample_rate)[:, None], torch.tensor(0), name=path.stem)

    def _clips(self, split: str) -> list[Clip]:
        c, root = self.config, Path(self.config.root)
        if c.layout == "speech_commands":
            return speech_commands(root, split, c.classes)
        names = self.spec.classes
        if c.layout == "voices":
            return [Clip(path, names.index(speaker)) for path, speaker in prompts(split)]
        paths = by_class(root, split, c.split, SUFFIXES, group=_speaker)
        return [Clip(path, class_of(path, root, names)) for path in paths]

    def _recordings(self, split: str) -> list[Clip]:
        c = self.config
        if not c.root:
            return [Clip(path, 0) for path, _ in prompts(split)]
        found = own(Path(c.root), split, c.split, partial(find_audio, what="recordings"))
        return [Clip(path, 0) for path in found]


def _speaker(name: str) -> str:
    """The speaker of a file, whose files stay together: "a" of yes/a_nohash_0.wav, else the path."""
    speaker, mark, _ = name.rpartition("/")[2].partition("_nohash_")
    return speaker if mark else name
