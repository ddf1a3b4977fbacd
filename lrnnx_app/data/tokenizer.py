"""Text as tokens: its bytes, those of a tokenizer's JSON (by the package `tokenizers`), or plain numbers."""

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lrnnx_app.errors import DataError, RecipeError, needs, one_line

BYTES, IDS, TRAIN = "bytes", "ids:", "train:"  # the words of data.tokenizer; any other is a file
FILE = "tokenizer.json"  # in a run's folder
END = "<|endoftext|>"  # of tokenizers that are trained here
ENDS = (END, "<|end_of_text|>", "<eos>", "</s>")  # usual names of the token after a document
SMALLEST = 257  # tokens that are trained: all bytes, and the end
AUTO, NONE = "auto", "none"
UNFIT = {"WordPiece", "CTC", "BPEDecoder"}  # decoders whose tokens are more than pieces of a text


class Tokenizer:
    """Bytes: a token for each. The base of the others.

    Attributes:
        size: number of tokens.
        end: the token that closes a document; None if there is none.
        start: tokens before each document.
        json: what a run keeps of it; "" if the setting says all.
    """

    size = 256
    end: int | None = None
    start: np.ndarray = np.zeros(0, np.int64)
    json = ""

    def encode(self, parts: Sequence[bytes]) -> list[np.ndarray]:
        """The tokens of parts of documents, each (tokens,), without those before and after a document.

        Raises:
            ValueError: a part is not text of this kind; says why.
        """
        return [np.frombuffer(part, np.uint8) for part in parts]

    def prompt(self, text: bytes) -> np.ndarray:
        """The tokens of a prompt, with those that the tokenizer itself adds.

        Raises:
            ValueError: see `encode`.
        """
        return self.encode([text])[0]

    def document(self, text: bytes) -> np.ndarray:
        """The tokens of a whole document.

        Raises:
            ValueError: see `encode`.
        """
        after = [] if self.end is None else [self.end]
        return np.concatenate([self.start, self.encode([text])[0], after]).astype(self.dtype)

    @property
    def dtype(self) -> type[np.generic]:
        """The smallest type of numpy that holds a token."""
        return np.uint8 if self.size <= 1 << 8 else np.uint16 if self.size <= 1 << 16 else np.uint32

    def piece(self, token: int) -> bytes:
        """The text of a token, which may be a part of a letter; nothing for one that is no text."""
        return bytes((token,))

    @cached_property
    def sizes(self) -> np.ndarray | None:
        """(size,) bytes of text of each token; None if tokens are no text."""
        return np.array([len(self.piece(token)) for token in range(self.size)], np.int64)


class Numbers(Tokenizer):
    """Tokens as numbers in text, separated by white space."""

    def __init__(self, size: int) -> None:
        self.size = size

    @cached_property
    def sizes(self) -> np.ndarray | None:
        return None

    def encode(self, parts: Sequence[bytes]) -> list[np.ndarray]:
        return [np.fromiter(map(self._token, part.split()), self.dtype) for part in parts]

    def piece(self, token: int) -> bytes:
        return b" %d" % token

    def _token(self, word: bytes) -> int:
        if not word.isdigit() or len(word) > 18 or int(word) >= self.size:
            shown = word[:20].decode(errors="replace")
            raise ValueError(f"'{shown}' is no token; expected numbers below {self.size} and spaces")
        return int(word)


class Pieces(Tokenizer):
    """A tokenizer of the package `tokenizers`: byte-level, or of pieces as SentencePiece makes them.

    Args:
        text: its JSON.
        end: as of `opened`.

    Raises:
        ValueError: it is none, or of another kind.
        RecipeError: it has no token `end`.
        UserError: the package is missing.
    """

    def __init__(self, text: str, end: str = AUTO) -> None:
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")  # without it, each fork prints a warning
        try:
            from tokenizers import Tokenizer as Read
        except ImportError as error:
            raise needs("text", error) from error
        try:
            self._read, content = Read.from_str(text), json.loads(text)
        except Exception as error:  # the package raises no narrower class
            raise ValueError(one_line(error)) from error
        decoders = set(_types(content.get("decoder")))
        if unfit := decoders & UNFIT:
            raise ValueError(f"its decoder is {min(unfit)}; expected byte-level BPE or pieces with spaces")
        self._read.no_truncation()
        self._read.no_padding()
        self.json, self._bytes = text, "ByteLevel" in decoders
        self._vocabulary = self._read.get_vocab(with_added_tokens=True)
        self._added = {token["id"]: token for token in content.get("added_tokens") or ()}
        self.size = 1 + max(self._vocabulary.values(), default=0)
        self.end = self._end(end)
        tried = self._read.encode("a")
        first = [*tried.special_tokens_mask, 0].index(0)
        self.start = np.array(tried.ids[:first], np.int64)

    def encode(self, parts: Sequence[bytes]) -> list[np.ndarray]:
        texts = [part.decode() for part in parts]  # UnicodeDecodeError is a ValueError
        found = self._read.encode_batch_fast(texts, add_special_tokens=False)
        return [np.array(one.ids, self.dtype) for one in found]

    def prompt(self, text: bytes) -> np.ndarray:
        return np.array(self._read.encode(text.decode()).ids, self.dtype)

    def piece(self, token: int) -> bytes:
        return self._pieces[token]

    @cached_property
    def _pieces(self) -> list[bytes]:
        found = [b""] * self.size
        for text, token in self._vocabulary.items():
            if added := self._added.get(token):
                found[token] = b"" if added["special"] else text.encode()
            elif self._bytes:
                found[token] = bytes(LETTERS[letter] for letter in text if letter in LETTERS)
            elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
                found[token] = bytes.fromhex(text[3:5])
            else:
                found[token] = text.replace("▁", " ").encode()
        return found

    def _end(self, name: str) -> int | None:
        if name == AUTO:
            return next((self._vocabulary[usual] for usual in ENDS if usual in self._vocabulary), None)
        if name == NONE:
            return None
        if name not in self._vocabulary:
            raise RecipeError(f"data.end: the tokenizer has no token '{name}'; expected one of its or {NONE}")
        return self._vocabulary[name]


class Decoder:
    """Tokens one at a time as text that ends at a letter's end."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._piece, self._held = tokenizer.piece, b""

    def push(self, token: int) -> bytes:
        """The text that the token completes; a part of a letter waits for its rest."""
        text = self._held + self._piece(token)
        end = whole(text)
        self._held = text[end:]
        return text[:end]

    def finish(self) -> bytes:
        """What still waits."""
        held, self._held = self._held, b""
        return held


def whole(text: bytes) -> int:
    """The length of a text without the start of a UTF-8 letter at its end that is cut short."""
    for back in range(1, min(4, len(text) + 1)):
        byte = text[-back]
        if not 0x80 <= byte < 0xC0:  # a letter's first byte
            wanted = 1 + (byte >= 0xC0) + (byte >= 0xE0) + (byte >= 0xF0) if byte < 0xF5 else 1
            return len(text) - back if back < wanted else len(text)
    return len(text)


def opened(name: str, end: str = AUTO) -> Tokenizer:
    """The tokenizer of a setting `data.tokenizer`.

    Args:
        name: `bytes`, `ids:N`, a file, or a file's content.
        end: the token that closes a document: its text, `auto` for one of a usual name, or `none`.

    Raises:
        DataError: there is no such file, or it holds no tokenizer.
        RecipeError: see `count` and `Pieces`.
        UserError: the package `tokenizers` is missing.
    """
    if name == BYTES:
        return Tokenizer()
    if name.startswith(IDS):
        return Numbers(count(name))
    if name.startswith(TRAIN):
        raise DataError(f"{FILE}: missing; expected it in the folder of a run with data.tokenizer={name}")
    inside = name.startswith("{")
    try:
        return Pieces(name if inside else Path(name).read_text("utf-8"), end)
    except OSError as error:
        raise DataError(
            f"data.tokenizer: {name}: not readable ({error.strerror}); expected bytes, the file of a "
            "tokenizer, train:N or ids:N"
        ) from error
    except ValueError as error:
        raise DataError(
            f"{FILE if inside else name}: no tokenizer ({error}); expected the JSON of the package tokenizers"
        ) from error


def count(name: str) -> int:
    """N of `ids:N` or `train:N`.

    Raises:
        RecipeError: it is no number, or too small.
    """
    word, _, number = name.partition(":")
    least = SMALLEST if f"{word}:" == TRAIN else 1
    if not (number.isascii() and number.isdigit() and len(number) < 10 and least <= int(number)):
        raise RecipeError(f"data.tokenizer: {name}; expected {word}:N with a number of at least {least}")
    return int(number)


def trained(texts: Iterable[str], size: int) -> str:
    """The JSON of a byte-level BPE (Sennrich et al. 2016, arXiv 1508.07909) of exactly `size` tokens.

    Raises:
        RecipeError: the texts give fewer.
        UserError: the package `tokenizers` is missing.
    """
    try:
        from tokenizers import Tokenizer as Made
        from tokenizers import decoders, models, pre_tokenizers, trainers
    except ImportError as error:
        raise needs("text", error) from error
    made: Any = Made(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(texts, trainer)
    if (found := made.get_vocab_size()) < size:
        raise RecipeError(f"data.tokenizer: {TRAIN}{size}: the text gives {found} tokens; expected no more")
    return made.to_str()


def _types(node: Any) -> Iterator[str]:
    """The names of all parts of a part of a tokenizer's JSON."""
    if isinstance(node, dict):
        yield str(node.get("type"))
        node = list(node.values())
    for inner in node if isinstance(node, list) else ():
        yield from _types(inner)


def _letters() -> dict[str, int]:
    """The letter that stands for each byte in byte-level vocabularies (Radford et al. 2019, GPT-2) -> it."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(rest)}


LETTERS = _letters()
