"""Checkpoint files: written whole or not at all, each with a digest; finds the newest good one of a folder.

`torch.save` writes a zip archive, and the comment of that archive holds its SHA-256. So a kill cannot
separate a file from its digest, and every program that reads torch's files can read it.
"""

import hashlib
import operator
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrnnx_app.data import workers
from lrnnx_app.disk import atomic
from lrnnx_app.errors import RunError
from lrnnx_app.runs.folder import LAST
from lrnnx_app.spec import DataSpec

STEP = re.compile(r"step_(\d+)\.ckpt")
MARK = b"sha256:"
COMMENT = len(MARK) + hashlib.sha256().digest_size * 2
END = b"PK\x05\x06"  # starts the last record of a zip archive, which ends with the comment's length
END_SIZE = 22
BLOCK = 1 << 20


def write(content: dict[str, Any], path: Path) -> None:
    """Save under a temporary name, add the digest, flush to the disk, and rename to `path`.

    Raises:
        RunError: the disk is full or cannot be written. An older file at `path` is unchanged.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic.whole(path) as part, part.open("r+b") as file:
            torch.save(content, file)
            _seal(file)
    except (OSError, RuntimeError) as error:
        if workers.gone(error):  # told wherever the process happens to be, here in the midst of writing
            raise
        disk = error if isinstance(error, OSError) else error.__context__  # which torch.save wraps
        reason = getattr(disk, "strerror", None) or str(error).splitlines()[0]
        raise RunError(
            f"{path}: not written ({reason}); earlier checkpoints are whole: make room, then --resume"
        ) from error


def verify(path: Path) -> None:
    """Compare a file with the digest in it.

    Raises:
        RunError: the file is missing, incomplete, changed, or has no digest.
    """
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            file.seek(max(0, size - COMMENT))
            comment = file.read()
            if not comment.startswith(MARK):
                raise RunError(
                    f"{path}: no digest at its end: cut short, or not written by this version of lrnnx; "
                    "expected a checkpoint, restore or retrain it"
                )
            if _digest(file, size - COMMENT) != comment:
                raise RunError(
                    f"{path}: damaged, its content differs from the digest it carries; restore or retrain it"
                )
    except OSError as error:
        raise RunError(f"{path}: not readable ({error.strerror or error})") from error


def _seal(file: Any) -> None:
    size = file.seek(0, os.SEEK_END)
    file.seek(size - END_SIZE)
    assert file.read(4) == END, "torch.save wrote no plain zip archive"
    file.seek(size - 2)
    file.write(COMMENT.to_bytes(2, "little"))
    digest = _digest(file, size)
    file.seek(size)
    file.write(digest)


def _digest(file: Any, size: int) -> bytes:
    total = hashlib.sha256()
    file.seek(0)
    while size > 0 and (block := file.read(min(BLOCK, size))):
        total.update(block)
        size -= len(block)
    return MARK + total.hexdigest().encode()


def read_checkpoint(path: Path) -> dict[str, Any]:
    """A checkpoint's content, with its `spec` as a DataSpec. Reads only tensors and plain containers.

    Raises:
        RunError: the digest is missing or wrong, or the file is no checkpoint.
    """
    verify(path)
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        content["spec"] = DataSpec.read(content["spec"])
        if not all(isinstance(value, Tensor) for value in content["state_dict"].values()):
            raise TypeError("a weight is no tensor")
        epoch, batch = map(operator.index, content.get("position", (0, 0)))
        if min(epoch, batch, operator.index(content.get("global_step", 0))) < 0:
            raise ValueError("a negative position")
    except Exception as error:  # damaged bytes can cause any kind of error in torch.load
        raise RunError(
            f"{path}: not a checkpoint that lrnnx wrote ({type(error).__name__}); "
            "expected one, restore or retrain it"
        ) from error
    return content


def candidates(folder: Path) -> list[Path]:
    """The checkpoints to resume from, newest first, each file once."""
    steps = [path for path in folder.glob("step_*.ckpt") if STEP.fullmatch(path.name)]
    steps.sort(key=step_of, reverse=True)
    last = folder / LAST
    if last.is_file() and not any(path.samefile(last) for path in steps):
        newer = (
            steps and steps[0].stat().st_mtime_ns > last.stat().st_mtime_ns
        )  # a kill came before last.ckpt was renamed
        steps.insert(1 if newer else 0, last)
    return steps


def step_of(path: Path) -> int:
    """The optimizer step in a file's name."""
    found = STEP.fullmatch(path.name)
    return int(found[1]) if found else 0


def newest(
    folder: Path, read: Callable[[Path], dict[str, Any]], say: Callable[[str], None]
) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint that `read` accepts, and its content; None if there are no checkpoints.

    Raises:
        RunError: there are checkpoints, but `read` accepts none.
    """
    problems = []
    for path in candidates(folder):
        try:
            content = read(path)
        except RunError as error:
            problems.append(str(error))
            continue
        for problem in problems:
            say(f"{problem}; going on from {path.name}")
        return path, content
    if problems:
        raise RunError(f"{folder}: no checkpoint in it is good; the newest: {problems[0]}")
    return None
