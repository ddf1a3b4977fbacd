"""AEDAT 3.1, the polarity events of iniVation's cameras (docs.inivation.com, "AEDAT 3.1").

Header lines begin with #, the last one is #!END-HEADER. Then packets: 28 bytes of header (type and source,
16 bits each; size of an event, offset of its time, overflows of the time, capacity, number, valid number, 32
bits each), then the events: of polarity (type 1) 32 bits of data (valid, polarity, 15 of y, 15 of x from the
lowest bit up) and 31 bits of µs; all little-endian.
"""

from pathlib import Path

import numpy as np

from lrnnx_app.errors import DataError

PACKET = np.dtype(
    [("type", "<i2"), ("source", "<i2")]
    + [(name, "<i4") for name in ("size", "offset", "overflow", "capacity", "number", "valid")]
)
POLARITY, EVENT_BYTES = 1, 8


def read(path: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """t in µs, x, y and p of the valid polarity events, in the file's order; the file is mapped, not loaded.

    Raises:
        DataError: not AEDAT 3.1, or it ends inside a packet; names the byte.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected AEDAT 3.1")
    if not path.stat().st_size:
        raise DataError(f"{path}: is empty; expected AEDAT 3.1")
    content = np.memmap(path, np.uint8, "r")
    at, parts = _header(path, content), []
    while at < len(content):
        if at + PACKET.itemsize > len(content):
            raise DataError(
                f"{path}: byte {at}: ends within the header of a packet; expected {PACKET.itemsize}"
            )
        packet = content[at : at + PACKET.itemsize].view(PACKET)[0]
        start, size, number = at + PACKET.itemsize, int(packet["size"]), int(packet["number"])
        if size < 1 or not 0 <= number <= packet["capacity"]:
            raise DataError(f"{path}: byte {at}: not a packet of AEDAT 3.1 ({number} events of {size} bytes)")
        at = start + size * number
        if at > len(content):
            raise DataError(
                f"{path}: byte {start}: ends within a packet of {number} events, "
                f"{at - len(content)} bytes short"
            )
        if packet["type"] != POLARITY:
            continue
        if size != EVENT_BYTES:
            raise DataError(f"{path}: byte {start}: polarity events of {size} bytes; expected {EVENT_BYTES}")
        events = content[start:at].view("<u4").reshape(-1, 2)
        data, time = events[:, 0], events[:, 1].astype(np.int64) + (int(packet["overflow"]) << 31)
        keep = (data & 1).astype(bool)
        parts.append((time[keep], data[keep]))
    if not parts:
        raise DataError(f"{path}: holds no polarity events; expected at least one packet of them")
    t, data = (np.concatenate(column) for column in zip(*parts, strict=True))
    return t, (data >> 17) & 0x7FFF, (data >> 2) & 0x7FFF, (data >> 1) & 1


def _header(path: Path, content: np.ndarray) -> int:
    """The offset of the first packet, in bytes."""
    head = bytes(content[: 1 << 16])
    if not head.startswith(b"#!AER-DAT3.1"):
        raise DataError(f"{path}: byte 0: expected the line #!AER-DAT3.1, not {head[:12]!r}")
    mark = head.find(b"#!END-HEADER")
    end = head.find(b"\n", mark)
    if mark < 0 or end < 0:
        raise DataError(f"{path}: no line #!END-HEADER in its first {len(head)} bytes")
    return end + 1
