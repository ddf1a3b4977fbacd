"""Audio files converted to another rate once, and kept in a cache on disk."""

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lrnnx_app.data.audio_io import read_mono
from lrnnx_app.disk import cache

SAMPLES, ENDS = "samples.i16", "ends.npy"
FULL = 32767  # of 16 bits


class Resampled:
    """Waveforms (T,) at `rate` Hz, by number. One file holds all as 16-bit samples; it is mapped into memory.

    Attributes:
        lengths: number of samples of each waveform.
    """

    def __init__(self, paths: Sequence[Path], rate: int) -> None:
        self.paths = list(paths)
        self.folder = cache.folder(
            "audio", (rate, cache.stamps(paths)), lambda part: _write(part, self.paths, rate)
        )
        self.ends = np.load(self.folder / ENDS)
        self.lengths = np.diff(self.ends, prepend=0)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        start = int(self.ends[index - 1]) if index else 0
        size = int(self.lengths[index])
        samples = np.memmap(self.folder / SAMPLES, np.int16, "r", 2 * start, (size,))
        return torch.from_numpy(samples.astype(np.float32)) / FULL


def _write(folder: Path, paths: Sequence[Path], rate: int) -> None:
    sizes = []
    progress = tqdm(paths, f"resampling to {rate} Hz", unit="file", disable=not sys.stderr.isatty())
    with (folder / SAMPLES).open("wb") as file:
        for path in progress:
            wave = (read_mono(path, rate).clamp(-1, 1) * FULL).round().short().numpy()
            file.write(wave.tobytes())
            sizes.append(len(wave))
    np.save(folder / ENDS, np.cumsum(sizes))
