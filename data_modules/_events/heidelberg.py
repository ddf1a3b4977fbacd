"""Spiking Heidelberg Digits and Spiking Speech Commands: HDF5 (Cramer et al. 2020, arXiv 1910.07407).

`spikes/times` and `spikes/units` hold an array for each sample, in seconds and channels; `labels` a class;
`extra/speaker` of SHD who spoke. A file is read sample by sample.
"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from data_modules._events import hdf5
from data_modules._events.recording import Recording, Sensor, checked, label_of
from lrnnx_app.errors import DataError

SENSOR = Sensor(700, 1, 1)


def read(path: Path, classes: int) -> Iterator[Recording]:
    """Every sample of a file.

    Raises:
        DataError: not HDF5 of this layout, truncated or damaged, or a sample is not as it should be.
    """
    trial = subprocess.run([sys.executable, "-P", hdf5.__file__, str(path)], capture_output=True, check=False)
    if trial.returncode < 0:  # by a signal; what else is wrong is said below
        raise DataError(f"{path}: damaged, its HDF5 breaks the library; expected a whole file of SHD or SSC")
    try:
        with h5py.File(path, "r") as file:
            yield from _samples(file, path, classes)
    except (OSError, KeyError, RuntimeError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0].strip("'\"") if str(error) else type(error).__name__
        raise DataError(
            f"{path}: not readable as HDF5 with spikes/times, spikes/units and labels ({reason}); "
            "expected a whole file of SHD or SSC, unpacked"
        ) from error


def _samples(file: h5py.File, path: Path, classes: int) -> Iterator[Recording]:
    names = ("spikes/times", "spikes/units", "labels")
    times, units, labels = (hdf5.dataset(file, name) for name in names)
    labels = _numbers(labels)
    known = hdf5.find(file, "extra/speaker")
    speakers = np.zeros(len(labels), int) if known is None else _numbers(known)
    if len({len(times), len(units), len(labels), len(speakers)}) > 1:
        raise DataError(
            f"{path}: {len(times)} times, {len(units)} units, {len(labels)} labels, "
            f"{len(speakers)} speakers; expected as many of each"
        )
    for i in range(len(labels)):
        t, unit = np.asarray(times[i], np.float64) * 1e6, np.asarray(units[i]).astype(np.int64)
        zeros = np.zeros(len(unit), np.int64)
        place = f"{path}: sample {i}"
        recording = checked(place, t, unit, zeros, zeros, SENSOR)
        label = label_of(place, int(labels[i]), classes)
        yield recording._replace(label=label, name=str(i), group=f"speaker {int(speakers[i])}")


def _numbers(column: h5py.Dataset) -> np.ndarray:
    """Whole numbers (n,); KeyError if they are none."""
    if column.dtype.kind not in "iu":
        raise KeyError(f"{column.name} is of {column.dtype}; expected whole numbers")
    return np.asarray(column)
