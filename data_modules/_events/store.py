"""Recordings of any layout, read and checked once into flat files that are mapped into memory."""

import json
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from data_modules._events.recording import Recording
from lrnnx_app.disk import cache
from lrnnx_app.errors import DataError

TIMES, TOKENS, INDEX, NAMES = "times.u4", "tokens.u4", "index.npz", "names.json"
VERSION = 1  # of what is kept, or of a simulation
LONGEST = 2**32 - 1  # µs from the first event to the last


class Store:
    """Recordings by number; t counts from a recording's first event. Only what is looked at is read.

    Attributes:
        ends: (recordings,) events up to the end of each; lengths and labels (recordings,).
    """

    def __init__(self, what: str, facts: Any, recordings: Callable[[], Iterable[Recording]]) -> None:
        self.folder = cache.folder(
            "events", (VERSION, what, facts), lambda part: _write(part, what, recordings())
        )
        with np.load(self.folder / INDEX) as index:
            self.ends, self.labels = index["ends"], index["labels"]
        self.lengths = np.diff(self.ends, prepend=0)
        named = json.loads((self.folder / NAMES).read_text(encoding="utf-8"))
        self.names, self.groups = named["names"], named["groups"]

    def __len__(self) -> int:
        return len(self.ends)

    def durations(self) -> np.ndarray:
        """µs from the first event of each recording to its last."""
        return np.array(np.memmap(self.folder / TIMES, "<u4", "r")[self.ends - 1], np.int64)

    def __getitem__(self, index: int) -> Recording:
        start, size = int(self.ends[index] - self.lengths[index]), int(self.lengths[index])
        t, token = (
            np.array(np.memmap(self.folder / name, "<u4", "r", 4 * start, (size,)), np.int64)
            for name in (TIMES, TOKENS)
        )
        return Recording(t, token, int(self.labels[index]), self.names[index], self.groups[index])


def _write(folder: Path, what: str, recordings: Iterable[Recording]) -> None:
    ends, labels, names, groups = [0], [], [], []
    progress = tqdm(recordings, f"reading {what} once", unit="rec", disable=not sys.stderr.isatty())
    with (folder / TIMES).open("wb") as times, (folder / TOKENS).open("wb") as tokens:
        for recording in progress:
            t = recording.t - recording.t[0]
            if t[-1] > LONGEST:
                raise DataError(f"{recording.name}: lasts {t[-1]} µs; expected at most {LONGEST}, split it")
            times.write(t.astype("<u4").tobytes())
            tokens.write(recording.token.astype("<u4").tobytes())
            ends.append(ends[-1] + len(t))
            labels.append(recording.label)
            names.append(recording.name)
            groups.append(recording.group)
    np.savez(folder / INDEX, ends=np.array(ends[1:], np.int64), labels=np.array(labels, np.int64))
    (folder / NAMES).write_text(json.dumps({"names": names, "groups": groups}), encoding="utf-8")
