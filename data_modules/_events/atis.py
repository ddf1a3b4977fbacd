"""The 40-bit events of N-MNIST's .bin files (Orchard et al. 2015, arXiv 1507.07629).

Big-endian: 8 bits of x, 8 of y, 1 of polarity, 23 of µs. An event with y = 240 is none; it says that the time
has overflowed, and 2^13 µs are added to those after it.
"""

from pathlib import Path

import numpy as np

from data_modules._events.recording import Recording, Sensor, checked
from lrnnx_app.errors import DataError

SENSOR = Sensor(34, 34, 2)
EVENT_BYTES, OVERFLOW_Y, OVERFLOW = 5, 240, 1 << 13


def read(path: Path, sensor: Sensor = SENSOR) -> Recording:
    """The events of a file.

    Raises:
        DataError: missing, empty, truncated, or an event is not as it should be.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected 40-bit events (.bin)")
    content = np.fromfile(path, np.uint8)
    if len(content) % EVENT_BYTES:
        whole = len(content) // EVENT_BYTES
        raise DataError(
            f"{path}: ends within event {whole}: {len(content)} bytes are no multiple of {EVENT_BYTES}"
        )
    x, y, high, mid, low = content.reshape(-1, EVENT_BYTES).astype(np.int64).T
    mark = y == OVERFLOW_Y
    t = ((high & 0x7F) << 16 | mid << 8 | low) + OVERFLOW * np.cumsum(mark)
    keep = ~mark
    return checked(path, t[keep], x[keep], y[keep], high[keep] >> 7, sensor)
