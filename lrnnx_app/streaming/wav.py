"""Reads a wav from a pipe, with numpy only. Exported scripts contain a copy of this file."""

import struct
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

ENDLESS = 0x7FFF0000  # bytes; programs that write to a pipe give 0 or a size above this for an unknown one


class Wav(NamedTuple):
    """`form` is i (integer) or f (float) and bytes per sample; `size` is the bytes of all samples or None."""

    rate: int
    channels: int
    form: str
    size: int | None


def wav_header(read: Callable[[int], bytes]) -> Wav:
    """Read up to the first sample.

    Args:
        read: called with a number of bytes; returns them, or fewer at the end.

    Raises:
        ValueError: not a wav, or one of another encoding than PCM of 8 to 32 bits, or float; says which.
    """
    if read(4) not in (b"RIFF", b"RF64") or len(read(4)) < 4 or read(4) != b"WAVE":
        raise ValueError("no header of a wav")
    found = None
    while len(head := read(8)) == 8:
        name, size = struct.unpack("<4sI", head)
        if name == b"data" and found is not None:
            return Wav(*found, None if size == 0 or size >= ENDLESS else size)
        content = read(size + size % 2)
        if name == b"fmt " and len(content) >= 16:
            tag, channels, rate, _, frame, _ = struct.unpack("<HHIIHH", content[:16])
            if tag == 0xFFFE and len(content) >= 26:  # an extensible header, which has the format's tag later
                tag = struct.unpack("<H", content[24:26])[0]
            width = frame // max(1, channels)
            form = {1: "i", 3: "f"}.get(tag, "?") + str(width)
            if form not in ("i1", "i2", "i3", "i4", "f4", "f8") or frame != width * channels or not rate:
                raise ValueError(f"a wav of encoding {tag} with {width} bytes a sample")
            found = rate, channels, form
    raise ValueError("a wav that ends within its header")


def wav_samples(data: bytes, wav: Wav) -> np.ndarray:
    """(T, channels) float32 in [−1, 1] (float formats: as they are) of the whole frames in `data`."""
    width = int(wav.form[1])
    data = data[: len(data) // (width * wav.channels) * width * wav.channels]
    if wav.form == "i1":  # 8-bit samples are unsigned
        x = (np.frombuffer(data, np.uint8).astype(np.float32) - 128) / 128
    elif wav.form == "i3":
        wide = np.zeros((len(data) // 3, 4), np.uint8)
        wide[:, 1:] = np.frombuffer(data, np.uint8).reshape(-1, 3)
        x = (wide.view("<i4")[:, 0] / 2.0**31).astype(np.float32)
    else:
        x = np.frombuffer(data, "<" + wav.form).astype(np.float64 if wav.form == "i4" else np.float32)
        x = (x / 2.0 ** (8 * width - 1)).astype(np.float32) if wav.form[0] == "i" else x
    return x.reshape(-1, wav.channels)
