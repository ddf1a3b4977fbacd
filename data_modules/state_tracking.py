"""State tracking: the permutation that a series of permutations comes to, step by step, made on the fly."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lrnnx_app.data.module import DataModule, Source
from lrnnx_app.errors import RecipeError, one_of
from lrnnx_app.spec import Batch, DataSpec, Example

GROUPS = {"parity": 2, "s3": 3, "s4": 4, "s5": 5}  # things that are permuted


class StateTracking(DataModule):
    """Tokens x (T,), permutations of a few things, and y (T,): what those up to each step come to.

    Of two things a token says whether to exchange them, and y is the parity of the exchanges. Tokens are
    drawn evenly. Validation and test have longer series than training, and are the same in every run: in
    Grazzi et al. 2024 (arXiv 2411.12537) up to 40 steps teach what is asked of up to 256.
    """

    @dataclass
    class Config(DataModule.Config):
        group: str = "parity"  # parity | s3 | s4 | s5: permutations of 2, 3, 4 or 5 things
        swaps: bool = False  # a token exchanges two things or none, instead of being any permutation
        length: int = 40  # steps of training
        test_length: int = 256  # steps of validation and test
        examples_per_epoch: int = 5000  # series that an epoch draws
        test_examples: int = 500  # series of validation, and of the test

        def __post_init__(self) -> None:
            one_of("group", self.group, tuple(GROUPS))
            if self.root:
                raise RecipeError("root: these data are made; leave it out")
            if min(self.length, self.test_length, self.examples_per_epoch, self.test_examples) < 1:
                raise RecipeError(
                    "length, test_length, examples_per_epoch and test_examples: expected at least 1"
                )

    @classmethod
    def small(cls, folder: Path) -> dict[str, Any]:
        return {"length": 8, "test_length": 12, "examples_per_epoch": 20, "test_examples": 10}

    def __init__(self, config: Config, seed: int = 0) -> None:
        super().__init__(config, seed)
        self.spec = DataSpec(len(self.tokens), len(self.product), tokens=True, target="step")

    def source(self, split: str) -> Source:
        c, train = self.config, split == "train"
        count, length = (c.examples_per_epoch, c.length) if train else (c.test_examples, c.test_length)
        return Series(count, length, self.product[:, self.tokens])

    @cached_property
    def product(self) -> np.ndarray:
        """(n, n) the number of the permutation that the second one after the first one comes to."""
        things = GROUPS[self.config.group]
        every = np.array(list(permutations(range(things))))  # in order, so that the first is none
        places = things ** np.arange(things)
        number = {int(p @ places): i for i, p in enumerate(every)}
        return np.array([[number[int(first[then] @ places)] for then in every] for first in every])

    @cached_property
    def tokens(self) -> np.ndarray:
        """The numbers of the permutations that a token may be."""
        every = np.array(list(permutations(range(GROUPS[self.config.group]))))
        moved = (every != every[0]).sum(1)
        return np.flatnonzero(moved <= 2) if self.config.swaps else np.arange(len(every))


class Series:
    """`count` series of `length` tokens; moved (n, tokens) is where each token leads from each state."""

    def __init__(self, count: int, length: int, moved: np.ndarray) -> None:
        self.count, self.length, self.moved = count, length, moved

    def __len__(self) -> int:
        return self.count

    def example(self, index: int, rng: np.random.Generator) -> Example:
        batch = self.batch([index], [rng])
        return Example(batch.x[0], batch.y[0], name=batch.names[0])

    def batch(self, rows: Sequence[int], rngs: Iterable[np.random.Generator]) -> Batch:
        x = np.stack([rng.integers(self.moved.shape[1], size=self.length) for rng in rngs])
        y, state = np.empty_like(x), np.zeros(len(x), np.int64)
        for t in range(self.length):
            y[:, t] = state = self.moved[state, x[:, t]]
        return Batch(torch.from_numpy(x), torch.from_numpy(y), names=tuple(map(str, rows)))
