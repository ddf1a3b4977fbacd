"""Events as a csv with a header, or an npz: columns t in µs, x, and, where the sensor has them, y and p."""

import csv
import lzma
import zipfile
import zlib
from pathlib import Path

import numpy as np

from data_modules._events.recording import Recording, Sensor, checked
from lrnnx_app.errors import DataError

COLUMNS = ("t", "x", "y", "p")
MOST_UNFOLDED, MOST_PACKED = (
    1 << 28,
    100,
)  # bytes of an npz, beyond which it is at most so many times its file
# What numpy and zipfile raise: RuntimeError of encrypted parts, and of compressions that they do not know.
DAMAGED = (
    *(OSError, ValueError, EOFError, AttributeError, TypeError, RuntimeError, MemoryError),
    *(zipfile.BadZipFile, zlib.error, lzma.LZMAError),
)


def read_csv(path: Path, sensor: Sensor) -> Recording:
    """A csv with a header line.

    Raises:
        DataError: a column is missing or a line holds no numbers; names the line.
    """
    columns: dict[str, list[float]] = {name: [] for name in COLUMNS}
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:  # spreadsheets begin with a mark
            rows = csv.DictReader(file)
            names = [name for name in COLUMNS if name in (rows.fieldnames or ())]
            _check_columns(path, names, sensor)
            for row in rows:
                try:
                    values = [float(row[name]) for name in names]
                except (TypeError, ValueError) as error:
                    raise DataError(
                        f"{path}: line {rows.line_num}: expected numbers in the columns {', '.join(names)}"
                    ) from error
                for name, value in zip(names, values, strict=True):
                    columns[name].append(value)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: not readable as csv ({error}); expected a header line t,x,y,p") from error
    return _recording(path, {name: np.asarray(columns[name]) for name in names}, sensor)


def read_npz(path: Path, sensor: Sensor) -> Recording:
    """An npz with an array for each column.

    Raises:
        DataError: not an npz, or an array is missing.
    """
    try:
        with path.open("rb") as opened:
            unfolded = sum(part.file_size for part in zipfile.ZipFile(opened).infolist())
        if unfolded > max(MOST_UNFOLDED, MOST_PACKED * path.stat().st_size):
            raise DataError(f"{path}: unfolds to {unfolded >> 20:,} MiB; expected a file that is packed less")
        with path.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            columns = {name: file[name] for name in COLUMNS if name in file.files}
    except DAMAGED as error:
        raise DataError(f"{path}: not readable as npz; expected arrays t (µs), x, y and p") from error
    _check_columns(path, list(columns), sensor)
    for name, column in columns.items():
        if column.ndim != 1 or column.dtype.kind not in "iufb":
            raise DataError(
                f"{path}: {name} is {column.dtype} of shape {column.shape}; expected numbers (n,)"
            )
    return _recording(path, columns, sensor)


def _check_columns(path: Path, names: list[str], sensor: Sensor) -> None:
    needed = ["t", "x", *["y"] * (sensor.height > 1), *["p"] * (sensor.polarities > 1)]
    missing = [name for name in needed if name not in names]
    if missing:
        raise DataError(f"{path}: has no column {missing[0]}; expected {', '.join(needed)}, with t in µs")


def _recording(path: Path, columns: dict[str, np.ndarray], sensor: Sensor) -> Recording:
    zeros = np.zeros(len(columns["t"]), np.int64)
    x, y, p = (columns.get(name, zeros) for name in ("x", "y", "p"))
    for name, column in (("x", x), ("y", y), ("p", p)):
        broken = np.flatnonzero(column != np.floor(column))
        if len(broken):
            raise DataError(
                f"{path}: event {broken[0]}: {name} is {column[broken[0]]}, expected a whole number"
            )
    return checked(path, columns["t"], x.astype(np.int64), y.astype(np.int64), p.astype(np.int64), sensor)
