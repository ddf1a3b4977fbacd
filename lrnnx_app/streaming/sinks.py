"""Where samples go: an audio file that appears whole, or raw PCM through a pipe."""

import os
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import soundfile
from torch import Tensor

from lrnnx_app.audio_io import SUFFIXES
from lrnnx_app.errors import DataError
from lrnnx_app.streaming.sources import FORMATS, FULL_SCALE


class Sink(Protocol):
    """Takes samples (T,) in [−1, 1]; `close` completes the result, `abort` leaves none."""

    def write(self, samples: Tensor) -> None: ...

    def close(self) -> None: ...

    def abort(self) -> None: ...


class AudioFile:
    """A mono file written beside its final name, which it gets when it is whole.

    Raises:
        DataError: the name or the folder does not serve.
    """

    def __init__(self, target: Path, rate: int, subtype: str | None = None) -> None:
        if target.suffix.lower() not in SUFFIXES:
            raise DataError(f"{target}: expected an output ending in {', '.join(SUFFIXES)}")
        if not target.parent.is_dir():
            raise DataError(f"{target}: no such folder; make {target.parent} first")
        self.target, self._part = target, target.with_name(f".{target.stem}.part{target.suffix}")
        if subtype is None or not soundfile.check_format(target.suffix[1:].upper(), subtype):
            subtype = None
        try:
            place: Any = os.fsencode(self._part)  # any bytes of a name
            self._file = soundfile.SoundFile(place, "w", rate, 1, subtype)
        except soundfile.LibsndfileError as error:
            raise DataError(f"{target}: cannot be written ({error})") from error

    def write(self, samples: Tensor) -> None:
        try:
            self._file.write(samples.clamp(-1, 1).numpy())
        except soundfile.LibsndfileError as error:
            raise DataError(f"{self.target}: cannot be written ({error})") from error

    def close(self) -> None:
        self._file.close()
        if self._part.exists():  # not there if an interrupt came after the last call did its work
            os.replace(self._part, self.target)

    def abort(self) -> None:
        self._file.close()
        self._part.unlink(missing_ok=True)


class Pcm:
    """Raw samples in one of FORMATS, each chunk handed on at once."""

    def __init__(self, stream: BinaryIO, form: str) -> None:
        self._stream, self._dtype = stream, FORMATS[form]

    def write(self, samples: Tensor) -> None:
        if self._dtype.kind == "i":
            samples = (samples * FULL_SCALE).round().clamp(-FULL_SCALE, FULL_SCALE - 1)
        self._stream.write(samples.numpy().astype(self._dtype).tobytes())
        self._stream.flush()

    def close(self) -> None:
        self._stream.flush()

    def abort(self) -> None:
        pass
