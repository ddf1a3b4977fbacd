"""One recording of events, as every reader gives it, and the checks that all formats share."""

from typing import Any, NamedTuple

import numpy as np

from lrnnx_app.errors import DataError


class Sensor(NamedTuple):
    """Pixels, and polarities (1 or 2); a row of channels is a sensor of height 1."""

    width: int
    height: int
    polarities: int

    @property
    def tokens(self) -> int:
        return self.width * self.height * self.polarities


class Recording(NamedTuple):
    """t (n,) in µs, not decreasing; token (n,) = p·W·H + y·W + x; `group`, which no split tears apart."""

    t: np.ndarray
    token: np.ndarray
    label: int = 0
    name: str = ""
    group: str = ""


def checked(place: Any, t: Any, x: Any, y: Any, p: Any, sensor: Sensor, first: int = 0) -> Recording:
    """The recording of these columns; numbers in messages count from `first`.

    Raises:
        DataError: empty, of unequal lengths, not finite, not sorted, or beyond the sensor; names event and
            value.
    """
    t, x, y, p = (np.asarray(column) for column in (t, x, y, p))
    if len({len(t), len(x), len(y), len(p)}) > 1:
        raise DataError(
            f"{place}: {len(t)} times, {len(x)} x, {len(y)} y, {len(p)} p; expected as many of each"
        )
    if not len(t):
        raise DataError(f"{place}: holds no events; expected at least one")
    for name, column, end in (("x", x, sensor.width), ("y", y, sensor.height), ("p", p, sensor.polarities)):
        wrong = np.flatnonzero(~((column >= 0) & (column < end)))
        if len(wrong):
            at = int(wrong[0])
            raise DataError(f"{place}: event {at + first}: {name} is {column[at]}, expected 0 to {end - 1}")
    if not np.isfinite(t).all():
        raise DataError(f"{place}: event {int(np.argmin(np.isfinite(t))) + first}: its time is not finite")
    t = np.round(t).astype(np.int64)
    back = np.flatnonzero(np.diff(t) < 0)
    if len(back):
        at = int(back[0]) + 1
        raise DataError(
            f"{place}: event {at + first}: its time {t[at]} µs is before the last one's {t[at - 1]} µs; "
            "expected sorted times"
        )
    token = (p.astype(np.int64) * sensor.height + y) * sensor.width + x
    return Recording(t, token.astype(np.int64))


def label_of(place: Any, label: int, classes: int) -> int:
    """The label itself; a DataError names one beyond the classes."""
    if not 0 <= label < classes:
        raise DataError(f"{place}: label {label}, expected 0 to {classes - 1}")
    return int(label)
