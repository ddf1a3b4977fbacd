"""Files of torch that are written whole or not at all, each with a digest.

`torch.save` writes a zip archive, and the comment of that archive holds its SHA-256. So a kill cannot
separate a file from its digest, and every program that reads torch's files can read it.
"""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch

from lrnnx_app.data import workers
from lrnnx_app.disk import atomic
from lrnnx_app.errors import RunError

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
        raise unwritten(path, error) from error


def unwritten(path: Path, error: BaseException) -> RunError:
    """What to say of a checkpoint that could not be written."""
    disk = error if isinstance(error, OSError) else error.__context__  # which torch.save wraps
    reason = getattr(disk, "strerror", None) or (str(error).splitlines() or [type(error).__name__])[0]
    return RunError(
        f"{path}: not written ({reason}); earlier checkpoints are whole: make room, then --resume"
    )


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


def read(path: Path) -> dict[str, Any]:
    """The content of a file, on the CPU. Reads only tensors and plain containers.

    Raises:
        RunError: see `verify`.
    """
    verify(path)
    return torch.load(path, map_location="cpu", weights_only=True)


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
