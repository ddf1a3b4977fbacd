"""Plugins: entries from other installed packages, by entry points, and from .py files named by --plugin.

Importing a plugin runs its code. A package is trusted since the user installed it, and a file since the user
named it in this command. A file that only a recipe or a run folder names is never imported.
"""

import hashlib
import importlib.util
import sys
from functools import cache
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from pathlib import Path
from types import ModuleType
from typing import Any

from lrnnx_app.errors import UserError

GROUPS = ("layers", "models", "tasks", "data", "rules", "recipes", "formats")
_files: dict[str, tuple[Path, ModuleType]] = {}  # files of this command, by their name without .py


def load(path: Path) -> None:
    """Run a file once; its entries then have the name of the file.

    Raises:
        UserError: the file is missing, its name cannot be an entry's, or it cannot be run.
    """
    name = path.stem
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--plugin {path}: expected an existing .py file")
    if not name.isidentifier() or name.startswith("_"):
        raise UserError(f"--plugin {path}: its entries would be called '{name}'; expected a plain name")
    known = _files.get(name)
    if known is not None:
        if known[0] == path.resolve():
            return
        raise UserError(f"--plugin {path}: {known[0]} has that name as well; rename one of them")
    module_name = f"lrnnx_plugin_{name}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:  # whatever a stranger's code raises
        del sys.modules[module_name]
        raise UserError(f"--plugin {path}: cannot be run ({_reason(error)})") from error
    _files[name] = path.resolve(), module


def forget() -> None:
    """Forget all loaded files and installed entries, as at the start of a command."""
    for name in _files:
        sys.modules.pop(f"lrnnx_plugin_{name}", None)
    _files.clear()
    installed.cache_clear()


@cache
def installed(group: str) -> dict[str, EntryPoint]:
    """The entries of installed packages by name; `group` is one of GROUPS. None of them is imported."""
    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=f"lrnnx.{group}"):
        if entry.name in found and origin_of(entry) != origin_of(found[entry.name]):
            raise UserError(
                f"lrnnx.{group}: {origin_of(found[entry.name])} and {origin_of(entry)} both have an entry "
                f"'{entry.name}'; uninstall one of them"
            )
        if entry.name.isidentifier():
            found[entry.name] = entry
    return found


def imported(entry: EntryPoint) -> Any:
    """Import an entry point, and return what it names.

    Raises:
        UserError: it cannot be imported.
    """
    try:
        return entry.load()
    except Exception as error:  # whatever a stranger's code raises
        raise UserError(
            f"{entry.name}: cannot be imported from the package {origin_of(entry)} ({_reason(error)}); "
            "mend or uninstall it"
        ) from error


def origin_of(entry: EntryPoint) -> str:
    """The name of the package that an entry point belongs to."""
    return entry.dist.name if entry.dist is not None else entry.module.partition(".")[0]


def files() -> dict[str, ModuleType]:
    """Name -> module of each file that is loaded."""
    return {name: module for name, (_, module) in _files.items()}


def words() -> list[str]:
    """The command line options that load the same files in another process."""
    return [word for path, _ in _files.values() for word in ("--plugin", str(path))]


def marks(origins: list[str]) -> dict[str, str]:
    """The version of each of these packages, and the digest of each of these files."""
    found = {}
    for origin in origins:
        if origin.endswith(".py") and origin.removesuffix(".py") in _files:
            content = _files[origin.removesuffix(".py")][0].read_bytes()
            found[origin] = f"sha256:{hashlib.sha256(content).hexdigest()}"
        else:
            try:
                found[origin] = version(origin)
            except PackageNotFoundError:
                found[origin] = "unknown"
    return found


def absent(origins: list[str]) -> str:
    """The end of a message that says how to get the missing ones of these plugins; "" if none is missing."""
    here = {origin_of(entry) for group in GROUPS for entry in installed(group).values()}
    here |= {f"{name}.py" for name in _files}
    missing = [origin for origin in origins if origin not in here]
    ways = [f"--plugin PATH/{one}" if one.endswith(".py") else f"pip install {one}" for one in missing]
    return f"; it needs {' and '.join(missing)}, which lrnnx has not: {', '.join(ways)}" if missing else ""


def _reason(error: Exception) -> str:
    text = (str(error).splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
