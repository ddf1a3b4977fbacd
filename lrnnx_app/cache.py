"""What is made once from a user's files and kept on disk: whole or not there, however many processes ask."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows: no locks; two processes may both build, and one result is kept
    fcntl = None

Make = Callable[[Path], None]


def root() -> Path:
    """$LRNNX_CACHE, else lrnnx in $XDG_CACHE_HOME or ~/.cache."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("LRNNX_CACHE") or Path(base) / "lrnnx")


def stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Path, size and time of change of files: facts for `folder` that a changed file changes."""
    return [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]


def folder(kind: str, facts: Any, make: Make) -> Path:
    """The cached folder of these facts, made first if it is not there.

    `make` fills a folder beside it that gets the final name by one rename when all is written: a build that
    fails, is interrupted or killed leaves no folder of that name, and the next one sweeps up its remains.
    One process builds while the others wait; the lock falls with the process that holds it.

    Args:
        kind: the subfolder of the cache, such as "events".
        facts: all that the content depends on; its `repr` is hashed.
        make: writes the content into the folder that it is given.
    """
    home = root() / kind / hashlib.sha256(repr(facts).encode()).hexdigest()[:20]
    if home.is_dir():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / f"{home.name}.lock").open("w") as lock:
        if fcntl is not None:
            fcntl.flock(lock, fcntl.LOCK_EX)
            for remains in home.parent.glob(f"{home.name}.part.*"):
                shutil.rmtree(remains, ignore_errors=True)
        if not home.is_dir():
            part = Path(tempfile.mkdtemp(prefix=f"{home.name}.part.", dir=home.parent))
            try:
                make(part)
                _publish(part, home)
            finally:
                shutil.rmtree(part, ignore_errors=True)
    return home


def _publish(part: Path, home: Path) -> None:
    """Everything to the disk, then the name."""
    for path in part.iterdir():
        with path.open("rb+") as file:
            os.fsync(file.fileno())
    try:
        part.rename(home)
    except OSError:
        if not home.is_dir():  # else another process was first, without locks
            raise
