"""A run folder: the names of its files, and the lock that a training holds while it writes there."""

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

RUNS = "runs"  # parent of run folders, which are runs/<recipe>/<time>
RECIPE = "recipe.yaml"  # resolved; `infer`, `export` and `evaluate` need only this and a checkpoint
CHECKPOINTS = "checkpoints"
BEST = "best.ckpt"  # in CHECKPOINTS: the best one by the validation's metric
LAST = "last.ckpt"  # in CHECKPOINTS: the newest one to resume from
WEIGHTS = "model.safetensors"  # in place of CHECKPOINTS, of an imported model
METRICS = "metrics.csv"  # Lightning's logger chooses this name
EARLIER = "metrics.earlier.csv"  # metrics from before the last resume
SUMMARY = "summary.json"  # written when a training has finished
TAKEN = "init_from.json"  # which weights of another model a training began with
PLOTS = "plots"
NONFINITE = "trouble.json"  # written when a training ends because numbers were not finite
COMPARISON, COMPARED = "comparison.json", "comparison.png"  # in a folder that holds several runs
LOCK = ".lock"
HELD = (errno.EACCES, errno.EAGAIN)
_ours: set[Path] = set()  # folders locked by this process; the kernel does not stop one process locking twice


def refuse_full(folder: Path) -> None:
    """Raise RunError if a file is there, or a folder that holds more than the lock of a dead process."""
    if folder.exists() and (not folder.is_dir() or any(path.name != LOCK for path in folder.iterdir())):
        raise RunError(f"{folder}: exists and is not an empty folder; name another with -o, or --resume it")


@contextmanager
def new(name: str, out: Path | None) -> Iterator[Path]:
    """A new, empty and locked folder: `out`, or runs/<name>/<time>, with a number added if that exists.

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
            refuse_full(folder)  # another process may have used it meanwhile
            yield folder
    except BaseException:
        with suppress(OSError):
            folder.rmdir()  # does nothing unless it is empty
        raise


def _numbered(parent: Path, name: str) -> Path:
    """Make a new folder of this name, with a number added if another process has made one."""
    parent.mkdir(parents=True, exist_ok=True)
    for number in count(1):
        folder = parent / (name if number == 1 else f"{name}_{number}")
        with suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise AssertionError("numbers do not end")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder; the kernel releases it when this process ends, however it ends.

    Data workers that this process forks do not keep the lock. On a file system without locks nothing is
    locked.

    Raises:
        RunError: another process holds the lock (the message says which one), or TensorBoard cannot write to
            a folder of this name.
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
    """The open lock file, with this process's number in it, locked if the file system can do so."""
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
        if fcntl is None or _is(handle, path):  # else the last holder removed it meanwhile
            break
        os.close(handle)
    os.ftruncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return handle


def _is(handle: int, path: Path) -> bool:
    """Whether an open file is the file at this path."""
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except OSError:
        return False


def write_whole(path: Path, text: str) -> None:
    """Write a file whole or not at all.

    Raises:
        RunError: the disk is full or cannot be written. An older file at `path` is unchanged.
    """
    try:
        atomic.write(path, text)
    except OSError as error:
        raise RunError(f"{path}: not written ({error.strerror}); what stood there is as it was") from error


def write_summary(folder: Path, summary: dict[str, Any]) -> None:
    """Write summary.json whole or not at all; a metric that is not finite becomes null."""
    write_whole(folder / SUMMARY, as_json(summary, 2) + "\n")
