"""Documents as tokens on disk: made once, shard by shard, and mapped into memory.

Each shard is a folder of the cache with the tokens of a stretch of the text, little-endian in `tokens.bin`,
and the number of tokens of each document's part in `index.npy`. What was made before a process was killed is
kept, and the rest is the same whenever it is made.
"""

import hashlib
import re
from collections.abc import Iterator, Sequence
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from lrnnx_app.console.terminal import say
from lrnnx_app.data.tokenizer import FILE, Tokenizer, trained
from lrnnx_app.disk import cache
from lrnnx_app.errors import DataError

FORM = 1  # of shards; another one makes them anew
SHARD = 1 << 27  # bytes of text of a shard
PIECE = 1 << 18  # bytes of text that a tokenizer takes at once
PIECES = 32  # that it takes side by side
LEARNED = 1 << 28  # most bytes of text from which a tokenizer is trained
SEARCHED = 1 << 16  # bytes in which a place to cut is sought
CUTS = (rb"(?<=\S)\n(?=\S)", rb"\n", rb"\S(?=\s)")  # a text is cut after the first of these that it has
TOKENS, INDEX = "tokens.bin", "index.npy"


class Document(NamedTuple):
    """A text: the bytes `start` to `stop` − 1 of a file, or of a text in memory."""

    name: str
    place: Path | bytes
    start: int
    stop: int

    def content(self) -> np.ndarray:
        """(bytes,) uint8, mapped into memory.

        Raises:
            DataError: the file is not readable.
        """
        if isinstance(self.place, bytes):
            return np.frombuffer(self.place, np.uint8)[self.start : self.stop]
        return mapped(self.place)[self.start : self.stop]

    def facts(self) -> Any:
        """What the content depends on."""
        if isinstance(self.place, bytes):
            return hashlib.sha256(self.place).hexdigest()
        return cache.stamps([self.place])


class Part(NamedTuple):
    """The bytes `start` to `stop` − 1 of a document, given by its number."""

    document: int
    start: int
    stop: int


class Shards:
    """The tokens of documents; those with fewer than two are left out.

    Attributes:
        names: of the documents.
        sizes: number of tokens of each.
        count: number of shards.

    Raises:
        DataError: a text is not of the tokenizer's kind; names it.
        CacheError: see `cache.made`.
    """

    def __init__(self, documents: Sequence[Document], tokenizer: Tokenizer) -> None:
        self.dtype = np.dtype(tokenizer.dtype).newbyteorder("<")
        groups = list(_grouped(documents))
        kind = (FORM, PIECE, _digest(tokenizer), tokenizer.end)
        self.folders, sizes = [], np.zeros(len(documents), np.int64)
        for number, group in enumerate(groups, 1):
            parts = [
                (documents[part.document].facts(), *part[1:], *_edges(documents, part)) for part in group
            ]
            make = partial(_make, documents, tokenizer, group, f"tokens: shard {number} of {len(groups)}")
            self.folders.append(cache.folder("tokens", (kind, parts), make))
            np.add.at(sizes, [part.document for part in group], np.load(self.folders[-1] / INDEX))
        kept = np.flatnonzero(sizes > 1)
        self._starts = (np.cumsum(sizes) - sizes)[kept]
        self.names = [documents[int(i)].name for i in kept]
        self.sizes, self.count = sizes[kept], len(groups)

    def part(self, document: int, start: int, stop: int) -> np.ndarray:
        """The tokens `start` to `stop` − 1 of a document."""
        first = int(self._starts[document])
        start, stop = start + first, min(stop, int(self.sizes[document])) + first
        maps, ends = self._maps
        found = []
        for shard in range(int(np.searchsorted(ends, start, side="right")), len(maps)):
            before = int(ends[shard]) - len(maps[shard])
            found.append(maps[shard][max(0, start - before) : stop - before])
            if stop <= ends[shard]:
                break
        return found[0] if len(found) == 1 else np.concatenate(found)

    @cached_property
    def _maps(self) -> tuple[list[np.ndarray], np.ndarray]:
        """The shards in memory, and the number of tokens up to the end of each."""
        maps = [mapped(folder / TOKENS, self.dtype) for folder in self.folders]
        return maps, np.cumsum([len(tokens) for tokens in maps])

    def __getstate__(self) -> dict[str, Any]:
        """Without the maps, which another process opens itself."""
        return {key: value for key, value in self.__dict__.items() if key != "_maps"}


def mapped(path: Path, dtype: Any = np.uint8) -> np.ndarray:
    """A file's numbers, mapped into memory.

    Raises:
        DataError: it is not readable.
    """
    try:
        return np.memmap(path, dtype, "r") if path.stat().st_size else np.zeros(0, dtype)
    except OSError as error:
        raise DataError(f"{path}: not readable ({error.strerror}); expected a text file") from error


def cut(content: np.ndarray, at: int) -> int:
    """A place, `at` or a little later, where a text can be cut: a line's end, else a word's, else a letter's.

    At the end of a single line break most tokenizers begin a new token, so the tokens stay the same.
    """
    if not 0 < at < len(content):
        return max(0, min(at, len(content)))
    window = content[at : at + SEARCHED].tobytes()
    for pattern in CUTS:
        if found := re.search(pattern, window):
            return at + found.end()
    return at + next((i for i, byte in enumerate(window) if not 0x80 <= byte < 0xC0), len(window))


def tokenizer_of(documents: Sequence[Document], size: int) -> str:
    """The JSON of a tokenizer that is trained on documents, once; of a long text, on pieces all over it.

    Raises:
        DataError, RecipeError, UserError, CacheError: see `Shards` and `trained`.
    """
    total = sum(document.stop - document.start for document in documents)
    every = -(-total // LEARNED)

    def texts() -> Iterator[str]:
        groups = _pieces(documents, [Part(i, 0, d.stop - d.start) for i, d in enumerate(documents)])
        for number, (part, text) in enumerate(groups):
            if number % every == 0:
                try:
                    yield text.decode()
                except UnicodeDecodeError as error:
                    raise _unfit(documents, part, error) from error

    def make(folder: Path) -> None:
        say(f"tokenizer: training {size} tokens", aside=True)
        (folder / FILE).write_text(trained(texts(), size), encoding="utf-8")

    facts = (FORM, size, [(document.facts(), document.start, document.stop) for document in documents])
    return (cache.folder("tokenizers", facts, make) / FILE).read_text("utf-8")


def _digest(tokenizer: Tokenizer) -> str:
    said = tokenizer.json or f"{type(tokenizer).__name__} {tokenizer.size}"
    return hashlib.sha256(said.encode()).hexdigest()


def _edges(documents: Sequence[Document], part: Part) -> tuple[bool, bool]:
    """Whether a part begins its document, and whether it ends it."""
    document = documents[part.document]
    return part.start == 0, part.stop == document.stop - document.start


def _grouped(documents: Sequence[Document]) -> Iterator[list[Part]]:
    """The parts of each shard."""
    group: list[Part] = []
    room = SHARD
    for number, document in enumerate(documents):
        start, size = 0, document.stop - document.start
        while start < size:
            stop = size if size - start <= room else cut(document.content(), start + room)
            group.append(Part(number, start, stop))
            start, room = stop, room - (stop - start)
            if room <= 0:
                yield group
                group, room = [], SHARD
    if group:
        yield group


def _pieces(documents: Sequence[Document], parts: Sequence[Part]) -> Iterator[tuple[Part, bytes]]:
    """The text of parts, in pieces."""
    for number, start, end in parts:
        content = documents[number].content()[:end]
        while start < end:
            stop = cut(content, start + PIECE)
            yield Part(number, start, stop), content[start:stop].tobytes()
            start = stop


def _make(
    documents: Sequence[Document], tokenizer: Tokenizer, group: Sequence[Part], word: str, folder: Path
) -> None:
    """Write a shard. The tokenizer encodes several pieces at once, on all cores."""
    say(word, aside=True)
    counts = np.zeros(len(group), np.int64)
    places = {part.document: i for i, part in enumerate(group)}  # a document has one part in a shard
    after = [] if tokenizer.end is None else [tokenizer.end]
    pieces = _pieces(documents, group)
    with (folder / TOKENS).open("wb") as file:
        while taken := list(islice(pieces, PIECES)):
            for (piece, _), tokens in zip(taken, _encoded(documents, tokenizer, taken), strict=True):
                begins, ends = _edges(documents, piece)
                edges = tokenizer.start if begins else [], tokens, after if ends else []
                counts[places[piece.document]] += sum(map(len, edges))
                for part in edges:
                    file.write(np.asarray(part, np.dtype(tokenizer.dtype).newbyteorder("<")).tobytes())
    np.save(folder / INDEX, counts)


def _encoded(
    documents: Sequence[Document], tokenizer: Tokenizer, pieces: Sequence[tuple[Part, bytes]]
) -> list[np.ndarray]:
    try:
        return tokenizer.encode([text for _, text in pieces])
    except ValueError:
        for part, text in pieces:  # which of them it is
            try:
                tokenizer.encode([text])
            except ValueError as error:
                raise _unfit(documents, part, error) from error
        raise


def _unfit(documents: Sequence[Document], part: Part, error: ValueError) -> DataError:
    name, place, start, _ = documents[part.document]
    name = place if isinstance(place, Path) else name
    if isinstance(error, UnicodeDecodeError):
        where = start + part.start + error.start
        return DataError(f"{name}: byte {where} is not UTF-8; expected text, or data.tokenizer=bytes")
    return DataError(f"{name}: {error}")
