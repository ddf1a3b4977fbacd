"""Speech Commands v2 (Warden 2018, arXiv 1804.03209), in the layout of its archive."""

from pathlib import Path
from typing import NamedTuple

import numpy as np

from data_modules._expected import File, Published
from lrnnx_app.disk.files import below, folders_in
from lrnnx_app.errors import DataError

WORDS = (
    *("backward", "bed", "bird", "cat", "dog", "down", "eight", "five", "follow", "forward", "four", "go"),
    *("happy", "house", "learn", "left", "marvin", "nine", "no", "off", "on", "one", "right", "seven"),
    *("sheila", "six", "stop", "three", "tree", "two", "up", "visual", "wow", "yes", "zero"),
)
TEN = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
TWELVE = (*TEN, "unknown", "silence")
NOISE = "_background_noise_"
LISTS = {"valid": "validation_list.txt", "test": "testing_list.txt"}
SPEECH_COMMANDS = Published(
    "Speech Commands v2",
    "Warden 2018, speech_commands_v0.02.tar.gz, md5 6b74f3901214cb2c2934e98196829835",
    (
        File("35 folders, one for each word", remark="105,829 wav files in all"),
        File(LISTS["valid"], remark="9,981 lines such as bed/00176480_nohash_0.wav"),
        File(LISTS["test"], remark="11,005 lines"),
        File(NOISE, remark="6 wav files, for 10+2 classes"),
    ),
)


class Clip(NamedTuple):
    """A file and its class; of a long one, the share of it that belongs to the split."""

    path: Path
    label: int
    part: tuple[float, float] = (0.0, 1.0)


def speech_commands(root: Path, split: str, classes: int) -> list[Clip]:
    """The clips of a split by the published lists, which keep each speaker in one split.

    With 12 classes, "unknown" is made of the other 25 words and "silence" of parts of the background noises,
    each as often as a word on average.

    Raises:
        DataError: files are missing, or a list names one that is not there.
    """
    for name in LISTS.values():
        if not (root / name).is_file():
            raise SPEECH_COMMANDS.missing(root, name)
    listed = {name: (root / file).read_text(encoding="utf-8-sig").split() for name, file in LISTS.items()}
    if split == "train":
        kept_out = set(listed["valid"]) | set(listed["test"])
        folders = [path for path in folders_in(root) if not path.name.startswith("_")]
        found = [f"{folder.name}/{p.name}" for folder in folders for p in below(folder, (".wav",))]
        names = [name for name in found if name not in kept_out]
    else:
        names = listed[split]
        for number, name in enumerate(names, 1):
            if not (root / name).is_file():
                raise DataError(f"{root / LISTS[split]}: line {number}: no such file as {name}")
    if not names:
        raise SPEECH_COMMANDS.missing(root, f"*/*.wav of the {split} split")
    for name in names:
        if name.partition("/")[0] not in WORDS:
            raise DataError(f"{root / name}: in no folder of the 35 words of Speech Commands v2")
    if classes == len(WORDS):
        return [Clip(root / name, WORDS.index(name.partition("/")[0])) for name in names]
    return _twelve(root, split, names)


def _twelve(root: Path, split: str, names: list[str]) -> list[Clip]:
    words = [(name, name.partition("/")[0]) for name in names]
    clips = [Clip(root / name, TWELVE.index(word)) for name, word in words if word in TEN]
    others = [name for name, word in words if word not in TEN]
    count = max(1, round(len(clips) / len(TEN)))
    chosen = np.linspace(0, len(others) - 1, min(count, len(others))).round().astype(int)
    clips += [Clip(root / others[i], TWELVE.index("unknown")) for i in np.unique(chosen)]
    noises = below(root / NOISE, (".wav",)) if (root / NOISE).is_dir() else []
    if not noises:
        raise SPEECH_COMMANDS.missing(root, f"{NOISE}/*.wav")
    part = {"train": (0.0, 0.8), "valid": (0.8, 0.9), "test": (0.9, 1.0)}[split]
    return clips + [Clip(noises[i % len(noises)], TWELVE.index("silence"), part) for i in range(count)]
