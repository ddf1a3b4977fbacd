"""Splits the user's files; files that belong together, such as those of one speaker, stay in one split."""

import hashlib
import os
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lrnnx_app.errors import DataError
from lrnnx_app.spec import SPLITS

TENTHS = {0: "valid", 1: "test"}  # of the hash; the rest is for training
Group = Callable[[str], str]


def tenth(name: str) -> str:
    """The split of an embedded or published item, by a hash of its name."""
    return TENTHS.get(zlib.crc32(os.fsencode(name)) % 10, "train")


def by_folders(root: Path) -> bool:
    """Whether a folder contains folders for splits: train, and valid or test."""
    return (root / "train").is_dir() and any((root / name).is_dir() for name in SPLITS[1:])


def folder_of(root: Path, split: str) -> tuple[Path, tuple[str, ...]]:
    """Where the files of a split are, and which splits share that folder: all, one, or train and valid.

    Raises:
        DataError: there are folders of splits, but not of this one.
    """
    if not by_folders(root):
        return root, SPLITS
    if split != "test" and not (root / "valid").is_dir():
        return root / "train", SPLITS[:2]
    if not (root / split).is_dir():
        raise DataError(f"{root / split}: no such folder; expected one beside {root / 'train'}")
    return root / split, (split,)


def own(
    root: Path,
    split: str,
    shares: Sequence[float],
    find: Callable[[Path], list[Path]],
    group: Group = lambda name: name,
) -> list[Path]:
    """The files of one split below a user's folder: those of the split's folder, or a share of all.

    Args:
        shares: of train, valid and test.
        find: the files below a folder; raises DataError if there are none.
        group: gives the group (a speaker, a video) of a path; files of a group stay in one split.

    Raises:
        DataError: there are fewer groups than splits.
    """
    base, among = folder_of(root, split)
    paths = find(base)
    groups = [group(path.relative_to(base).as_posix()) for path in paths]
    found = parted(groups, shares, among, base)
    return [path for path, part in zip(paths, found, strict=True) if part == split]


def parted(groups: Sequence[str], shares: Sequence[float], among: Sequence[str], place: Any) -> list[str]:
    """The split of each entry. Groups are ordered by a hash, and each split gets its share of them.

    Args:
        shares: of train, valid and test; those that are not `among` the splits have none.

    Raises:
        DataError: there are fewer groups than splits; names the place.
    """
    order = sorted(set(groups), key=lambda name: hashlib.sha256(os.fsencode(name)).digest())
    if len(order) < len(among):
        raise DataError(
            f"{place}: {len(order)} files (or speakers, users, videos) for {len(among)} splits; expected at "
            "least one for each, or folders train, valid and test"
        )
    whole = sum(share for share, name in zip(shares, SPLITS, strict=True) if name in among)
    found, start = {}, 0
    for i, name in enumerate(reversed(among)):
        later = len(among) - 1 - i  # splits that need one group at least
        wanted = round(len(order) * shares[SPLITS.index(name)] / whole) if later else len(order)
        end = min(start + max(1, wanted), len(order) - later)
        found |= dict.fromkeys(order[start:end], name)
        start = end
    return [found[name] for name in groups]


def within(size: int, split: str, shares: Sequence[float]) -> slice:
    """The part of a single file for a split: training comes first, then validation, then test."""
    ends = [0, round(size * shares[0]), round(size * (shares[0] + shares[1])), size]
    return slice(*ends[SPLITS.index(split) :][:2])
