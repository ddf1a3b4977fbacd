"""Names in a recipe -> classes, discovered by file.

A registry is a package; every public module in it is one entry, named after its file, and holds
exactly one class with a nested `Config`. Listing the names imports none of them.
"""

import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from typing import Any

from lrnnx_app.errors import LrnnxError, RecipeError, nearest


class Registry(Mapping[str, Any]):
    """Mapping from an entry's name to its class.

    Args:
        kind: what an entry is called in messages, e.g. "layer".
        package: dotted name of the package whose modules are the entries.
        also: other names that entries are known by, for the hint to one who looks for them.
    """

    def __init__(self, kind: str, package: str, also: Mapping[str, str] | None = None) -> None:
        self.kind = kind
        self.package = package
        self.also = also or {}

    def _names(self) -> list[str]:
        spec = find_spec(self.package)
        if spec is None or spec.submodule_search_locations is None:
            raise LrnnxError(f"package {self.package} is missing from this installation")
        modules = pkgutil.iter_modules(list(spec.submodule_search_locations))
        return sorted(m.name for m in modules if not m.name.startswith("_") and not m.ispkg)

    def __getitem__(self, name: str) -> Any:
        if name not in self._names():
            raise KeyError(name)
        module = importlib.import_module(f"{self.package}.{name}")
        entries = [
            value
            for key, value in vars(module).items()
            if isinstance(value, type)
            and value.__module__ == module.__name__
            and "Config" in vars(value)
            and not key.startswith("_")
        ]
        if len(entries) != 1:
            raise LrnnxError(
                f"{module.__file__} must hold one class with a nested Config, not {len(entries)}"
            )
        return entries[0]

    def find(self, name: str, key: str = "") -> Any:
        """The class called `name`.

        Raises:
            RecipeError: there is no such entry; names `key` (where the name stood) and the nearest one.
        """
        if name not in self._names():
            known = self.also.get(re.sub(r"[\W_]", "", name.lower()))
            hint = f"did you mean '{known}'?" if known else nearest(name, self)
            raise RecipeError(f"{key or self.kind}: unknown {self.kind} '{name}'; {hint}")
        return self[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names())

    def __len__(self) -> int:
        return len(self._names())


KNOWN_AS = {
    "mamba": "s6",
    "mamba1": "s6",
    "selectivessm": "s6",
    "hawk": "rglru",
    "griffin": "rglru",
    "recurrentgemma": "rglru",
    "attenuate": "centaurus",
    "atennuate": "centaurus",
    "s4lru": "lru",
    "s4dlin": "s4d",
    "s4dinv": "s4d",
    "s4dlegs": "s4d",
    "diags4": "s4d",
    "dss": "s4d",
    "s4nplr": "s4",
    "hippo": "s4",
    "legs": "s4",
    "s5ssm": "s5",
    "eventssm": "event_ssm",
    "streamssm": "stream",
    "minimalgru": "mingru",
    "diagonalgru": "gru",
    "attention": "local_attention",
    "slidingwindow": "local_attention",
}
LAYERS = Registry("layer", "lrnnx_app.layers", KNOWN_AS)
MODELS = Registry("model", "lrnnx_app.models")
TASKS = Registry("task", "lrnnx_app.tasks")
DATA = Registry("data module", "data_modules")
