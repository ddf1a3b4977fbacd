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
from lrnnx_app.ops._build import build
from lrnnx_app.ops._compilers import BuildError

log = logging.getLogger("lrnnx")
_lock = threading.RLock()
_failures: dict[str, str] = {}
_loaded: dict[str, Path] = {}
_reasons: dict[str, str] = {}  # why what is loaded was taken

MARK = b"lrnnx rules: "  # comes before the list of rules that csrc/by_rule.h puts into a library


def first_use(device: str) -> bool:
    """Load the kernels if that was not tried yet. True if this call made them available."""
    return device not in _loaded and load(device)


def without_kernels(
    library: torch.library.Library,
    name: str,
    run: Callable[..., Any],
    devices: Sequence[str] = ("cpu", "cuda"),
) -> None:
    """Let `run` be an operator where none of its kernels is registered.

    On `devices`, which have kernels, that is so until the first call, which builds and loads them, or if they
    cannot be loaded.
    """

    def anywhere(*arguments: Any) -> Any:
        device = next(x.device.type for x in arguments if isinstance(x, torch.Tensor))
        loaded = device in devices and first_use(device)
        return (getattr(torch.ops.lrnnx, name) if loaded else run)(*arguments)

    library.impl(name, anywhere, "CompositeExplicitAutograd")


def load(device: str) -> bool:
    """Load the kernels for "cpu" or "cuda", and build them first if necessary; False if that fails."""
    if device in _loaded:
        return True
    if device in _failures or device not in wanted():
        return False
    with _lock:
        if device not in _loaded and device not in _failures:
            try:
                _loaded[device], _reasons[device] = _load(device)
            except (BuildError, OSError) as error:
                _failures[device] = str(error)
                log.warning(
                    "%s kernels are not available, so operators run on slower torch code: %s",
                    device.upper(),
                    error,
                )
    return device in _loaded


def _load(device: str) -> tuple[Path, str]:
    """Load what came in the wheel if it fits, else a build; returns the library, and why it was taken."""
    library, why = _inside.library(device)
    if library:
        try:
            return _opened(library), why
        except (BuildError, OSError) as error:
            why = f"{library} does not load: {error}"
    try:
        return _opened(build(device)), f"built here{why and ', as '}{why}"
    except (BuildError, OSError) as error:
        raise BuildError(f"{error}{why and '; '}{why}") from error


def _opened(library: Path) -> Path:
    check_rules(library)
    torch.ops.load_library(library)
    return library


def check_rules(library: Path) -> None:
    """Refuse a library whose rules of discretization have other numbers than in Python, before it is loaded.

    Raises:
        BuildError: the library lists other rules than `rules.RULES`.
    """
    with open(library, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as text:
        start = text.find(MARK) + len(MARK)
        built = text[start : text.find(b"\0", start)].decode().strip(", ") if start >= len(MARK) else "none"
    if built != rules.kernels():
        raise BuildError(
            f"its rules are {built}, those of lrnnx_app/ops/rules.py {rules.kernels()}; "
            "make csrc/rules.h list the same"
        )


def wanted() -> tuple[str, ...]:
    """The devices that LRNNX_BUILD allows kernels for."""
    choices = {"off": (), "cpu": ("cpu",), "cuda": ("cpu", "cuda")}
    return choices.get(os.environ.get("LRNNX_BUILD", "cuda"), ("cpu", "cuda"))


def loaded(device: str) -> Path:
    """The library that is loaded."""
    return _loaded[device]


def status(device: str) -> str:
    """One line on the kernels of a device."""
    if device in _loaded:
        return f"loaded from {_loaded[device]}, {_reasons[device]}"
    if device not in wanted():
        return f"switched off by LRNNX_BUILD={os.environ['LRNNX_BUILD']}"
    return _failures.get(device, "not needed so far")
