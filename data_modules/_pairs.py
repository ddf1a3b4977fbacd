"""Folders of clean and noisy recordings of the same names, as VoiceBank+DEMAND has them."""

from pathlib import Path
from typing import Any

import numpy as np

from data_modules._augment import Augment
from data_modules._expected import File, Published
from data_modules._resampled import Resampled
from lrnnx_app.data.audio_io import Clips, find_audio, open_audio
from lrnnx_app.errors import DataError
from lrnnx_app.spec import Example

HELD_OUT = ("p226", "p287")  # speakers of the training set that are kept for validation
VOICEBANK = Published(
    "VoiceBank+DEMAND",
    "Valentini-Botinhao 2017, doi 10.7488/ds/2117",
    (
        File("clean_trainset_28spk_wav", remark="11,572 wav files at 48 kHz, p226_001.wav and so on"),
        File("noisy_trainset_28spk_wav", remark="the same names"),
        File("clean_testset_wav", remark="824 wav files, of two other speakers"),
        File("noisy_testset_wav", remark="the same names"),
    ),
)


def pairs(config: Any, split: str) -> "Pairs":
    """The pairs of a split; validation has two of the training set's speakers.

    Raises:
        DataError: a folder is missing, a file has no partner, or a pair differs in length or rate.
    """
    root, part = Path(config.root), "testset_wav" if split == "test" else "trainset_28spk_wav"
    folders = [root / f"{kind}_{part}" for kind in ("clean", "noisy")]
    for folder in folders:
        if not config.root or not folder.is_dir():
            raise VOICEBANK.missing(root, folder.name)
    clean, noisy = (find_audio(folder, "recordings") for folder in folders)
    unpaired = {path.name for path in clean} ^ {path.name for path in noisy}
    if unpaired:
        name = min(unpaired)
        raise DataError(f"{folders[0]} and {folders[1]}: {name} is in one of them only; expected pairs")
    if split != "test":
        held = split == "valid"
        clean, noisy = (
            [p for p in paths if (p.name.partition("_")[0] in HELD_OUT) == held] for paths in (clean, noisy)
        )
        if not clean:
            rule = f"files of the speakers {' and '.join(HELD_OUT)} are for validation, others for training"
            raise DataError(f"{folders[0]}: nothing for the {split} split: {rule}")
    rate = config.sample_rate
    return Pairs(_at(clean, rate), _at(noisy, rate), config, split == "train")


def _at(paths: list[Path], rate: int) -> Clips | Resampled:
    with open_audio(paths[0]) as file:
        same = file.samplerate == rate
    return Clips(paths, rate) if same else Resampled(paths, rate)


class Pairs:
    """Noisy and clean: random parts for training, whole clips otherwise."""

    def __init__(self, clean: Clips | Resampled, noisy: Clips | Resampled, config: Any, train: bool) -> None:
        self.clean, self.noisy, self.config, self.train = clean, noisy, config, train
        self.paths = clean.paths
        longest = round(config.seconds * config.sample_rate)
        self.lengths = np.minimum(clean.lengths, longest) if train else clean.lengths
        self.augment = Augment(config.augment, config.sample_rate)

    def __len__(self) -> int:
        return len(self.clean)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        clean, noisy = self.clean[index], self.noisy[index]
        if len(clean) != len(noisy):
            raise DataError(
                f"{self.paths[index]}: {len(clean)} samples, but its noisy partner has {len(noisy)}; "
                "expected equally many"
            )
        if self.train:
            frames = round(self.config.seconds * self.config.sample_rate)
            start = int(rng.integers(0, max(0, len(clean) - frames) + 1))
            clean, noisy = clean[start : start + frames], noisy[start : start + frames]
            noisy = self.augment.masked(noisy, rng)
            gain = 10 ** (rng.uniform(-1, 1) * self.config.augment.gain / 20)
            clean, noisy = clean * gain, noisy * gain
        return Example(noisy[:, None], clean[:, None], name=self.paths[index].stem)
