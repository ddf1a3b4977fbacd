"""Where samples come from: blocks of an audio file, or of raw PCM that arrives through a pipe."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile
import torch
from torch import Tensor

from lrnnx_app.audio_io import mono, mono_blocks
from lrnnx_app.streaming.resample import Resampler

READ_BYTES = 1 << 16  # of a pipe at the most
FORMATS = {"s16le": np.dtype("<i2"), "f32le": np.dtype("<f4")}
FULL_SCALE = 2**15  # of 16-bit samples


class Steps(NamedTuple):
    """x (T, d_input) or (T,) tokens, and dt (T,) or None."""

    x: Tensor
    dt: Tensor | None = None


def file_blocks(reader: soundfile.SoundFile, path: Path) -> Iterator[Tensor]:
    """Mono blocks (T,) of an open file; DataError where it is damaged or holds no finite number."""
    with reader:
        yield from map(torch.from_numpy, mono_blocks(reader, path))


def pcm_blocks(file: int, channels: int, form: str) -> Iterator[Tensor]:
    """Mono blocks (T,) of raw interleaved PCM, each as soon as it has arrived.

    Args:
        file: a descriptor to read from; a buffered file would hold samples back.
        form: of FORMATS.
    """
    dtype = FORMATS[form]
    frame, rest = channels * dtype.itemsize, b""
    while data := os.read(file, READ_BYTES):
        data = rest + data
        whole = len(data) // frame * frame
        rest = data[whole:]
        if whole:
            samples = np.frombuffer(data[:whole], dtype).reshape(-1, channels).astype(np.float32)
            scale = FULL_SCALE if dtype.kind == "i" else 1
            yield torch.from_numpy(mono(samples / scale, Path("standard input")))


class Resampled:
    """Samples of blocks (T,) at `source` Hz, as many at a time as asked for, at `target` Hz.

    Attributes:
        taken: samples that the blocks have given so far.
    """

    def __init__(self, blocks: Iterator[Tensor], source: int, target: int) -> None:
        self._blocks, self._converter = blocks, Resampler(source, target)
        self._pending, self._ended = torch.zeros(0), False
        self.taken, self.delay = 0, self._converter.delay

    def read(self, count: int) -> Tensor:
        """(count,), or fewer samples where the blocks end."""
        while len(self._pending) < count and not self._ended:
            block = next(self._blocks, None)
            self._ended = block is None
            more = self._converter.finish() if block is None else self._converter.push(block)
            self.taken += 0 if block is None else len(block)
            self._pending = torch.cat((self._pending, more))
        samples, self._pending = self._pending[:count], self._pending[count:]
        return samples
