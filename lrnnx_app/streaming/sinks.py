"""Outputs for samples: an audio file, which appears only when it is complete, or raw PCM to a pipe."""

import os
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import soundfile
from torch import Tensor

from lrnnx_app.data.audio_io import BLOCK, SUFFIXES
from lrnnx_app.disk import atomic
from lrnnx_app.errors import DataError
from lrnnx_app.streaming.sources import FORMATS, FULL_SCALE

# Encodings that hold every length exactly; others, such as ADPCM, pad the last block.
EXACT = (
    "PCM_S8",
    "PCM_U8",
    "PCM_16",
    "PCM_24",
    "PCM_32",
    "FLOAT",
    "DOUBLE",
    "ULAW",
    "ALAW",
    "VORBIS",
    "OPUS",
)
FLOATS = ("FLOAT", "DOUBLE")
WIDTHS = {"PCM_16": 2, "PCM_24": 3, "PCM_32": 4, "FLOAT": 4, "DOUBLE": 8}  # bytes of a sample
FINEST = {".flac": "PCM_24"}  # the finest encoding of a format, used for inputs that are finer
WAV_BYTES = 2**32 - 2**20  # of samples: a wav's header counts up to 2^32 bytes, headers included


class Sink(Protocol):
    """Takes samples (T,), with full scale at ±1. `close` completes the result, `abort` removes it."""

    def write(self, samples: Tensor) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


class AudioFile:
    """A mono audio file. It is written under a hidden name, and gets its own name when it is complete.

    A wav that grows beyond what its header can count becomes an RF64, which most programs read as a wav.

    Args:
        subtype: encoding of the input (soundfile's name); the output has the same, if its format allows it.

    Raises:
        DataError: the file's format is unknown, or the file cannot be written.
    """

    def __init__(self, target: Path, rate: int, subtype: str | None = None) -> None:
        suffix = target.suffix.lower()
        if suffix not in SUFFIXES:
            raise DataError(f"{target}: expected an output ending in {', '.join(SUFFIXES)}")
        if not target.parent.is_dir():
            raise DataError(f"{target}: no such folder; make {target.parent} first")
        self.target, self._part = target, atomic.part_of(target)
        self._rate, self._format = rate, suffix[1:].upper()
        self._subtype = encoding(suffix, subtype)
        self._file = self._opened(self._format)
        self._written = 0

    def write(self, samples: Tensor) -> None:
        width = WIDTHS.get(self._subtype, 1)
        if self._format == "WAV" and width * (self._written + len(samples)) > WAV_BYTES:
            self._widen()
        self._written += len(samples)
        if self._subtype not in FLOATS:
            samples = samples.clamp(-1, 1)
        try:
            self._file.write(samples.numpy())
        except soundfile.LibsndfileError as error:
            raise DataError(f"{self.target}: cannot be written ({error})") from error

    def close(self) -> None:
        self._file.close()
        if self._part.exists():  # missing if an interrupt came right after the rename
            atomic.finish(self._part, self.target)

    def abort(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)

    def _opened(self, form: str) -> soundfile.SoundFile:
        """Open the hidden file, new and empty."""
        try:
            place: Any = os.fsencode(atomic.begin(self.target))  # any bytes of a name
            return soundfile.SoundFile(place, "w", self._rate, 1, self._subtype, format=form)
        except (OSError, soundfile.LibsndfileError) as error:
            self._part.unlink(missing_ok=True)
            raise DataError(f"{self.target}: cannot be written ({error})") from error

    def _widen(self) -> None:
        """Copy what was written so far to an RF64, and continue in that."""
        self._file.close()
        narrow = self._part.with_name(f"{self._part.name}.wav")
        os.replace(self._part, narrow)
        try:
            self._format, self._file = "RF64", self._opened("RF64")
            kind = "float64" if self._subtype in FLOATS else "int32"
            place: Any = os.fsencode(narrow)
            for block in soundfile.blocks(place, BLOCK, dtype=kind):
                self._file.write(block)
        except soundfile.LibsndfileError as error:
            raise DataError(f"{self.target}: cannot be written ({error})") from error
        finally:
            narrow.unlink()


def encoding(suffix: str, subtype: str | None) -> str:
    """The encoding for a file of this suffix: the input's own, or the nearest one that the format has."""
    form = suffix[1:].upper()
    if subtype is not None and subtype in EXACT and soundfile.check_format(form, subtype):
        return subtype
    usual = str(soundfile.default_subtype(form))
    return FINEST.get(suffix, usual) if subtype in (*FLOATS, "PCM_32") else usual


def pcm(samples: np.ndarray, dtype: np.dtype) -> bytes:
    """Samples as raw ones, in one of FORMATS."""
    if dtype.kind == "i":
        samples = (samples * FULL_SCALE).round().clip(-FULL_SCALE, FULL_SCALE - 1)
    return samples.astype(dtype, copy=False).tobytes()


class Pcm:
    """Raw samples in one of FORMATS; each chunk is written at once."""

    def __init__(self, stream: BinaryIO, form: str) -> None:
        self._stream, self._dtype = stream, FORMATS[form]

    def write(self, samples: Tensor) -> None:
        self._stream.write(pcm(samples.numpy(), self._dtype))
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()

    def abort(self) -> None:
        pass
