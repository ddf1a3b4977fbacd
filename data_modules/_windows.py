"""Rows of documents of tokens: windows of one document each, or rows filled with one after another."""

from collections.abc import Iterable, Sequence
from typing import Protocol

import numpy as np
import torch

from lrnnx_app.data.module import collate
from lrnnx_app.spec import Batch, Example


class Documents(Protocol):
    """Documents of two tokens or more.

    Attributes:
        names: of the documents.
        sizes: number of tokens of each.
    """

    names: list[str]
    sizes: np.ndarray

    def part(self, document: int, start: int, stop: int) -> np.ndarray:
        """The tokens `start` to `stop` − 1 of a document, or to its end."""
        ...


class Arrays:
    """Documents in memory."""

    def __init__(self, documents: dict[str, np.ndarray]) -> None:
        self.names, self._arrays = list(documents), list(documents.values())
        self.sizes = np.array([len(array) for array in self._arrays])

    def part(self, document: int, start: int, stop: int) -> np.ndarray:
        return self._arrays[document][start:stop]


class Windows:
    """Windows of documents: `drawn` random ones in an epoch; or if that is 0, all windows in order.

    Args:
        weights: bytes of text of each token; None if tokens are bytes or no text.

    Attributes:
        lengths: number of tokens to predict in each window.
    """

    def __init__(
        self, documents: Documents, length: int, drawn: int, weights: np.ndarray | None = None
    ) -> None:
        self.names, self.documents, self.weights = documents.names, documents, weights
        self.length, self.drawn = length, drawn
        sizes = documents.sizes
        self._ends = np.cumsum(np.maximum(1, sizes - length))  # of the places where a window may begin
        counts = -(-(sizes - 1) // length)
        self._windows = np.cumsum(counts)  # up to the end of each document
        self.lengths = np.full(drawn or int(self._windows[-1]), length)
        if not drawn:
            self.lengths[self._windows - 1] = sizes - 1 - (counts - 1) * length

    def __len__(self) -> int:
        return len(self.lengths)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        ends = self._ends if self.drawn else self._windows
        place = int(rng.integers(ends[-1])) if self.drawn else index
        document = int(np.searchsorted(ends, place, side="right"))
        start = place - (int(ends[document - 1]) if document else 0)
        start *= 1 if self.drawn else self.length
        tokens = torch.from_numpy(
            self.documents.part(document, start, start + self.length + 1).astype(np.int64)
        )
        return Example(tokens[:-1], tokens[1:], name=self.names[document])

    def batch(self, rows: Sequence[int], rngs: Iterable[np.random.Generator]) -> Batch:
        examples = [self.example(row, rng) for row, rng in zip(rows, rngs, strict=True)]
        return collate(examples)._replace(bytes=_bytes(examples, self.weights))


class Packed:
    """Rows of `length` steps: documents one after another, with `reset` where one begins.

    No step crosses a border, since a document's last token is only predicted. An epoch has `drawn` rows from
    random places; or if that is 0, rows of every step, the last of which begins where it is full.

    Args:
        weights: as of `Windows`.
    """

    packs = True  # `DataModule.loader` need not

    def __init__(
        self, documents: Documents, length: int, drawn: int, weights: np.ndarray | None = None
    ) -> None:
        self.documents, self.drawn, self.weights = documents, drawn, weights
        self._ends = np.cumsum(documents.sizes - 1)  # of each document's steps
        self.steps = int(self._ends[-1])
        self.length = min(length, self.steps)

    def __len__(self) -> int:
        return self.drawn or -(-self.steps // self.length)

    def example(self, index: int, rng: np.random.Generator) -> Example:
        return self._row(index, rng)[0]

    def batch(self, rows: Sequence[int], rngs: Iterable[np.random.Generator]) -> Batch:
        found = [self._row(row, rng) for row, rng in zip(rows, rngs, strict=True)]
        reset = torch.from_numpy(np.stack([reset for _, reset in found]))
        return Batch(
            torch.stack([example.x for example, _ in found]),
            torch.stack([example.y for example, _ in found]),
            reset=reset if reset[:, 1:].any() else None,  # a row of one document takes the faster way
            bytes=_bytes([example for example, _ in found], self.weights),
        )

    def _row(self, index: int, rng: np.random.Generator) -> tuple[Example, np.ndarray]:
        """A row, and where its documents begin."""
        last = self.steps - self.length
        start = int(rng.integers(last + 1)) if self.drawn else min(index * self.length, last)
        x, y, reset = [], [], np.zeros(self.length, bool)
        document, done = int(np.searchsorted(self._ends, start, side="right")), 0
        while done < self.length:
            begin = int(self._ends[document]) - int(self.documents.sizes[document]) + 1
            first = start + done - begin
            tokens = self.documents.part(document, first, first + self.length - done + 1)
            x.append(tokens[:-1])
            y.append(tokens[1:])
            reset[done] = True
            document, done = document + 1, done + len(tokens) - 1
        given, wanted = (torch.from_numpy(np.concatenate(part).astype(np.int64)) for part in (x, y))
        return Example(given, wanted), reset


def _bytes(examples: Sequence[Example], weights: np.ndarray | None) -> torch.Tensor | None:
    """(B,) bytes of text in each y."""
    return None if weights is None else torch.tensor([int(weights[e.y].sum()) for e in examples])
