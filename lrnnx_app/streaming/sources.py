"""Inputs of samples: blocks of an audio file, or of PCM that arrives through a pipe."""

import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor

from lrnnx_app.data.audio_io import mono, mono_blocks
from lrnnx_app.data.resample import Resampler
from lrnnx_app.errors import DataError
from lrnnx_app.streaming.numbers import LOUDEST
from lrnnx_app.streaming.wav import Wav, wav_header, wav_samples

READ_BYTES = 1 << 16  # most bytes of one read from a pipe
FORMATS = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
FULL_SCALE = 2**15  # a 16-bit sample of this size is 1
PIPE = Path("standard input")
OTHERS = {  # other kinds of files, known by their first bytes
    **{b"fLaC": "flac", b"OggS": "ogg", b"ID3": "mp3", b"RIFX": "a big-endian wav"},
    **{b"FORM": "aiff", b".snd": "au", b"caff": "caf", b"riff": "w64"},
}


class Steps(NamedTuple):
    """x (T, d_input) or (T,) tokens, and dt (T,) or None."""

    x: Tensor
    dt: Tensor | None = None


def file_blocks(reader: soundfile.SoundFile, path: Path) -> Iterator[Tensor]:
    """Mono blocks (T,) of an open file; DataError if it is damaged or a sample is not finite."""
    with reader:
        yield from map(torch.from_numpy, mono_blocks(reader, path))


class Pipe:
    """Mono blocks (T,) of raw interleaved PCM, or of a wav. Each block is given as soon as it arrives.

    Args:
        file: a file descriptor; reads from a buffered file object would wait for more samples.
        rate, channels, form: rate in Hz, number of channels and format of raw samples; a wav has its own.

    Attributes:
        rate: samples per second.

    Raises:
        DataError: the input starts with the header of another kind of file.
    """

    def __init__(self, file: int, rate: int, channels: int, form: str) -> None:
        self._file, self._held = file, b""
        head = self._exactly(4)
        self._held = head + self._held
        if head in (b"RIFF", b"RF64"):
            try:
                self._wav = wav_header(self._exactly)
            except ValueError as error:
                raise DataError(f"{PIPE}: {error}; expected a wav of PCM or float, or raw PCM") from error
        elif kind := OTHERS.get(head, OTHERS.get(head[:3])):
            raise DataError(f"{PIPE}: begins as {kind}; expected raw PCM or a wav: decode it first")
        else:
            self._wav = Wav(rate, channels, FORMATS[form].str[1:], None)
        self.rate = self._wav.rate

    def __iter__(self) -> Iterator[Tensor]:
        frame = self._wav.channels * int(self._wav.form[1])
        left, start = self._wav.size, 0
        rest, self._held = self._held, b""
        while True:
            data = rest if left is None else rest[:left]
            whole = len(data) // frame * frame
            if whole:
                samples = mono(wav_samples(data[:whole], self._wav), PIPE, start)
                start += len(samples)
                yield torch.from_numpy(samples)
            left = None if left is None else left - whole
            more = b"" if left == 0 else os.read(self._file, READ_BYTES)
            if not more:
                return
            rest = rest[whole:] + more

    def _exactly(self, count: int) -> bytes:
        """`count` bytes, or fewer at the end of the input."""
        while len(self._held) < count and (data := os.read(self._file, READ_BYTES)):
            self._held += data
        found, self._held = self._held[:count], self._held[count:]
        return found


class Resampled:
    """Reads blocks (T,) of samples at `source` Hz, and gives any number of samples at `target` Hz.

    Attributes:
        taken: number of samples read from the blocks so far.
        beyond: number of samples above LOUDEST, which a session clips.
        delay: largest delay of the conversion, in seconds.
    """

    def __init__(self, blocks: Iterable[Tensor], source: int, target: int) -> None:
        self._blocks, self._converter = iter(blocks), Resampler(source, target)
        self._pending, self._ended = torch.zeros(0), False
        self.taken, self.beyond, self.delay = 0, 0, self._converter.delay

    def read(self, count: int) -> Tensor:
        """(count,), or fewer samples where the blocks end."""
        while len(self._pending) < count and not self._ended:
            block = next(self._blocks, None)
            self._ended = block is None
            more = self._converter.finish() if block is None else self._converter.push(block)
            self.taken += 0 if block is None else len(block)
            self._pending = torch.cat((self._pending, more))
        samples, self._pending = self._pending[:count], self._pending[count:]
        self.beyond += int((samples.abs() > LOUDEST).sum())
        return samples
