"""Names in a recipe -> classes, discovered by file, or rules; names of recipes -> files. Plugins add to all.

A registry lists the entries of a package. Every public module in the package is an entry with the name of its
file, and has exactly one class with a nested `Config`. Listing the names imports no entry.
"""

import dataclasses
import importlib
import pkgutil
import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from lrnnx_app import plugins
from lrnnx_app.errors import LrnnxError, RecipeError, UserError, nearest


class Registry(Mapping[str, Any]):
    """Mapping from an entry's name to its class.

    Args:
        kind: the word for an entry in messages, such as "layer".
        package: dotted name of the package whose modules are lrnnx's own entries.
        group: one of `plugins.GROUPS`; its entry points are entries too.
        base: "module:class", the base class of entries in a plugin's file.
        also: other common names of entries, for hints in error messages.
    """

    form = "a class with a nested Config"  # of an entry, as messages say it

    def __init__(
        self, kind: str, package: str, group: str, base: str, also: Mapping[str, str] | None = None
    ) -> None:
        self.kind, self.package, self.group = kind, package, group
        self.base = tuple(base.split(":"))
        self.also = also or {}

    def origins(self) -> dict[str, str]:
        """Name of each entry -> the package or file that defines it, "" for lrnnx. Imports no entry.

        A plugin cannot replace one of lrnnx's own entries.
        """
        found = {name: f"{name}.py" for name in plugins.files() if self.in_file(name)}
        found |= {name: plugins.origin_of(entry) for name, entry in plugins.installed(self.group).items()}
        own = dict.fromkeys(self.own(), "")
        return own | {name: origin for name, origin in sorted(found.items()) if name not in own}

    def own(self) -> list[str]:
        """The names of lrnnx's own entries."""
        spec = find_spec(self.package)
        if spec is None or spec.submodule_search_locations is None:
            raise LrnnxError(f"package {self.package} is missing from this installation")
        modules = pkgutil.iter_modules(list(spec.submodule_search_locations))
        return sorted(m.name for m in modules if not m.name.startswith("_") and not m.ispkg)

    def __getitem__(self, name: str) -> Any:
        origin = self.origins()[name]
        if not origin:
            return self._own(name)
        if origin == f"{name}.py":
            return _only(self.in_file(name), name)
        entry = plugins.imported(plugins.installed(self.group)[name])
        if not self.fits(entry, name):
            raise UserError(f"{origin}: '{name}' is no {self.kind}; expected {self.form}")
        return entry

    def _own(self, name: str) -> Any:
        return _only(self._entries(importlib.import_module(f"{self.package}.{name}")), name)

    def fits(self, entry: Any, name: str) -> bool:
        """Whether a plugin's entry of that name has the form of this kind."""
        return isinstance(entry, type) and hasattr(entry, "Config")

    def __contains__(self, name: object) -> bool:
        return name in self.origins()  # which imports none

    def find(self, name: str, key: str = "") -> Any:
        """The class called `name`.

        Raises:
            RecipeError: there is no such entry; names `key` (where the name stood) and the nearest one.
        """
        if name not in self:
            known = self.also.get(re.sub(r"[\W_]", "", name.lower()))
            hint = f"did you mean '{known}'?" if known else nearest(name, self)
            raise RecipeError(f"{key or self.kind}: unknown {self.kind} '{name}'; {hint}")
        return self[name]

    def config(self, name: str, **options: Any) -> Any:
        """The Config of the entry called `name` with these options, as in a recipe.

        Raises:
            RecipeError: there is no such entry or option, and the nearest one is named; or a value does not
                fit.
        """
        config = named(self.find(name).Config, name)
        known = [field.name for field in dataclasses.fields(config)]
        for option in options:
            if option not in known:
                raise RecipeError(f"{name}: unknown option '{option}'; {nearest(option, known)}")
        return config(**options)

    def in_file(self, name: str) -> list[Any]:
        """The entries of this kind in a loaded plugin file."""
        found = self._entries(plugins.files()[name])
        return [c for c in found if any((b.__module__, b.__name__) == self.base for b in c.__mro__[1:])]

    @staticmethod
    def _entries(module: ModuleType) -> list[Any]:
        return [
            value
            for key, value in vars(module).items()
            if isinstance(value, type)
            and value.__module__ == module.__name__
            and "Config" in vars(value)
            and not key.startswith("_")
        ]

    def __iter__(self) -> Iterator[str]:
        return iter(self.origins())

    def __len__(self) -> int:
        return len(self.origins())


class Rules(Registry):
    """Mapping from a name to a rule of discretization. lrnnx's are in one file, a plugin's file has one."""

    form = "a Rule of that name without a code, which numbers lrnnx's kernels"

    def own(self) -> list[str]:
        return list(importlib.import_module(self.package).OWN)

    def _own(self, name: str) -> Any:
        return importlib.import_module(self.package).OWN[name]

    def fits(self, entry: Any, name: str) -> bool:
        return self._is_rule(entry) and entry.name == name and entry.code is None

    def in_file(self, name: str) -> list[Any]:
        found = vars(plugins.files()[name]).items()
        return [value for key, value in found if self._is_rule(value) and not key.startswith("_")]

    def _is_rule(self, value: Any) -> bool:
        return (type(value).__module__, type(value).__name__) == self.base


def named(config: type, name: str) -> type:
    """A Config with the field `name`, by which a recipe chooses the class."""
    field = ("name", str, dataclasses.field(default=name))
    return dataclasses.make_dataclass(config.__name__, [field], bases=(config,))


def _only(entries: list[Any], name: str) -> Any:
    if len(entries) != 1:
        raise LrnnxError(f"{name}.py must hold one class with a nested Config, not {len(entries)}")
    return entries[0]


def shipped() -> dict[str, Path]:
    """Name -> file of lrnnx's own recipes."""
    here = Path(__file__).parent
    return _recipes_in(here / "recipes" if (here / "recipes").is_dir() else here.parent / "recipes")


def trained() -> dict[str, Path]:
    """Name -> file of the trained models that lrnnx ships; each lies beside the recipe of its name."""
    files = {name: path.with_suffix(".safetensors") for name, path in shipped().items()}
    return {name: path for name, path in files.items() if path.is_file()}


def recipes() -> dict[str, tuple[Path, str]]:
    """Name -> file of each recipe, and the package that it comes from, "" for lrnnx.

    An entry point of the group `lrnnx.recipes` leads to a package with recipes in its folder.

    Raises:
        UserError: such a package is not there.
    """
    found: dict[str, tuple[Path, str]] = {}
    for entry in plugins.installed("recipes").values():
        try:
            spec = find_spec(entry.module)
        except ImportError:
            spec = None
        if spec is None or not spec.submodule_search_locations:
            package = plugins.origin_of(entry)
            raise UserError(f"{package}: has no folder of recipes {entry.module}; reinstall or uninstall it")
        for folder in spec.submodule_search_locations:
            files = _recipes_in(Path(folder)).items()
            found |= {name: (path, plugins.origin_of(entry)) for name, path in files}
    return dict(sorted((found | {name: (path, "") for name, path in shipped().items()}).items()))


def _recipes_in(folder: Path) -> dict[str, Path]:
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


KNOWN_AS = {
    "mamba": "s6",
    "mamba1": "s6",
    "selectivessm": "s6",
    "ssd": "mamba2",
    "deltanet": "gated_deltanet",
    "gatedlinearattention": "gla",
    "xlstm": "mlstm",
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
LAYERS = Registry("layer", "lrnnx_app.layers", "layers", "lrnnx_app.layers._base:Layer", KNOWN_AS)
MODELS = Registry("model", "lrnnx_app.models", "models", "lrnnx_app.models._base:Model")
TASKS = Registry("task", "lrnnx_app.tasks", "tasks", "lrnnx_app.tasks._base:Task")
DATA = Registry("data module", "data_modules", "data", "lrnnx_app.data.module:DataModule")
REGISTRIES = (LAYERS, MODELS, TASKS, DATA)  # of classes
RULES = Rules("rule", "lrnnx_app.ops.rules", "rules", "lrnnx_app.ops.rules:Rule")


def plug_in(path: Path) -> None:
    """Load a plugin's file. Its entries have the name of the file.

    Raises:
        UserError: see `plugins.load`; or the file has no entry, two of one kind, one that lrnnx has too, or
            one of another form.
    """
    plugins.load(path)
    name = path.stem
    found = [(registry, registry.in_file(name)) for registry in (*REGISTRIES, RULES)]
    exports = callable(getattr(plugins.files()[name], "export", None))
    if not exports and not any(entries for _, entries in found):
        kinds = ", ".join(registry.kind for registry in REGISTRIES)
        raise UserError(
            f"--plugin {path}: holds no {kinds} ({Registry.form}), no Rule and no function export"
        )
    for registry, entries in found:
        if len(entries) > 1:
            raise UserError(f"--plugin {path}: holds {len(entries)} {registry.kind}s; expected one")
        if entries and name in registry.own():
            raise UserError(f"--plugin {path}: lrnnx has a {registry.kind} '{name}'; rename the file")
        if entries and not registry.fits(entries[0], name):
            raise UserError(f"--plugin {path}: '{name}' is no {registry.kind}; expected {registry.form}")
