"""Many audio files at another rate, made once into a cache on disk."""

import fcntl
import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from lrnnx_app.audio_io import read_mono

SAMPLES, ENDS = "samples.i16", "ends.npy"
FULL = 32767  # of 16 bits


class Resampled:
    """Waveforms (T,) at `rate` Hz by number, kept as 16-bit samples in one file that is mapped into memory.

    One process makes the cache while others wait for it, in a folder that gets its name when it is whole:
    what was interrupted is never taken for it. Its key is every file's path, size and time of change, and the
    rate.
    """

    def __init__(self, paths: Sequence[Path], rate: int) -> None:
        self.paths = list(paths)
        facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in self.paths]
        key = hashlib.sha256(repr((rate, facts)).encode()).hexdigest()[:20]
        folder = _cache() / key
        if not folder.is_dir():
            _make(folder, self.paths, rate)
        self.folder = folder
        self.ends = np.load(folder / ENDS)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        start = int(self.ends[index - 1]) if index else 0
        size = int(self.ends[index]) - start
        samples = np.memmap(self.folder / SAMPLES, np.int16, "r", 2 * start, (size,))
        return torch.from_numpy(samples.astype(np.float32)) / FULL


def _make(folder: Path, paths: Sequence[Path], rate: int) -> None:
    folder.parent.mkdir(parents=True, exist_ok=True)
    with (folder.parent / f"{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # falls when this process ends, however it ends
        if folder.is_dir():
            return
        part = Path(tempfile.mkdtemp(prefix=f"{folder.name}.part.", dir=folder.parent))
        try:
            sizes = []
            progress = tqdm(paths, f"resampling to {rate} Hz", unit="file", disable=not sys.stderr.isatty())
            with (part / SAMPLES).open("wb") as file:
                for path in progress:
                    wave = (read_mono(path, rate).clamp(-1, 1) * FULL).round().short().numpy()
                    file.write(wave.tobytes())
                    sizes.append(len(wave))
            np.save(part / ENDS, np.cumsum(sizes))
            os.rename(part, folder)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LRNNX_CACHE") or Path(base) / "lrnnx") / "audio"
