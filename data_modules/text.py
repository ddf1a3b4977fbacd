"""Text, to predict each byte or token from those before it: any file or folder, or Python's own docs."""

import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data_modules._splits import own, tenth, within
from data_modules._windows import Arrays, Packed, Windows
from lrnnx_app.data import tokenizer as tokenizers
from lrnnx_app.data.module import DataModule, Source
from lrnnx_app.data.shards import Document, Shards, cut, mapped, tokenizer_of
from lrnnx_app.disk.files import below
from lrnnx_app.errors import DataError, RecipeError
from lrnnx_app.spec import DataSpec, Example

LICENCES = ("LICENSE.txt", "LICENSE")  # possible names of the interpreter's own licence


class Text(DataModule):
    """Tokens x (T,) and the tokens y (T,) that follow them.

    Embedded: the licence and the reference documentation of the running Python, with one document for each
        topic.
    With `root`: every file below it with one of `suffixes` is a document, and is mapped into memory. Folders
    train, valid and test are the splits if there are such. Else documents are ordered by a hash of their
    paths and split into the shares of `split`. A single file is split by position, with its end for the test.
    Tokens other than bytes are made once, see `lrnnx_app.data.shards`.
    Training draws windows evenly over all tokens; with `pack`, its rows hold documents one after another.
    Validation and test read each document in windows from start to end.
    """

    @dataclass
    class Config(DataModule.Config):
        length: int = 512  # tokens of a window
        examples_per_epoch: int = 2000  # windows that an epoch draws, 0 for all of them, each once
        suffixes: str = ".txt .md .rst .py .html .csv .tex .json"  # of a folder's files, separated by spaces
        tokenizer: str = tokenizers.BYTES  # bytes | FILE | train:N tokens | ids:N, numbers below N
        end: str = tokenizers.AUTO  # token after each document: auto, if there is one | none | its text

        def __post_init__(self) -> None:
            if self.length < 1 or self.examples_per_epoch < 0:
                raise RecipeError("length and examples_per_epoch: expected at least 1 and 0")

    @classmethod
    def small(cls, folder: Path) -> dict[str, Any]:
        return {"length": 32}

    def __init__(self, config: Config, seed: int = 0) -> None:
        super().__init__(config, seed)
        trains = config.tokenizer.startswith(tokenizers.TRAIN)
        size = tokenizers.count(config.tokenizer) if trains else self.tokenizer.size
        self.spec = DataSpec(d_input=size, d_output=size, tokens=True, target="step")

    @cached_property
    def tokenizer(self) -> tokenizers.Tokenizer:
        name = self.config.tokenizer
        if name.startswith(tokenizers.TRAIN):
            name = tokenizer_of(self._documents("train"), tokenizers.count(name))
        return tokenizers.opened(name, self.config.end)

    @property
    def token_bytes(self) -> np.ndarray | None:
        return None if self._bytes else self.tokenizer.sizes

    @property
    def _bytes(self) -> bool:
        return self.config.tokenizer == tokenizers.BYTES

    def kept(self) -> dict[str, str]:
        return {tokenizers.FILE: self.tokenizer.json} if self.tokenizer.json else {}

    def source(self, split: str) -> Source:
        c = self.config
        documents = self._documents(split)
        if self._bytes:
            texts = {document.name: document.content() for document in documents}
            found = Arrays({name: content for name, content in texts.items() if len(content) > 1})
        else:
            found = Shards(documents, self.tokenizer)
        if not found.names:
            raise DataError(
                f"{c.root}: no document of two bytes or tokens or more in its {split} split; add text"
            )
        train = split == "train"
        rows = Packed if train and c.pack else Windows
        return rows(found, c.length, c.examples_per_epoch if train else 0, self.token_bytes)

    def read(self, path: Path) -> Example:
        """A file's tokens, of a small type, since a file may be long."""
        content = mapped(path)
        if not self._bytes:
            try:
                content = self.tokenizer.document(content.tobytes())
            except ValueError as error:
                raise DataError(f"{path}: {error}") from error
        if len(content) < 2:
            kind = "bytes" if self._bytes else "tokens"
            raise DataError(
                f"{path}: {len(content)} {kind}; expected at least two, to predict one from another"
            )
        tokens = torch.from_numpy(np.array(content, np.uint8 if self._bytes else np.int32))
        return Example(tokens[:-1], tokens[1:], name=path.name)

    def _documents(self, split: str) -> list[Document]:
        c, root = self.config, Path(self.config.root)
        if not c.root:
            return [Document(name, text, 0, len(text)) for name, text in _embedded(split).items()]
        if root.is_file():
            content = mapped(root)
            part = within(len(content), split, c.split)
            start, stop = (at if self._bytes else cut(content, at) for at in (part.start, part.stop))
            return [Document(root.name, root, start, stop)]
        paths = own(root, split, c.split, partial(_files, suffixes=c.suffixes.split()))
        return [Document(p.relative_to(root).as_posix(), p, 0, p.stat().st_size) for p in paths]


def _embedded(split: str) -> dict[str, bytes]:
    """Python's documentation by topic, and its licence; a hash of its name gives each topic's split."""
    from pydoc_data.topics import topics

    texts = {f"topics/{name}": text.encode() for name, text in topics.items()}
    library = Path(sysconfig.get_path("stdlib"))
    for path in (library / name for name in LICENCES):
        if path.is_file():
            texts[path.name] = path.read_bytes()
    return {name: text for name, text in texts.items() if tenth(name) == split}


def _files(root: Path, suffixes: Sequence[str]) -> list[Path]:
    if not root.is_dir():
        raise DataError(f"{root}: no such file or folder; expected a text file, or a folder of documents")
    paths = below(root, suffixes)
    if not paths:
        raise DataError(f"{root}: no file that ends in {' '.join(suffixes)}; see data.suffixes")
    return paths
