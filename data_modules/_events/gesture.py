"""DVS128 Gesture (Amir et al. 2017): recordings of several gestures, in AEDAT 3.1, their spans in a csv.

trials_to_train.txt and trials_to_test.txt list the recordings; userNN_light.aedat goes with
userNN_light_labels.csv of the columns class (1 to 11), startTime_usec and endTime_usec.
"""

import csv
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data_modules._events import aedat
from data_modules._events.recording import Recording, Sensor, checked, label_of
from lrnnx_app.errors import DataError

SENSOR = Sensor(128, 128, 2)
COLUMNS = ("class", "startTime_usec", "endTime_usec")


def trials(path: Path) -> list[Path]:
    """The recordings that a list names.

    Raises:
        DataError: the list is missing or empty, or names a file that is not there.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected the names of recordings, one in a line")
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        if line.strip():
            file = path.parent / line.strip()
            if not file.is_file():
                raise DataError(f"{path}: line {number}: {file} is not there")
            found.append(file)
    if not found:
        raise DataError(f"{path}: names no recording; expected at least one")
    return found


def read(path: Path, classes: int) -> Iterator[Recording]:
    """The gestures of a recording, each from its start to its end.

    Raises:
        DataError: a file is missing or wrong, or a span holds no events; names file and line.
    """
    spans = labels(path.with_name(f"{path.stem}_labels.csv"), classes)
    t, x, y, p = aedat.read(path)
    for number, label, start, end in spans:
        part = np.flatnonzero((t >= start) & (t < end))
        place = f"{path}: gesture of line {number} of its labels"
        part = part[np.argsort(t[part], kind="stable")]  # packets of two sources may overlap by some µs
        recording = checked(place, t[part], x[part], y[part], p[part], SENSOR)
        user = path.stem.partition("_")[0]
        yield recording._replace(label=label, name=f"{path.stem}:{number}", group=user)


def labels(path: Path, classes: int) -> list[tuple[int, int, int, int]]:
    """Line, class from 0, start and end in µs of each gesture."""
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected columns {', '.join(COLUMNS)}")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not readable as csv ({error})") from error
    rows = []
    for number, row in enumerate(lines, 2):
        place = f"{path}: line {number}"
        try:
            label, start, end = (int(row[column]) for column in COLUMNS)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(f"{place}: expected whole numbers in columns {', '.join(COLUMNS)}") from error
        if end <= start:
            raise DataError(f"{place}: ends at {end} µs, not after its start at {start} µs")
        if not 1 <= label <= classes:
            raise DataError(f"{place}: class {label}, expected 1 to {classes}")
        rows.append((number, label_of(place, label - 1, classes), start, end))
    if not rows:
        raise DataError(f"{path}: holds no gesture; expected at least one line below the header")
    return rows
