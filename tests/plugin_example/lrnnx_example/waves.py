"""Slow and fast square waves, to be told apart."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from lrnnx_app.data.module import DataModule, Source
from lrnnx_app.errors import DataError
from lrnnx_app.spec import DataSpec, Example


class Waves(DataModule):
    """Square waves of two periods, with noise; a file of a user holds one number a line."""

    @dataclass
    class Config(DataModule.Config):
        steps: int = 32  # of an example
        examples: int = 16  # of a split

    def __init__(self, config: Config, seed: int = 0) -> None:
        super().__init__(config, seed)
        self.spec = DataSpec(1, 2, classes=("slow", "fast"))

    def source(self, split: str) -> Source:
        return _Waves(self.config)

    def read(self, path: Path) -> Example:
        try:
            numbers = np.loadtxt(path, dtype=np.float32, ndmin=1)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: not readable ({error}); expected one number a line") from error
        return Example(torch.from_numpy(numbers)[:, None], torch.tensor(0))


class _Waves:
    def __init__(self, config: Waves.Config) -> None:
        self.config = config

    def __len__(self) -> int:
        return self.config.examples

    def example(self, index: int, rng: np.random.Generator) -> Example:
        fast = index % 2
        wave = np.sign(np.sin(np.arange(self.config.steps) * (1.5 if fast else 0.3) + rng.random()))
        x = torch.from_numpy((wave + 0.1 * rng.standard_normal(len(wave))).astype(np.float32))
        return Example(x[:, None], torch.tensor(fast))
