"""Reading audio files, and folders of them, as mono float32 at one rate."""

import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import numpy as np
import soundfile
import torch
from torchaudio.functional import resample

from lrnnx_app.errors import DataError

SUFFIXES = (".wav", ".flac", ".ogg")
BLOCK = 1 << 18  # samples of all channels to read at a time
LOWEST_RATE = 1000  # Hz
MOST_TAPS = 2**25  # of the filter between two rates: their product, each without the common factor
KEEP_SECONDS = 3600.0  # a collection up to this long stays decoded in memory


def open_audio(path: Path) -> soundfile.SoundFile:
    """Open a file for reading.

    Raises:
        DataError: the file is missing, is no audio, or is empty.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a wav, flac or ogg file")
    try:
        file = soundfile.SoundFile(os.fsencode(path))  # type: ignore[arg-type]  (any bytes)
    except (soundfile.LibsndfileError, TypeError) as error:
        raise DataError(f"{path}: not readable as audio; expected wav, flac or ogg ({error})") from error
    if file.frames < 1:
        raise DataError(f"{path}: holds no samples; expected at least one")
    return file


def check_rate(place: Path | str, source: int, target: int) -> None:
    """Whether samples at `source` Hz can be converted to `target` Hz.

    Raises:
        DataError: the rate is no rate of sound, or the filter would not fit into memory.
    """
    common = math.gcd(source, target)
    if source < LOWEST_RATE or source // common * (target // common) > MOST_TAPS:
        raise DataError(
            f"{place}: {source} Hz; expected a rate of {LOWEST_RATE} Hz or more that has a large factor in "
            f"common with {target}, such as 44100: convert the file"
        )


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """While samples of an open file are read.

    Raises:
        DataError: the file is cut short or damaged.
    """
    try:
        yield
    except soundfile.LibsndfileError as error:
        raise DataError(f"{path}: cut short or damaged ({error}); expected a whole file") from error


def mono(samples: np.ndarray, path: Path, start: int = 0) -> np.ndarray:
    """(T, channels) mixed down to (T,), of which the first is the file's sample `start`.

    Raises:
        DataError: a sample is NaN or infinite.
    """
    mixed = samples.mean(1)
    if not np.isfinite(mixed).all():
        at = start + int(np.flatnonzero(~np.isfinite(mixed))[0])
        raise DataError(
            f"{path}: sample {at} is not a finite number; expected finite samples, repair the file"
        )
    return mixed


def mono_blocks(file: soundfile.SoundFile, path: Path) -> Iterator[np.ndarray]:
    """(T,) at a time up to where an open file ends, which its header need not know.

    Raises:
        DataError: see `decoding` and `mono`.
    """
    start = 0
    with decoding(path):
        while len(block := file.read(max(1, BLOCK // file.channels), dtype="float32", always_2d=True)):
            yield mono(block, path, start)
            start += len(block)


def read_mono(path: Path, rate: int) -> torch.Tensor:
    """The whole file as (T,) at `rate` Hz.

    Raises:
        DataError: see `open_audio`, `check_rate` and `mono_blocks`.
    """
    with open_audio(path) as file:
        check_rate(path, file.samplerate, rate)
        blocks = list(mono_blocks(file, path))
        if not blocks:
            raise DataError(f"{path}: cut short, none of its {file.frames} samples is there")
        samples = torch.from_numpy(np.concatenate(blocks))
        return samples if file.samplerate == rate else resample(samples, file.samplerate, rate)


class Clips:
    """A list of audio files, decoded on demand; a small collection is kept in memory.

    Attributes:
        lengths: samples of each at `rate`, as its header has them.
    """

    def __init__(self, paths: Iterable[Path], rate: int) -> None:
        self.paths = list(paths)
        self.rate = rate
        seconds = np.zeros(len(self.paths))
        for index, path in enumerate(self.paths):
            with open_audio(path) as file:
                seconds[index] = file.frames / file.samplerate
        self.lengths = np.ceil(seconds * rate).astype(np.int64)
        self._read = lru_cache(None if seconds.sum() <= KEEP_SECONDS else 64)(read_mono)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._read(self.paths[index], self.rate)


def excerpt(clip: torch.Tensor, frames: int, rng: np.random.Generator) -> torch.Tensor:
    """`frames` samples from a random place of a clip (T,), repeated where the clip is shorter."""
    if len(clip) < frames:
        clip = clip.repeat(-(-frames // len(clip)))
    start = int(rng.integers(0, len(clip) - frames + 1))
    return clip[start : start + frames]


def find_audio(folder: Path, what: str) -> list[Path]:
    """All audio files below a folder, sorted.

    Raises:
        DataError: the folder is missing or holds none; says what was wanted.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with {what} (wav, flac or ogg)")
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: no wav, flac or ogg file in it; expected {what}")
    return paths
