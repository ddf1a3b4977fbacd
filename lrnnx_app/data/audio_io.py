"""Reading audio files, and folders of them, as mono float32 at one rate."""

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch

from lrnnx_app.data.resample import Resampler, fits
from lrnnx_app.disk.files import below
from lrnnx_app.errors import DataError

SUFFIXES = (".wav", ".flac", ".ogg")
BLOCK = 1 << 18  # samples of all channels to read at a time
UNKNOWN = 2**62  # samples; a FLAC that was written to a pipe claims more in its header
LOWEST_RATE = 1000  # Hz
KEEP_SECONDS = 3 * 3600.0  # a collection up to this long is kept decoded in memory: 690 MB at 16 kHz


class _InOrder(soundfile.SoundFile):
    """A file that is only read forwards, from its start to its end."""

    def seekable(self) -> bool:
        return False


def open_audio(path: Path) -> soundfile.SoundFile:
    """Open a file for reading.

    Raises:
        DataError: the file is missing, is no audio, or is empty.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected a wav, flac or ogg file")
    try:
        place: Any = os.fsencode(path)  # any bytes of a name
        file = soundfile.SoundFile(place)
        if file.frames > UNKNOWN:
            file.close()
            file = _InOrder(place)
    except (soundfile.LibsndfileError, TypeError) as error:
        raise DataError(f"{path}: not readable as audio; expected wav, flac or ogg ({error})") from error
    if file.frames < 1:
        raise DataError(f"{path}: holds no samples; expected at least one")
    return file


def check_rate(place: Path | str, source: int, target: int) -> None:
    """Whether samples at `source` Hz can be converted to `target` Hz.

    Raises:
        DataError: the rate is too low for sound, or the filter would not fit into memory.
    """
    if source < LOWEST_RATE or not fits(source, target) or not fits(target, source):
        raise DataError(
            f"{place}: {source} Hz; expected a rate of {LOWEST_RATE} Hz or more that has a large factor in "
            f"common with {target}, such as 44100: convert the file"
        )


@contextmanager
def decoding(path: Path) -> Iterator[None]:
    """Wraps reading samples of an open file.

    Raises:
        DataError: the file is incomplete or damaged.
    """
    try:
        yield
    except soundfile.LibsndfileError as error:
        raise DataError(f"{path}: cut short or damaged ({error}); expected a whole file") from error


def mono(samples: np.ndarray, path: Path, start: int = 0) -> np.ndarray:
    """The mean of the channels of (T, channels), as (T,). `start` is the first sample's place in the file.

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
    """Blocks (T,) up to the end of an open file, also if its header does not tell the length.

    Raises:
        DataError: see `decoding` and `mono`.
    """
    start = 0
    with decoding(path):
        while len(block := file.read(max(1, BLOCK // file.channels), dtype="float32", always_2d=True)):
            yield mono(block, path, start)
            start += len(block)


def read_mono(path: Path, rate: int) -> torch.Tensor:
    """A whole file as samples (T,) at `rate` Hz.

    Raises:
        DataError: see `open_audio`, `check_rate` and `mono_blocks`.
    """
    with open_audio(path) as file:
        check_rate(path, file.samplerate, rate)
        blocks = list(mono_blocks(file, path))
        if not blocks:
            raise DataError(f"{path}: cut short, none of its samples is there; expected a whole file")
        samples = torch.from_numpy(np.concatenate(blocks))
        converter = Resampler(file.samplerate, rate)
        return torch.cat((converter.push(samples), converter.finish()))


class Clips:
    """A list of audio files, decoded on demand; a small collection is kept in memory.

    Attributes:
        lengths: number of samples of each file at `rate`.
    """

    def __init__(self, paths: Iterable[Path], rate: int) -> None:
        self.paths = list(paths)
        self.rate = rate
        seconds = np.zeros(len(self.paths))
        for index, path in enumerate(self.paths):
            with open_audio(path) as file:
                source = file.samplerate
            seconds[index] = length_of(path) / source
        self.lengths = np.ceil(seconds * rate).astype(np.int64)
        self._read = lru_cache(None if seconds.sum() <= KEEP_SECONDS else 64)(read_mono)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> torch.Tensor:
        return self._read(self.paths[index], self.rate)


def length_of(path: Path) -> int:
    """The number of samples in a file, from its header, or counted if the header does not tell it.

    Raises:
        DataError: see `open_audio` and `mono_blocks`.
    """
    with open_audio(path) as file:
        return file.frames if file.frames <= UNKNOWN else sum(map(len, mono_blocks(file, path)))


def excerpt(clip: torch.Tensor, frames: int, rng: np.random.Generator) -> torch.Tensor:
    """`frames` samples from a random place of a clip (T,); a shorter clip is repeated."""
    if len(clip) < frames:
        clip = clip.repeat(-(-frames // len(clip)))
    start = int(rng.integers(0, len(clip) - frames + 1))
    return clip[start : start + frames]


def find_audio(folder: Path, what: str) -> list[Path]:
    """All audio files below a folder, sorted.

    Raises:
        DataError: the folder is missing or contains no audio; says what was expected.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: no such folder; expected one with {what} (wav, flac or ogg)")
    paths = below(folder, SUFFIXES)
    if not paths:
        raise DataError(f"{folder}: no wav, flac or ogg file in it; expected {what}")
    return paths
