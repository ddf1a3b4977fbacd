"""A run folder: the names of all that is in it, and the lock that a training holds while it writes there."""

import errno
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from lrnnx_app.console.terminal import as_json
from lrnnx_app.disk import atomic
from lrnnx_app.errors import RunError

try:
    import fcntl
except ImportError:  # Windows: nothing is locked
    fcntl = None

RUNS = "runs"  # where run folders are made, as runs/<recipe>/<time>
RECIPE = "recipe.yaml"  # resolved: all that `infer`, `export` and `evaluate` need beside a checkpoint
CHECKPOINTS = "checkpoints"
BEST = "best.ckpt"  # there, by the validation's metric
LAST = "last.ckpt"  # there, the newest of those to resume from
METRICS = "metrics.csv"  # Lightning's logger chooses this name
EARLIER = "metrics.earlier.csv"  # of the parts of a run before the last resume
SUMMARY = "summary.json"  # present: the training is finished
PLOTS = "plots"
NONFINITE = "trouble.json"  # why a training without finite numbers ended
COMPARISON, COMPARED = "comparison.json", "comparison.png"  # of a folder that holds several runs
LOCK = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)
_ours: set[Path] = set()  # locked by this process, in which the kernel's locks do not see each other


def refuse_full(folder: Path) -> None:
    """Raise RunError if a file is there, or a folder that holds more than the lock of a dead process."""
    if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
        raise RunError(f"{folder}: exists and is not an empty folder; name another with -o, or --resume it")


@contextmanager
def new(name: str, out: Path | None) -> Iterator[Path]:
    """A new and empty folder, locked: `out`, or runs/<name>/<time>, with a number if that is taken.

    It is removed if the block fails before it writes anything.

    Raises:
        RunError: `out` holds files, or another training has locked it.
    """
    if out is None:
        folder = _numbered(Path(RUNS) / name, datetime.now().strftime("%Y-%m-%d_%H-%M-%S"))
    else:
        refuse_full(out)
        out.mkdir(parents=True, exist_ok=True)
        folder = out
    try:
        with locked(folder):
            refuse_full(folder)  # another process may have come and gone
            yield folder
    except BaseException:
        with suppress(OSError):
            folder.rmdir()  # does nothing unless it is empty
        raise


def _numbered(parent: Path, name: str) -> Path:
    """A folder of this name or of this name with a number, that no other process has made."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = parent / (name if number == 1 else f"{name}_{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("numbers do not end")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the kernel releases it when the process ends, however it ends.

    The lock belongs to this process alone: the processes that it forks to read data do not prolong it. File
    systems without locks are taken as they are.

    Raises:
        RunError: another process holds it; says which one. Or its name is one that TensorBoard cannot write.
    """
    try:
        str(folder).encode()
    except UnicodeEncodeError as error:
        raise RunError(f"{folder}: no UTF-8, so TensorBoard cannot write there; rename the folder") from error
    path = folder / LOCK
    if folder.resolve() in _ours:
        raise RunError(f"{folder}: this process trains there already")
    handle = _lock(path)
    _ours.add(home := folder.resolve())
    try:
        yield
    finally:
        _ours.discard(home)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        os.close(handle)


def _lock(path: Path) -> int:
    """An open file, locked if the file system can, with this process's name in it."""
    while True:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o644)
        try:
            if fcntl is not None:
                fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in HELD:
                holder = os.read(handle, 200).decode(errors="replace")
                holder = "".join(sign for sign in holder if sign.isprintable()) or "another process"
                os.close(handle)
                raise RunError(
                    f"{path.parent}: {holder} trains there; wait until it ends, or stop it"
                ) from error
        if fcntl is None or _is(handle, path):  # else its holder removed it in the meantime
            break
        os.close(handle)
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return handle


def _is(handle: int, path: Path) -> bool:
    """Whether an open file is the one of this path."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except OSError:
        return False


def write_whole(path: Path, text: str) -> None:
    """Write a file in one move.

    Raises:
        RunError: the disk is full or refuses; whatever stood at `path` is as it was.
    """
    try:
        atomic.write(path, text)
    except OSError as error:
        raise RunError(f"{path}: not written ({error.strerror}); what stood there is as it was") from error


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write summary.json in one move; a metric that is not finite is null."""
    write_whole(folder / SUMMARY, as_json(summary, 2) + "\n")
