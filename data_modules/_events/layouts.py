"""Data sets in the layout they are published in: their sensor, classes, and the recordings of each split."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_modules._events import aedat, atis, gesture, heidelberg, plain, simulated
from data_modules._events.recording import Recording, Sensor, checked
from data_modules._events.store import Store
from data_modules._expected import File, Published
from data_modules._splits import by_folders, folder_of, parted, tenth
from lrnnx_app.disk import cache
from lrnnx_app.disk.files import below, folders_in
from lrnnx_app.errors import DataError

SHD_WORDS = (
    *("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"),
    *("null", "eins", "zwei", "drei", "vier", "fünf", "sechs", "sieben", "acht", "neun"),
)
GESTURES = (
    *("hand clapping", "right hand wave", "left hand wave", "right arm clockwise"),
    *("right arm counter clockwise", "left arm clockwise", "left arm counter clockwise"),
    *("arm roll", "air drums", "air guitar", "other"),
)
HEIDELBERG = "zenkelab.org/resources/spiking-heidelberg-datasets-shd"
ZIPS = "of the archive {}, md5 {}"
SHD = Published(
    "SHD",
    HEIDELBERG,
    (
        File("shd_train.h5", remark=ZIPS.format("shd_train.h5.zip", "f3252aeb598ac776c1b526422d90eecb")),
        File("shd_test.h5", remark=ZIPS.format("shd_test.h5.zip", "1503a5064faa34311c398fb0a1ed0a6f")),
    ),
)
SSC = Published("SSC", HEIDELBERG, (File("ssc_train.h5"), File("ssc_valid.h5"), File("ssc_test.h5")))
DVS128 = Published(
    "DVS128 Gesture",
    "research.ibm.com/dvsgesture, DvsGesture.tar.gz",
    (
        File("trials_to_train.txt", remark="98 recordings"),
        File("trials_to_test.txt", remark="24 recordings"),
        File("userNN_light.aedat and userNN_light_labels.csv of each"),
    ),
)
NMNIST = Published(
    "N-MNIST",
    "garrickorchard.com/datasets/n-mnist, Train.zip and Test.zip",
    (
        File("Train/0 … Train/9", remark="60,000 files"),
        File("Test/0 … Test/9", remark="10,000 files"),
    ),
)
SUFFIXES = (".bin", ".csv", ".npz", ".aedat")
USER, ENOUGH_USERS = "user", 5  # recordings userNN_… stay together where there are so many users
HELD_OUT = 5  # one of so many speakers or users of the training set is for validation


class Layout(NamedTuple):
    """What a data set is; without classes, folders name them.

    `stored` gives the recordings of a split's files and the rows that belong to it.
    """

    sensor: Sensor
    classes: tuple[str, ...]
    stored: Callable[[Path, str], tuple[Store, np.ndarray]]


def named(name: str, sensor: Sensor, shares: Sequence[float]) -> Layout:
    """A layout by its name; `sensor` and `shares` are those of folders, whose classes the folders name."""
    if name == "folders":
        return Layout(sensor, (), lambda root, split: _folders(root, split, sensor, shares))
    return PUBLISHED[name]


def _shd(root: Path, split: str) -> tuple[Store, np.ndarray]:
    """Speakers of the training file are held out for validation: the last fifth of them."""
    store = _hdf5(SHD, root, f"shd_{'test' if split == 'test' else 'train'}.h5", len(SHD_WORDS))
    return store, _held_out(store, split)


def _ssc(root: Path, split: str) -> tuple[Store, np.ndarray]:
    store = _hdf5(SSC, root, f"ssc_{split}.h5", SSC_CLASSES)
    return store, np.arange(len(store))


def _hdf5(data: Published, root: Path, name: str, classes: int) -> Store:
    path = root / name
    if not path.is_file():
        raise data.missing(root, name)
    return Store(name, cache.stamps([path]), lambda: heidelberg.read(path, classes))


def _dvs128(root: Path, split: str) -> tuple[Store, np.ndarray]:
    """The published lists of trials; users of the training list are held out for validation."""
    name = f"trials_to_{'test' if split == 'test' else 'train'}.txt"
    if not (root / name).is_file():
        raise DVS128.missing(root, name)
    paths = gesture.trials(root / name)
    facts = cache.stamps([root / name, *paths])
    store = Store(
        f"DVS128 ({name})", facts, lambda: chain.from_iterable(gesture.read(p, len(GESTURES)) for p in paths)
    )
    return store, _held_out(store, split)


def _nmnist(root: Path, split: str) -> tuple[Store, np.ndarray]:
    part = "Test" if split == "test" else "Train"
    folders = [root / part / str(digit) for digit in range(10)]
    for folder in folders:
        if not folder.is_dir():
            raise NMNIST.missing(root, f"{part}/{folder.name}")
    store = _files(folders, f"N-MNIST ({part})", atis.SENSOR)
    held = np.array([tenth(group) == "valid" for group in store.groups])
    rows = np.arange(len(store)) if split == "test" else np.flatnonzero(held == (split == "valid"))
    if not len(rows):
        raise DataError(
            f"{root / part}: none of its {len(store)} recordings is for {split}; expected all files"
        )
    return store, rows


def folder_classes(root: Path) -> tuple[str, ...]:
    """The names of the class folders below `root`, or below its train folder where splits are folders.

    Raises:
        DataError: there are not at least two.
    """
    base = root / "train" if by_folders(root) else root
    if not base.is_dir():
        raise DataError(f"{root}: no such folder; expected a folder of event files for each class")
    names = tuple(path.name for path in folders_in(base))
    if len(names) < 2:
        raise DataError(f"{base}: {len(names)} folders in it; expected one for each of two or more classes")
    return names


def _folders(root: Path, split: str, sensor: Sensor, shares: Sequence[float]) -> tuple[Store, np.ndarray]:
    """Folders of classes, or train, valid and test with such folders; users (userNN_…) are not torn apart."""
    classes = folder_classes(root)
    base, among = folder_of(root, split)
    for folder in folders_in(base):
        if folder.name not in classes:
            raise DataError(f"{folder}: a class that {root / 'train'} lacks; expected {', '.join(classes)}")
    store = _files([base / name for name in classes], f"events of {base}", sensor)
    users = {group for group in store.groups if group.startswith(USER)}
    apart = [
        name if group in users and len(users) < ENOUGH_USERS else group
        for group, name in zip(store.groups, store.names, strict=True)
    ]
    return store, np.flatnonzero([part == split for part in parted(apart, shares, among, base)])


def _files(folders: list[Path], what: str, sensor: Sensor) -> Store:
    """The recordings in a folder for each class."""
    files = [
        (label, path)
        for label, folder in enumerate(folders)
        if folder.is_dir()
        for path in below(folder, SUFFIXES)
        if path.parent == folder
    ]
    if not files:
        raise DataError(f"{folders[0].parent}: no event files in it; expected {', '.join(SUFFIXES)} by class")

    def recordings() -> Iterator[Recording]:
        for (label, path), folder in ((file, folders[file[0]]) for file in files):
            first = path.stem.partition("_")[0]
            yield read(path, sensor)._replace(
                label=label,
                name=f"{folder.name}/{path.relative_to(folder).as_posix()}",
                group=first if first.startswith(USER) else path.stem,
            )

    return Store(what, (cache.stamps(path for _, path in files), sensor), recordings)


def read(path: Path, sensor: Sensor) -> Recording:
    """One file of events, by its suffix.

    Raises:
        DataError: it is not what its suffix says, or does not fit the sensor.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return plain.read_csv(path, sensor)
    if suffix == ".npz":
        return plain.read_npz(path, sensor)
    if suffix == ".bin":
        return atis.read(path, sensor)
    if suffix == ".aedat":
        t, x, y, p = aedat.read(path)
        order = np.argsort(t, kind="stable")
        return checked(path, t[order], x[order], y[order], p[order], sensor)
    raise DataError(f"{path}: not a file of events; expected {', '.join(SUFFIXES)}")


def _held_out(store: Store, split: str) -> np.ndarray:
    """The rows of "train" or "valid", which gets the last of the sorted groups; all rows of "test"."""
    if split == "test":
        return np.arange(len(store))
    groups = sorted(set(store.groups), key=lambda name: (len(name), name))
    if len(groups) < 2:
        raise DataError(f"all training recordings are of {groups[0]}; expected several, to hold some out")
    kept = set(groups[-max(1, len(groups) // HELD_OUT) :])
    return np.flatnonzero([(group in kept) == (split == "valid") for group in store.groups])


def _simulated(
    name: str, make: Callable[[str], Iterable[Recording]]
) -> Callable[[Path, str], tuple[Store, np.ndarray]]:
    def stored(_: Path, split: str) -> tuple[Store, np.ndarray]:
        constants = {k: v for k, v in vars(simulated).items() if k.isupper() and not isinstance(v, Path)}
        store = Store(f"simulated {name}, {split}", (split, sorted(constants.items())), lambda: make(split))
        return store, np.arange(len(store))

    return stored


SSC_CLASSES = 35
PUBLISHED: dict[str, Layout] = {
    "digits": Layout(simulated.EYE, tuple("0123456789"), _simulated("digits", simulated.digits)),
    "spikes": Layout(
        simulated.EAR,
        tuple(f"{voice}{way}" for voice in simulated.VOICES for way in ("", " backwards")),
        _simulated("spikes", simulated.spikes),
    ),
    "shd": Layout(heidelberg.SENSOR, SHD_WORDS, _shd),
    "ssc": Layout(heidelberg.SENSOR, tuple(map(str, range(SSC_CLASSES))), _ssc),
    "dvs128": Layout(gesture.SENSOR, GESTURES, _dvs128),
    "nmnist": Layout(atis.SENSOR, tuple("0123456789"), _nmnist),
}
LAYOUTS = (*PUBLISHED, "folders")
