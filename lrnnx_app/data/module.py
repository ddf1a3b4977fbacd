"""The base of data modules: it makes loaders, batches and a description of the data.

The random generator of an example is seeded by (seed, epoch, index). So an example does not depend on those
before it, and resuming, more workers or more processes change nothing.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from lrnnx_app.data import buckets
from lrnnx_app.data.workers import Loader, check_files
from lrnnx_app.errors import DataError, RecipeError
from lrnnx_app.spec import SPLITS, Batch, DataSpec, Example

EVALUATION_SEED = 2024  # validation and test do not depend on the seed of the run
SHARES = (0.8, 0.1, 0.1)  # of a user's files: training, validation, test


class Source(Protocol):
    """The examples of one split."""

    def __len__(self) -> int: ...

    def example(self, index: int, rng: np.random.Generator) -> Example: ...


@runtime_checkable
class Unfinished(Protocol):
    """A batch of which the rest can be computed on another device; a NamedTuple, whose tensors are moved."""

    def finished(self) -> Batch: ...


@runtime_checkable
class BatchSource(Source, Protocol):
    """A source that makes whole batches at once, which is faster than example by example in Python."""

    def batch(self, rows: Sequence[int], rngs: Iterable[np.random.Generator]) -> Batch | Unfinished: ...


class Address(NamedTuple):
    epoch: int
    row: int


class _Addressed(Dataset[Example]):
    """A source as a torch data set, indexed by `Address`. With `batches` it makes whole batches if it can.

    It finishes them if `finish` is true.
    """

    def __init__(self, source: Source, seed: Sequence[int], batches: bool, finish: bool) -> None:
        self.source, self.seed, self.batches, self.finish = source, tuple(seed), batches, finish

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, address: Address) -> Example:
        return self.source.example(address.row, self._rng(address))

    def __getitems__(self, addresses: list[Address]) -> "list[Example] | Batch | Unfinished":
        """A whole batch; torch calls this instead of `__getitem__` for each example."""
        if self.batches and isinstance(self.source, BatchSource):
            batch = self.source.batch([a.row for a in addresses], map(self._rng, addresses))
            return finished(batch) if self.finish else batch
        return [self[address] for address in addresses]

    def _rng(self, address: Address) -> np.random.Generator:
        return np.random.default_rng([*self.seed, *address])


class AddressSampler(Sampler[Address]):
    """Addresses of one epoch, shuffled by (seed, epoch), and dealt evenly to the ranks of a job.

    The n-th batches of all ranks together are the n-th batch of a single process with `ranks` times the batch
    size. Shuffled rows at the end that do not fill a batch on every rank are left out, unless there are no
    others. If `lengths` are given, the rows of the n-th batches have similar lengths. Each
    `together` ranks get the same rows.
    """

    def __init__(
        self,
        size: int,
        seed: int,
        shuffle: bool,
        lengths: np.ndarray | None = None,
        batch: int = 1,
        together: int = 1,
    ) -> None:
        self.size, self.seed, self.shuffle = size, seed, shuffle
        self.lengths, self.batch = lengths, batch
        self.epoch = 0
        self.start = Address(0, 0)  # after a resume: the epoch, and how many of its rows are done
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        self.rank = torch.distributed.get_rank() // together if distributed else 0
        self.ranks = torch.distributed.get_world_size() // together if distributed else 1
        if size < self.ranks:
            raise DataError(f"{size} examples for {self.ranks} processes; expected one for each at least")

    @property
    def _dealt(self) -> int:
        """The number of rows that all ranks together take."""
        if not self.shuffle:
            return self.size
        group = self.batch * self.ranks
        return self.size // group * group or self.size // self.ranks * self.ranks

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(range(self.rank, self._dealt, self.ranks))

    def __iter__(self) -> Iterator[Address]:
        rng = np.random.default_rng([self.seed, self.epoch]) if self.shuffle else None
        if self.lengths is not None:
            order = buckets.order(self.lengths, self.batch * self.ranks, rng)
        else:
            order = np.arange(self.size) if rng is None else rng.permutation(self.size)
        epoch = self.epoch if self.shuffle else 0
        done = self.start.row if self.epoch == self.start.epoch else 0
        return (Address(epoch, int(index)) for index in order[self.rank : self._dealt : self.ranks][done:])

    def batches(self) -> list[list[Address]]:
        """The rows in batches. Every rank gets the same number, since all ranks must take part in each step.

        If a rank would have one row too few for its last batch, its last batches share their rows. No row is
        repeated.
        """
        rows = list(self)
        fewest, most = self.size // self.ranks, -(-self.size // self.ranks)
        count = min(fewest, -(-most // self.batch))
        ends = [min(i * self.batch, len(rows) - count + i) for i in range(count)] + [len(rows)]
        return [rows[start:end] for start, end in pairwise(ends)]

    def resume(self, epoch: int, rows: int) -> None:
        """Start in this epoch, after the first `rows` rows of this rank."""
        self.epoch, self.start = epoch, Address(epoch, rows)


def finished(batch: Batch | Unfinished) -> Batch:
    return batch.finished() if isinstance(batch, Unfinished) else batch


def taken(examples: list[Example] | Batch | Unfinished) -> Batch | Unfinished:
    """A batch of examples; one that its source made is returned unchanged."""
    return collate(examples) if isinstance(examples, list) else examples


def collate(examples: Sequence[Example]) -> Batch:
    """Make a batch of examples, right-padded with zeros."""
    sizes = torch.tensor([len(e.x) for e in examples])
    full = bool((sizes == sizes[0]).all())

    def pad(rows: Sequence[Tensor]) -> Tensor:
        return torch.nn.utils.rnn.pad_sequence(list(rows), batch_first=True)

    aligned = examples[0].y.ndim > 0
    gaps = [e.dt for e in examples if e.dt is not None]
    return Batch(
        x=pad([e.x for e in examples]),
        y=pad([e.y for e in examples]) if aligned else torch.stack([e.y for e in examples]),
        lengths=None if full else sizes,
        dt=pad(gaps) if gaps else None,
        names=tuple(e.name for e in examples),
    )


def pack(examples: Sequence[Example]) -> Batch:
    """Put several examples into each row, with `reset` at the start of each.

    Rows are as long as the longest example, and each example goes into the first row with enough room. Names,
    and y if it is one class for each example, are in the order of the examples in the rows. A y for each step
    is put into rows as x is.
    """
    room = max(len(e.x) for e in examples)
    rows: list[list[Example]] = []
    for example in sorted(examples, key=lambda e: -len(e.x)):
        fits = (row for row in rows if sum(len(e.x) for e in row) + len(example.x) <= room)
        row = next(fits, None)
        if row is None:
            rows.append([example])
        else:
            row.append(example)

    def joined(row: list[Example]) -> Example:
        dt = None if row[0].dt is None else torch.cat([e.dt for e in row if e.dt is not None])
        y = torch.cat([e.y for e in row]) if row[0].y.ndim else row[0].y
        return Example(torch.cat([e.x for e in row]), y, dt)

    batch = collate([joined(row) for row in rows])
    reset = torch.zeros(batch.x.shape[:2], dtype=torch.bool)
    for i, row in enumerate(rows):
        reset[i, np.cumsum([0, *(len(e.x) for e in row[:-1])])] = True
    packed = [example for row in rows for example in row]
    y = batch.y if packed[0].y.ndim else torch.stack([e.y for e in packed])
    return batch._replace(y=y, names=tuple(e.name for e in packed), reset=reset)


class DataModule:
    """Base class of data modules.

    A subclass has a nested dataclass `Config(DataModule.Config)`. Its constructor sets `spec`, and reads at
    most an index of the data. Its method `source(split)` returns the examples.

    Args:
        config: the `data` section of a recipe.
        seed: seed of the run, for the random choices in training examples.

    Attributes:
        pixels: of data whose steps are events, a sensor's width, height and number of polarities, and how
            many of its pixels along each axis are one for the model; else None.
    """

    @dataclass
    class Config:
        root: str = ""  # folder of the user's data; empty means the embedded data
        batch_size: int = 16  # examples of a batch, on each device
        workers: int = 0  # processes that prepare batches, one for each core at most
        bucket: bool = False  # batches of examples of about one length, if these are known beforehand
        pack: bool = False  # several short examples in one row of a training batch
        split: list[float] = field(default_factory=lambda: list(SHARES))  # shares of own files, by split

    spec: DataSpec
    pixels: tuple[int, int, int, int] | None = None

    @classmethod
    def small(cls, folder: Path) -> dict[str, Any]:
        """Options for a small instance, for tests.

        A module without embedded data writes a few files into `folder` and returns that as `root`.
        """
        return {}

    def __init__(self, config: Any, seed: int = 0) -> None:
        if config.batch_size < 1:
            raise RecipeError(f"data.batch_size: expected at least 1, not {config.batch_size}")
        if config.workers < 0:
            raise RecipeError(f"data.workers: expected at least 0, not {config.workers}")
        _check_split(list(config.split), config.root)
        self.config = config
        self.seed = seed
        self.position = (0, 0)  # where training starts: the epoch, and how many of its batches are done

    def source(self, split: str) -> Source:
        """The examples of "train", "valid" or "test".

        Raises:
            DataError: files are missing or unreadable; names them and what was expected.
        """
        raise NotImplementedError

    def read(self, path: Path) -> Example:
        """One file of a user as an example, for inference; do not use its y.

        Raises:
            DataError: this module cannot read the file; says what it expects.
        """
        raise DataError(f"{path}: this run's data module reads no single files")

    @property
    def token_bytes(self) -> np.ndarray | None:
        """(d_input,) bytes of text of each token; None of other data, and if every token is a byte."""
        return None

    def kept(self) -> dict[str, str]:
        """Name -> content of each file that a run keeps of the data; called when all data are open."""
        return {}

    def loader(self, split: str, finish: bool = True, together: int = 1) -> DataLoader:
        """Batches of a split; only training is shuffled and depends on the seed.

        With `finish=False`, a source that makes whole batches may leave the rest of their work to the device
        that they are for: call `finished` there. Of each `together` processes all get the same batches.
        """
        source = self.source(split)
        train = split == "train"
        seed = self.seed if train else EVALUATION_SEED
        size = self.config.batch_size
        lengths = getattr(source, "lengths", None) if self.config.bucket else None
        if train and self.config.bucket and lengths is None:
            raise RecipeError("data.bucket: these examples' lengths are not known beforehand; expected false")
        packed = train and self.config.pack and not getattr(source, "packs", False)
        sampler = AddressSampler(len(source), seed, train, lengths, size, together)
        if train:
            sampler.resume(self.position[0], self.position[1] * size)
        order: dict[str, Any] = (
            {"sampler": sampler, "batch_size": size} if train else {"batch_sampler": sampler.batches()}
        )
        workers = min(self.config.workers, os.cpu_count() or 1)  # how many there are changes nothing else
        check_files(workers)
        return Loader(
            _Addressed(source, (seed, SPLITS.index(split)), not packed, finish),
            **order,
            num_workers=workers,
            persistent_workers=train and workers > 0,  # addresses carry the epoch
            pin_memory=torch.cuda.is_available(),
            collate_fn=pack if packed else taken,
        )


def _check_split(shares: list[float], root: str) -> None:
    if len(shares) != len(SPLITS) or not min(shares) > 0 or not math.isclose(sum(shares), 1):
        names = ", ".join(SPLITS)
        raise RecipeError(f"data.split: expected shares of {names}, each above 0, in all 1, not {shares}")
    if not root and shares != list(SHARES):
        raise RecipeError("data.split: divides one's own files; expected data.root with it")
