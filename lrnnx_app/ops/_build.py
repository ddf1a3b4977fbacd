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
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path

import torch

from lrnnx_app.disk import atomic
from lrnnx_app.disk.cache import made, root
from lrnnx_app.errors import CacheError
from lrnnx_app.ops._compilers import BuildError, Commands, commands
from lrnnx_app.ops._workers import CommandError, Progress, Workers

SUFFIXES = {"cpu": ".cpp", "cuda": ".cu"}
INCLUDE = re.compile(r'^#include "(.+)"', re.MULTILINE)


def libraries(device: str) -> tuple[str, ...]:
    """The names of all libraries of a device, which are those of operators."""
    return tuple(sorted(path.stem for path in (source_root() / device).glob(f"*{SUFFIXES[device]}")))


def sources(device: str, name: str) -> list[Path]:
    """What is compiled for a library: the file of its name, and its folder in instances/."""
    place, suffix = source_root() / device, SUFFIXES[device]
    return [place / f"{name}{suffix}", *sorted((place / "instances" / name).glob(f"*{suffix}"))]


def build(device: str, names: Sequence[str], target: str = "") -> dict[str, Path | BuildError]:
    """Libraries of a device, each from the cache or built now; or the error why there is none.

    All files that are to be compiled are compiled side by side. For `target` see `_compilers.commands`.
    """
    found: dict[str, Path | BuildError] = {}
    try:
        use = commands(device, target)
    except BuildError as error:
        return dict.fromkeys(names, error)
    of, where = f" of {names[0]}" if len(names) == 1 else "", f" for {target}" if target else ""
    progress = Progress(f"{device.upper()} kernels{of}{where}")
    with Workers() as workers:

        def one(name: str) -> None:
            try:
                found[name] = _library(device, name, use, workers, progress)
            except BuildError as error:
                found[name] = error
            except (CacheError, OSError) as error:
                found[name] = BuildError(str(error))

        workers.watch([threading.Thread(target=one, args=[name], daemon=True) for name in names], progress)
    failed = any(isinstance(each, BuildError) for each in found.values())
    progress.finish("failed" if failed else "done")
    return found


def _library(device: str, name: str, use: Commands, workers: Workers, progress: Progress) -> Path:
    """The library of this name. Raises BuildError, CacheError, or OSError if the cache cannot be written."""
    key = f"kernels/{device}-{name}-{_key(device, name, use)}"
    kept, report = root() / f"{key}.parts", root() / f"{key}.log"

    def compiled(source: Path) -> Path:
        found = True

        def make(part: Path) -> None:
            nonlocal found
            found = False
            workers.run([*use.compile, "-c", str(source), "-o", str(part / "o.o")], part / "scratch")

        home = made(root(), f"{key}.parts/{source.stem}", make)
        progress.done(found)
        return home / "o.o"

    def make(part: Path) -> None:
        paths = sources(device, name)
        progress.expect(len(paths) + 1)
        parts = [workers.pool.submit(compiled, path) for path in paths]
        try:
            objects = [str(path) for path in _results(parts)]
            workers.run(
                [*use.link, *objects, "-o", str(part / f"{name}.so"), *use.libraries], part / "scratch"
            )
        except CommandError as error:
            if not workers.ended:
                atomic.write(report, str(error))
            raise BuildError(
                f"the compiler failed, see {report}; check it with `lrnnx doctor --build`"
            ) from error
        progress.done()
        shutil.rmtree(kept)

    return made(root(), key, make) / f"{name}.so"


def _results(parts: Sequence[Future[Path]]) -> Iterator[Path]:
    """Results in order. If one fails, those that have not started are given up."""
    try:
        for part in parts:
            yield part.result()
    finally:
        for part in parts:
            part.cancel()


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
