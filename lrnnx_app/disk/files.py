"""Lists the files of a user's folder, without those that file managers and archive programs leave there."""

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from lrnnx_app.console.terminal import say
from lrnnx_app.errors import DataError

LEFTOVERS = ("__macosx", "thumbs.db", "desktop.ini")  # in lower case; names with a leading dot are others


def leftover(name: str) -> bool:
    """Whether a name is one of a file or folder that a program left: ._a.wav, .DS_Store, __MACOSX."""
    return name.startswith(".") or name.lower() in LEFTOVERS


def below(folder: Path, suffixes: Sequence[str] | None = None) -> list[Path]:
    """The files below a folder that end in one of `suffixes` (lower case; all if None), sorted.

    Leftovers are left out; a line on standard error says so if one has a suffix that counts.

    Links to folders are followed, except links to a folder that contains them.

    Raises:
        DataError: a folder is not readable, or can be reached in two ways, so that its files would count
            twice.
    """
    wanted = tuple(suffixes or ("",))
    counted = [path for path in _walked(folder) if path.name.lower().endswith(wanted)]
    left = [path for path in counted if leftover(path.name)]
    if left:
        _say(f"{folder}: left out {len(left)} hidden or system files, such as {min(left).name}")
    kept = [path for path in counted if not leftover(path.name)]
    for path in kept:
        _leads_somewhere(path)
    return sorted(path for path in kept if path.is_file())


def folders_in(folder: Path) -> list[Path]:
    """The folders in a folder, sorted, without leftovers; links to folders count.

    Raises:
        DataError: the folder is not readable, or a link in it leads nowhere or to a folder that contains it.
    """
    found = [path for path in _entries(folder) if not leftover(path.name)]
    here = folder.resolve()
    above = {_identity(place) for place in (here, *here.parents)}
    for path in found:
        _leads_somewhere(path)
        if path.is_dir() and _identity(path) in above:
            raise DataError(f"{path}: leads back to a folder that holds it; remove the link")
    return [path for path in found if path.is_dir()]


def _walked(root: Path) -> Iterator[Path]:
    """All files below a folder; links to folders are followed."""
    here = root.resolve()
    known = {_identity(here): root}

    def walk(folder: Path, above: frozenset[tuple[int, int]]) -> Iterator[Path]:
        for path in _entries(folder):
            if not path.is_dir():
                yield path
            elif not leftover(path.name) and (identity := _identity(path)) not in above:
                if identity in known:
                    raise DataError(
                        f"{path}: is {known[identity]} once more, so its files would count twice; "
                        "expected one way to it: remove the link"
                    )
                known[identity] = path
                yield from walk(path, above | {identity})

    return walk(root, frozenset(_identity(folder) for folder in (here, *here.parents)))


def _leads_somewhere(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise DataError(f"{path}: is a link to nothing; remove it, or bring back what it leads to")


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"{folder}: not readable ({error.strerror}); expected a readable folder (chmod u+rx)"
        ) from error


def _identity(path: Path) -> tuple[int, int]:
    facts = path.stat()
    return facts.st_dev, facts.st_ino


@cache
def _say(line: str) -> None:
    """Print a line once in a process, although a folder is listed for every split."""
    say(line, aside=True)
