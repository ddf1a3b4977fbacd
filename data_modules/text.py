"""Text as bytes, to predict each byte from those before it: any file or folder, or Python's own docs."""

import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_modules._splits import own, tenth, within
from lrnnx_app.data.module import DataModule, Source
from lrnnx_app.disk.files import below
from lrnnx_app.errors import DataError, RecipeError
from lrnnx_app.spec import DataSpec, Example

BYTES = 256
LICENCES = ("LICENSE.txt", "LICENSE")  # possible names of the interpreter's own licence


class Text(DataModule):
    """Tokens x (T,) and the bytes y (T,) that follow them.

    Embedded: the licence and the reference documentation of the running Python, with one document for each
        topic.
    With `root`: every file below it with one of `suffixes` is a document, and is mapped into memory. Folders
    train, valid and test are the splits if there are such. Else documents are ordered by a hash of their
    paths and split into the shares of `split`. A single file is split by position, with its end for the test.
    Training draws windows evenly over all bytes; validation and test read each document in windows from start
    to end.
    """

    @dataclass
    class Config(DataModule.Config):
        length: int = 512  # bytes of a window
        examples_per_epoch: int = 2000  # windows that an epoch draws
        suffixes: str = ".txt .md .rst .py .html .csv .tex .json"  # of a folder's files, separated by spaces

        def __post_init__(self) -> None:
            if min(self.length, self.examples_per_epoch) < 1:
                raise RecipeError("length and examples_per_epoch: expected positive integers")

    @classmethod
    def small(cls, folder: Path) -> dict[str, Any]:
        return {"length": 32}

    def __init__(self, config: Config, seed: int = 0) -> None:
        super().__init__(config, seed)
        self.spec = DataSpec(d_input=BYTES, d_output=BYTES, tokens=True, target="step")

    def source(self, split: str) -> Source:
        c, root = self.config, Path(self.config.root)
        if not c.root:
            documents = _embedded(split)
        elif root.is_file():
            content = _mapped(root)
            documents = {root.name: content[within(len(content), split, c.split)]}
        else:
            paths = own(root, split, c.split, partial(_files, suffixes=c.suffixes.split()))
            documents = {path.relative_to(root).as_posix(): _mapped(path) for path in paths}
        documents = {name: content for name, content in documents.items() if len(content) > 1}
        if not documents:
            raise DataError(f"{root}: no document of two bytes or more in its {split} split; add text")
        return Windows(documents, c.length, c.examples_per_epoch if split == "train" else None)

    def read(self, path: Path) -> Example:
        """A file's bytes, uint8, since a file may be long."""
        content = _mapped(path)
        if len(content) < 2:
            raise DataError(
                f"{path}: {len(content)} bytes; expected at least two, to predict one from another"
            )
        tokens = torch.from_numpy(np.array(content))
        return Example(tokens[:-1], tokens[1:], name=path.name)


class Windows:
    """Windows of documents: `drawn` random ones in an epoch; or if that is None, all windows in order.

    Attributes:
        lengths: number of bytes to predict in each window.
    """

    def __init__(self, documents: dict[str, np.ndarray], length: int, drawn: int | None) -> None:
        self.names, self.documents = list(documents), list(documents.values())
        self.length, self.drawn = length, drawn
        sizes = np.array([len(content) for content in self.documents])
        self.ends = np.cumsum(np.maximum(1, sizes - length))  # of the places where a window may begin
        starts = [(i, at) for i, size in enumerate(sizes) for at in range(0, size - 1, length)]
        self.starts = starts if drawn is None else []
        left = [min(length, sizes[i] - 1 - at) for i, at in self.starts]
        self.lengths = np.array(left if drawn is None else [length] * drawn)

    def __len__(self) -> int:
        return len(self.starts) if self.drawn is None else self.drawn

    def example(self, index: int, rng: np.random.Generator) -> Example:
        if self.drawn is None:
            document, start = self.starts[index]
        else:
            place = int(rng.integers(self.ends[-1]))
            document = int(np.searchsorted(self.ends, place, side="right"))
            start = place - (int(self.ends[document - 1]) if document else 0)
        return _window(self.documents[document], start, self.length, self.names[document])


def _window(content: np.ndarray, start: int, length: int, name: str) -> Example:
    tokens = torch.from_numpy(content[start : start + length + 1].astype(np.int64))
    return Example(tokens[:-1], tokens[1:], name=name)


def _embedded(split: str) -> dict[str, np.ndarray]:
    """Python's documentation by topic, and its licence; a hash of its name gives each topic's split."""
    from pydoc_data.topics import topics

    texts = {f"topics/{name}": text.encode() for name, text in topics.items()}
    library = Path(sysconfig.get_path("stdlib"))
    for path in (library / name for name in LICENCES):
        if path.is_file():
            texts[path.name] = path.read_bytes()
    return {name: np.frombuffer(text, np.uint8) for name, text in texts.items() if tenth(name) == split}


def _files(root: Path, suffixes: Sequence[str]) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"{root}: no such file or folder; expected a text file, or a folder of documents")
    paths = below(root, suffixes)
    if not paths:
        raise DataError(f"{root}: no file that ends in {' '.join(suffixes)}; see data.suffixes")
    return paths


def _mapped(path: Path) -> np.ndarray:
    try:
        return np.memmap(path, np.uint8, "r") if path.stat().st_size else np.zeros(0, np.uint8)
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror}); expected a text file") from error
