"""Builds csrc/ into the user's cache: a library for each operator of a device.

A library belongs to its sources and all that they include, to torch, compiler, processor and GPU
architectures; if one changes, it is made again. If several processes start at once, one builds while the
others wait at a file lock. A build that is ended keeps what it has compiled, and the next one goes on.
A library that another user owns or may write to is refused.
"""

import contextlib
import functools
import hashlib
import platform
import re
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from lrnnx_app.disk import atomic
from lrnnx_app.disk.cache import made, root
from lrnnx_app.errors import CacheError
from lrnnx_app.ops._compilers import BuildError, Commands, commands
from lrnnx_app.ops._ninja import Edge, Progress, run

SUFFIXES = {"cpu": ".cpp", "cuda": ".cu"}
KEPT = (
    7 * 24 * 3600
)  # seconds for which the objects of an ended build are kept, if no build goes on with them
INCLUDE = re.compile(r'^#include "(.+)"', re.MULTILINE)


def libraries(device: str) -> tuple[str, ...]:
    """The names of all libraries of a device, which are those of operators."""
    return tuple(sorted(path.stem for path in (source_root() / device).glob(f"*{SUFFIXES[device]}")))


def sources(device: str, name: str) -> list[Path]:
    """What is compiled for a library: the file of its name, and its folder in instances/."""
    place, suffix = source_root() / device, SUFFIXES[device]
    return [place / f"{name}{suffix}", *sorted((place / "instances" / name).glob(f"*{suffix}"))]


def by_rule(device: str, name: str) -> bool:
    """Whether a library holds a kernel for each rule of discretization."""
    return any(path.name == "by_rule.h" for path in _with_included(sources(device, name)))


def build(device: str, names: Sequence[str], target: str = "") -> dict[str, Path | BuildError]:
    """Libraries of a device, each from the cache or built now; or the error why there is none.

    All files that are to be compiled are compiled side by side. For `target` see `_compilers.commands`.
    """
    try:
        use = commands(device, target)
    except BuildError as error:
        return dict.fromkeys(names, error)
    of, where = f" of {names[0]}" if len(names) == 1 else "", f" for {target}" if target else ""
    found: dict[str, Path | BuildError] = {}
    progress = Progress(f"{device.upper()} kernels{of}{where}")
    try:
        # in one order, so that two processes do not wait for each other
        _made([_Library(device, name, use) for name in sorted(names)], [], found, progress)
    except BaseException:
        progress.finish("stopped, and goes on from here at the next start,")
        raise
    failed = any(isinstance(each, BuildError) for each in found.values())
    progress.finish("failed" if failed else "done")
    return found


class _Library:
    """A library to be built."""

    def __init__(self, device: str, name: str, use: Commands) -> None:
        self.name, self.use, self.sources = name, use, sources(device, name)
        self.key = f"kernels/{device}-{name}-{_key(device, name, use)}"
        self.kept, self.report = root() / f"{self.key}.parts", root() / f"{self.key}.log"
        self.part = Path()  # the folder in which it is made
        self.why = f"the compiler failed, see {self.report}; check it with `lrnnx doctor --build`"

    @property
    def path(self) -> Path:
        return self.part / f"{self.name}.so"

    def edges(self, progress: Progress) -> Iterator[Edge]:
        """What is to be made; objects that an ended build has kept are there already."""
        self.kept.mkdir(0o700, exist_ok=True)
        objects = [self.kept / f"{source.stem}.o" for source in self.sources]
        progress.expect(len(objects) + 1)
        for source, path in zip(self.sources, objects, strict=True):
            if path.exists() and path.stat().st_size:
                progress.done(found=True)
            else:
                yield path, [source], [*self.use.compile, "-c", str(source), "-o", "{}"]
        yield self.path, objects, [*self.use.link, *map(str, objects), "-o", "{}", *self.use.libraries]


def _made(
    left: list[_Library], begun: list[_Library], found: dict[str, Path | BuildError], progress: Progress
) -> None:
    """Take the libraries `left` from the cache, or begin them; then make all that are begun, in one run.

    Each is begun inside `made` of the one before, so that the locks of all are held.
    """
    if not left:
        if begun:
            scratch = begun[0].part / "scratch"
            scratch.mkdir()
            try:
                said = run([edge for each in begun for edge in each.edges(progress)], scratch, progress)
            except OSError as error:
                for each in begun:
                    each.why = str(error)
            else:
                for each in begun:
                    if not each.path.exists():
                        atomic.write(each.report, said)
            shutil.rmtree(scratch)
        return
    first, *rest = left

    def make(part: Path) -> None:
        first.part = part
        _made(rest, [*begun, first], found, progress)
        if not first.path.exists():
            raise BuildError(first.why)
        shutil.rmtree(first.kept)
        for other in first.kept.parent.glob("*.parts"):
            if time.time() - other.stat().st_mtime > KEPT:
                shutil.rmtree(other, ignore_errors=True)

    try:
        found[first.name] = made(root(), first.key, make) / first.path.name
    except (BuildError, CacheError, OSError) as error:
        found[first.name] = error if isinstance(error, BuildError) else BuildError(str(error))
    if first.part == Path():
        _made(rest, begun, found, progress)


def source_root() -> Path:
    """csrc inside the installed package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    return next(
        (path for path in (package / "csrc", package.parent / "csrc") if path.is_dir()), package / "csrc"
    )


def _with_included(paths: Sequence[Path]) -> list[Path]:
    """Sources, and every file of csrc that they include, directly or not."""
    seen: dict[Path, None] = {}
    left = [path.resolve() for path in paths]
    while left:
        path = left.pop()
        if path not in seen:
            seen[path] = None
            names = INCLUDE.findall(path.read_text(encoding="utf-8"))
            left += [(path.parent / name).resolve() for name in names]
    return sorted(seen)


def _key(device: str, name: str, use: Commands) -> str:
    used = processor() if device == "cpu" else ""
    version = ".".join(torch.__version__.split(".")[:2])
    digest = hashlib.sha256()
    for text in (repr(use), version, torch.version.cuda, platform.machine(), used):
        digest.update(f"{text}\0".encode())
    top = source_root().resolve()
    for path in _with_included(sources(device, name)):
        digest.update(f"{path.relative_to(top)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


@functools.cache
def processor() -> str:
    """The processor's instruction sets. -march=native uses them, and machines may share a home folder."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return platform.processor()
