"""Loads the kernels of csrc/ at the first use of an operator: those that came in the wheel, else a build.

Kernels that cannot be had give a warning, and torch code is used instead. `lrnnx docs kernels` lists the
environment variables that choose what is built, for which GPUs and where.
"""

import logging
import mmap
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from lrnnx_app.ops import _inside, rules
from lrnnx_app.ops._build import build, by_rule, libraries
from lrnnx_app.ops._compilers import BuildError

log = logging.getLogger("lrnnx")
_lock = threading.RLock()
_loaded: dict[tuple[str, str], Path] = {}  # by device and name
_failures: dict[tuple[str, str], str] = {}
_words: dict[tuple[str, str], str] = {}  # where those that are there come from, and why

MARK = b"lrnnx rules: "  # comes before the list of rules that csrc/by_rule.h puts into a library


def first_use(device: str, name: str) -> bool:
    """Load a library if that was not tried yet. True if this call made its kernels available."""
    return (device, name) not in _loaded and load(device, name)


def without_kernels(
    library: torch.library.Library,
    name: str,
    run: Callable[..., Any],
    devices: Sequence[str] = ("cpu", "cuda"),
) -> None:
    """Let `run` be an operator where none of its kernels is registered.

    On `devices`, which have kernels, that is so until the first call, which builds and loads them, or if they
    cannot be loaded. An operator and its backward pass are in the library of the operator's name.
    """

    def anywhere(*arguments: Any) -> Any:
        device = next(x.device.type for x in arguments if isinstance(x, torch.Tensor))
        loaded = device in devices and first_use(device, name.removesuffix("_backward"))
        return (getattr(torch.ops.lrnnx, name) if loaded else run)(*arguments)

    library.impl(name, anywhere, "CompositeExplicitAutograd")


def load(device: str, *names: str) -> bool:
    """Load libraries of "cpu" or "cuda", all if none is named, and build them first if necessary.

    False if one cannot be had.
    """
    wished = [(device, name) for name in names or libraries(device)]
    if all(each in _loaded for each in wished):
        return True
    if device not in wanted():
        return False
    with _lock:
        new = [name for each, name in wished if (each, name) not in _loaded and (each, name) not in _failures]
        if new:
            _load(device, new)
    return all(each in _loaded for each in wished)


def prepare(device: str) -> bool:
    """Build all libraries of a device and load none, as where there is no GPU. False if one fails."""
    with _lock:
        for name, library in build(device, libraries(device)).items():
            if isinstance(library, BuildError):
                _failures[device, name] = str(library)
            else:
                _words[device, name] = f"built in {library.parents[1]}"
    return not any((device, name) in _failures for name in libraries(device))


def _load(device: str, names: Sequence[str]) -> None:
    """Load what came in the wheel if it fits, else builds."""
    left: dict[str, str] = {}  # why what came was not taken
    for name in names:
        library, why = _inside.library(device, name)
        try:
            if library:
                _open(device, name, library, f"loaded from {library.parent}, {why}")
            else:
                left[name] = why
        except (BuildError, OSError) as error:
            left[name] = f"{library} does not load: {error}"
    for name, library in (build(device, tuple(left)) if left else {}).items():
        why = left[name]
        try:
            if isinstance(library, BuildError):
                raise library
            as_why = why and f", as {why}"
            _open(device, name, library, f"loaded from {library.parents[1]}, built here{as_why}")
        except (BuildError, OSError) as error:
            _fail(device, name, f"{error}{why and '; '}{why}")


def _open(device: str, name: str, library: Path, words: str) -> None:
    check_rules(library, by_rule(device, name))
    torch.ops.load_library(library)
    _loaded[device, name], _words[device, name] = library, words


def _fail(device: str, name: str, why: str) -> None:
    """Note why there are no kernels, and warn unless that was said before."""
    if why not in _failures.values():
        log.warning(
            "%s kernels of %s are not available, so it runs on slower torch code: %s",
            device.upper(),
            name,
            why,
        )
    _failures[device, name] = why


def check_rules(library: Path, needed: bool) -> None:
    """Refuse a library whose rules of discretization have other numbers than in Python, before it is loaded.

    One that has kernels by rule is `needed` to list them.

    Raises:
        BuildError: the library lists other rules than `rules.RULES`.
    """
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        start = text.find(MARK) + len(MARK)
        built = text[start : text.find(b"\0", start)].decode().strip(", ") if start >= len(MARK) else "none"
    if built != rules.kernels() and (needed or built != "none"):
        raise BuildError(
            f"its rules are {built}, those of lrnnx_app/ops/rules.py {rules.kernels()}; "
            "make csrc/rules.h list the same"
        )


def wanted() -> tuple[str, ...]:
    """The devices that LRNNX_BUILD allows kernels for."""
    choices = {"off": (), "cpu": ("cpu",), "cuda": ("cpu", "cuda")}
    return choices.get(os.environ.get("LRNNX_BUILD", "cuda"), ("cpu", "cuda"))


def loaded(device: str, name: str) -> Path:
    """A library that is loaded."""
    return _loaded[device, name]


def status(device: str) -> str:
    """One line on the kernels of a device: where they are loaded from, and why some are not."""
    if device not in wanted():
        return f"switched off by LRNNX_BUILD={os.environ['LRNNX_BUILD']}"
    said: dict[str, list[str]] = {}
    for name in libraries(device):
        at = (device, name)
        said.setdefault(_failures.get(at) or _words.get(at, "not needed so far"), []).append(name)
    if len(said) == 1:
        return next(iter(said))
    return "; ".join(f"{', '.join(names)}: {words}" for words, names in said.items())
