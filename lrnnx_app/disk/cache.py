"""The user's cache: folders that are made once and kept on disk, also if several processes ask at once.

Each folder has a seal: the size of each of its files, and a digest of the small ones. A folder that does not
fit its seal, as after a power cut, is made again. A folder that another user owns or may write to is refused.
"""

import contextlib
import hashlib
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from lrnnx_app.disk import atomic
from lrnnx_app.errors import CacheError

try:
    import fcntl
except ImportError:  # Windows: no locks; two processes may both build, and one result is kept
    fcntl = None

Make = Callable[[Path], None]
SEAL = "seal.json"
DIGESTED = 1 << 25  # bytes; the seal has a digest of files up to this size, of larger ones only the size
ROOM = "building-"  # start of the name of a folder in which another is being made
OTHERS = stat.S_IWGRP | stat.S_IWOTH


def root() -> Path:
    """$LRNNX_CACHE, or lrnnx in $XDG_CACHE_HOME or ~/.cache; without a home, a temporary folder."""
    if named := os.environ.get("LRNNX_CACHE"):
        return Path(named)
    with contextlib.suppress(RuntimeError):  # the system does not know the user's home
        usual = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lrnnx")
        there = next(folder for folder in (usual, *usual.parents) if folder.exists())
        if there == usual or os.access(there, os.W_OK | os.X_OK):
            return usual
    return Path(tempfile.gettempdir(), f"lrnnx-{_user()}")


def stamps(paths: Iterable[Path]) -> list[tuple[str, int, int]]:
    """Path, size and time of change of files, as facts for `folder`: they differ if a file has changed."""
    return [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]


def folder(kind: str, facts: Any, make: Make) -> Path:
    """The cached folder for these facts; see `made`.

    Args:
        kind: the subfolder of the cache, such as "events".
        facts: everything on which the content depends; its `repr` is hashed.
        make: a function that writes the content into a given folder.
    """
    return made(root(), f"{kind}/{hashlib.sha256(repr(facts).encode()).hexdigest()[:20]}", make)


def made(top: Path, name: str, make: Make) -> Path:
    """The folder `name` of the cache `top`. It is made first if it is missing or does not fit its seal.

    `make` fills a temporary folder, which is renamed to its final name when everything is on the disk. So a
    build that fails or is killed leaves no folder of that name, and the next build removes its remains. One
    process builds while the others wait for its lock, which ends with that process.

    Raises:
        CacheError: another user owns or may write to the folder, a file in it, or a folder above it.
        OSError: the cache cannot be written.
    """
    top = _own(top)
    home = top / name
    for place in reversed(home.relative_to(top).parents[:-1]):
        _own(top / place)
    if _sound(home):
        return home
    with _locked(home.with_name(f"{home.name}.lock")):
        _sweep(home.parent)
        if not _sound(home):
            if home.exists():
                shutil.rmtree(home)
            with _room(home.parent) as room:
                part = room / home.name
                part.mkdir(0o700)
                make(part)
                _seal(part)
                atomic.finish(part, home)
    return home


def distrust(path: Path) -> str:
    """Why another user may have changed a file or folder; "" if only this user or root can write to it."""
    if os.name != "posix":
        return ""
    facts = path.lstat()
    if facts.st_uid not in (0, _user()):
        return f"belongs to user {facts.st_uid}"
    return "may be written by others" if facts.st_mode & OTHERS and not stat.S_ISLNK(facts.st_mode) else ""


def _user() -> int:
    return os.geteuid() if os.name == "posix" else 0


def _own(place: Path) -> Path:
    """A folder of the cache itself, made if it is missing, with links resolved."""
    if not place.is_dir():
        place.mkdir(0o700, parents=True, exist_ok=True)
    _trust(place)  # also if it is a link, which another user could change
    place = place.resolve()
    _trust(place)
    return place


def _trust(path: Path) -> None:
    if reason := distrust(path):
        raise CacheError(
            f"{path}: {reason}, so nothing is read from it; remove it, or take others' right to write "
            "(chmod go-w), or set LRNNX_CACHE to a folder of your own"
        )


def _sound(home: Path) -> bool:
    """Whether a folder exists and fits its seal."""
    if not home.is_dir():
        return False
    for path in (home, *home.iterdir()):
        _trust(path)
    try:
        sealed = json.loads((home / SEAL).read_text(encoding="utf-8"))
        return sealed == {path.name: _facts(path) for path in home.iterdir() if path.name != SEAL}
    except (OSError, ValueError, RecursionError):
        return False


def _facts(path: Path) -> list[Any]:
    """The size of a file, and its digest if it is small."""
    size = path.stat().st_size
    if size > DIGESTED:
        return [size, ""]
    with path.open("rb") as file:
        return [size, hashlib.file_digest(file, "sha256").hexdigest()]


def _seal(part: Path) -> None:
    """Write the seal, and remove the right of other users to write, which some umasks give."""
    content = json.dumps({path.name: _facts(path) for path in part.iterdir()})
    (part / SEAL).write_text(content, encoding="utf-8")
    for path in part.iterdir():
        path.chmod(stat.S_IMODE(path.stat().st_mode) & ~OTHERS)


@contextlib.contextmanager
def _room(place: Path) -> Iterator[Path]:
    """A new folder to build in, locked so that `_sweep` does not remove it."""
    with contextlib.ExitStack() as stack:
        room = Path(tempfile.mkdtemp(prefix=ROOM, dir=place))
        with contextlib.suppress(FileNotFoundError):
            stack.enter_context(_locked(room, os.O_RDONLY))
        if not room.exists():  # another process removed it before it was locked
            room = stack.enter_context(_room(place))
        stack.callback(shutil.rmtree, room, ignore_errors=True)
        yield room


def _sweep(place: Path) -> None:
    """Remove the remains of killed builds: folders to build in that no process has locked."""
    if fcntl is None:
        return
    for room in place.glob(f"{ROOM}*"):
        with contextlib.suppress(OSError), _locked(room, os.O_RDONLY, wait=False):
            shutil.rmtree(room, ignore_errors=True)


@contextlib.contextmanager
def _locked(path: Path, kind: int = os.O_RDWR | os.O_CREAT, wait: bool = True) -> Iterator[None]:
    """Hold the lock of a file, which is made if it is missing, or of a folder, opened with O_RDONLY.

    Without `wait`, BlockingIOError if another process holds it.
    """
    if fcntl is None:
        yield
        return
    handle = os.open(path, kind | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(handle)
