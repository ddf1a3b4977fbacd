"""SHD, SSC, DVS128 Gesture, N-MNIST and folders of events, byte by byte from the formats' descriptions."""

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np


def write(folder: Path, config: Any) -> list[str]:
    makers = {"shd": shd, "ssc": ssc, "dvs128": dvs128, "nmnist": nmnist, "folders": folders}
    if config.layout not in makers:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    makers[config.layout](folder)
    return [f"data.root={folder}"]


def events(count: int, width: int, height: int, seed: int) -> tuple[np.ndarray, ...]:
    """t in µs, x, y, p."""
    rng = np.random.default_rng(seed)
    t = np.sort(rng.integers(0, 100_000, count))
    return (
        t,
        rng.integers(0, width, count),
        rng.integers(0, height, count),
        rng.integers(0, 2, count),
    )


def heidelberg(path: Path, labels: Sequence[int], speakers: Sequence[int] | None) -> None:
    with h5py.File(path, "w") as file:
        for name, kind in (("times", np.float16), ("units", np.uint16)):
            data = file.create_dataset(f"spikes/{name}", (len(labels),), h5py.vlen_dtype(kind))
            for i in range(len(labels)):
                t, unit, _, _ = events(40 + i, 700, 1, i)
                data[i] = (t / 1e6 if name == "times" else unit).astype(kind)
        file["labels"] = np.array(labels, np.uint16)
        if speakers is not None:
            file["extra/speaker"] = np.array(speakers, np.uint16)


def shd(folder: Path) -> None:
    heidelberg(folder / "shd_train.h5", [i % 20 for i in range(24)], [i % 6 for i in range(24)])
    heidelberg(folder / "shd_test.h5", [3, 19], [4, 5])


def ssc(folder: Path) -> None:
    for part in ("train", "valid", "test"):
        heidelberg(folder / f"ssc_{part}.h5", [0, 7, 34, 12], None)


def aedat(t: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray, overflow: int = 0) -> bytes:
    """A header, a packet of another type, and one of polarity events, of which one is not valid."""
    head = b"#!AER-DAT3.1\r\n#Format: RAW\r\n#Source 1: DVS128\r\n#!END-HEADER\r\n"
    special = struct.pack("<hhiiiiii", 0, 1, 8, 4, 0, 1, 1, 1) + bytes(8)
    count = len(t) + 1
    packet = struct.pack("<hhiiiiii", 1, 1, 8, 4, overflow, count, count, count - 1)
    rows = [struct.pack("<Ii", p[i] << 1 | y[i] << 2 | x[i] << 17 | 1, t[i]) for i in map(int, range(len(t)))]
    return head + special + packet + b"".join(rows) + struct.pack("<Ii", 5 << 2, int(t[-1]))


def dvs128(folder: Path) -> None:
    for part, users in (("train", (1, 2, 3)), ("test", (24,))):
        names = []
        for user in users:
            stem = f"user{user:02}_led"
            t, *rest = events(600, 128, 128, user)
            (folder / f"{stem}.aedat").write_bytes(aedat(t, *rest))
            lines = [f"{label},{8000 * label},{8000 * label + 7000}" for label in range(1, 12)]
            (folder / f"{stem}_labels.csv").write_text(
                "class,startTime_usec,endTime_usec\n" + "\n".join(lines) + "\n"
            )
            names.append(f"{stem}.aedat")
        (folder / f"trials_to_{part}.txt").write_text("\n".join(names) + "\n")


def atis(t: np.ndarray, x: np.ndarray, y: np.ndarray, p: np.ndarray) -> bytes:
    return b"".join(
        bytes((int(x[i]), int(y[i]))) + struct.pack(">I", int(p[i]) << 23 | int(t[i]))[1:]
        for i in range(len(t))
    )


def nmnist(folder: Path) -> None:
    for part, count in (("Train", 12), ("Test", 1)):
        for digit in range(10):
            (folder / part / str(digit)).mkdir(parents=True, exist_ok=True)
            for i in range(count):
                path = folder / part / str(digit) / f"{100 * digit + i:05}.bin"
                path.write_bytes(atis(*events(60, 34, 34, 10 * i + digit)))


def folders(folder: Path) -> None:
    for name in ("left", "right"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        for i in range(20):
            t, x, y, p = events(30 + i, 128, 128, i)
            np.savez(folder / name / f"{i}.npz", t=t, x=x, y=y, p=p)
