"""Files inside of a file: the resources of a game."""

import struct
from collections.abc import Callable, Iterator

SPEECH = ".SB"  # the game's name for speech, which is MP3


def queen(content: bytes) -> Iterator[tuple[str, bytes]]:
    """Names and contents in `queen.1c`, the resources of Flight of the Amazon Queen.

    The number of files stands at the end of 15 bytes. Then each file has an entry: a name of 12 bytes, the
    number of its bundle, its place and its size. All numbers are big-endian.

    Raises:
        ValueError: it is no such file, or cut short.
    """
    if content[:4] != b"QTBL":
        raise ValueError("these are not the resources of that game")
    head, entry = 15, struct.Struct(">12sBII")
    count = int.from_bytes(content[13:head], "big")
    table = content[head : head + count * entry.size]
    if len(content) < head or len(table) < count * entry.size:
        raise ValueError("the resources are cut short")
    for padded, _, start, size in entry.iter_unpack(table):
        name = padded.rstrip(b"\0").decode("latin-1")
        yield name.removesuffix(SPEECH) + ".mp3" * name.endswith(SPEECH), content[start : start + size]


ARCHIVES: dict[str, Callable[[bytes], Iterator[tuple[str, bytes]]]] = {"queen.1c": queen}
