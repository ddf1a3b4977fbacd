"""Recipes: YAML and `key.sub=value` overrides -> one checked, typed object.

The schema is `Recipe` with the Configs of the named task, model, layer and data module in it. So a wrong key
or type is reported with its full path, before any data are read.

`model.layer` is one layer or a list of layers. OmegaConf merges mappings but replaces lists. So during the
merge a list is a mapping from index to layer, and `model.layer[1].d_state=8` overrides a key as usual.
"""

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from lrnnx_app import plugins
from lrnnx_app.disk import plain_yaml
from lrnnx_app.disk.overrides import dotlist
from lrnnx_app.errors import RecipeError, nearest, one_line, one_of
from lrnnx_app.registry import DATA, LAYERS, MODELS, RULES, TASKS, Registry, named, recipes

SUFFIX = ".yaml"
PLAIN_NAME = re.compile(r"\w[\w .+-]{0,99}")
MOST_SEED = 2**32 - 1
PERIODS = ("checkpoint_every", "validate_every", "log_every")  # of the trainer, as COUNTS
COUNTS = ("keep", "max_skipped", "accumulate", "devices", "nodes", "sequence_parallel")
STRATEGIES = ("auto", "ddp", "fsdp")
FORMS = {"whole": ".ckpt", "sharded": ".shards"}  # of checkpoints, and how their names end


@dataclass
class TrainerConfig:
    max_steps: int = -1  # optimizer steps, -1 for no limit; the first limit reached ends the training
    max_epochs: int = 10  # passes over the training data, -1 for no limit
    checkpoint_every: int = 500  # steps between checkpoints to resume from
    keep: int = 3  # checkpoints to resume from that stay
    checkpoints: str = "whole"  # whole | sharded: those written in parts, while training goes on
    max_skipped: int = 10  # steps in a row without a finite loss and gradient that end the training
    validate_every: int = 1  # epochs between validations
    log_every: int = 10  # steps between logged values
    precision: str = "32-true"  # as Lightning names it: 32-true, bf16-mixed, 64-true …
    gradient_clip: float = 1.0  # largest norm of the gradient, 0 for none
    accumulate: int = 1  # batches per optimizer step
    accelerator: str = "auto"  # auto | cpu | gpu
    devices: int = 1  # devices of each node; each takes data.batch_size examples a step
    nodes: int = 1  # machines that train together
    sequence_parallel: int = 1  # devices that share each sequence, every one with a part of its time
    strategy: str = "auto"  # auto | ddp | fsdp, see lrnnx_app.train.strategies
    graph: bool = False  # on one GPU, replay the model's passes as CUDA graphs: for small steps of one shape
    compile: bool = (
        False  # fuse the work of each block by torch.compile, which takes a minute or two at the start
    )
    recompute: bool = False  # run each block again in the backward pass instead of keeping what that needs

    def __post_init__(self) -> None:
        if self.max_steps < 1 and self.max_epochs < 1:
            raise RecipeError("max_steps or max_epochs: expected one of them to be positive")
        for name in (*PERIODS, *COUNTS):
            if getattr(self, name) < 1:
                raise RecipeError(f"{name}: expected a positive integer, not {getattr(self, name)}")
        if self.recompute and self.compile:
            raise RecipeError("recompute: compile chooses itself what to keep; expected one of them")
        if self.strategy == "deepspeed":
            raise RecipeError(
                "strategy: deepspeed keeps checkpoints in folders of shards that no other strategy reads; "
                "expected fsdp, which spreads weights, gradients and optimizer states as well"
            )
        one_of("strategy", self.strategy, STRATEGIES)
        one_of("checkpoints", self.checkpoints, tuple(FORMS))


@dataclass
class Recipe:
    """A resolved recipe; `task`, `model`, `model.layer` (or each of its entries) and `data` hold the named
    class's Config."""

    about: str = ""  # what the recipe is for
    name: str = ""  # plain name of the recipe, of which its runs' folder is called; by default its file's
    seed: int = 0  # of weights and of what training draws; from 0 to 2³² − 1
    init_from: str = ""  # a run, exported model or shipped one, of whose weights those that fit are taken
    freeze: list[str] = field(default_factory=list)  # parameters that stay as they are: names, or encoder.*
    task: Any = None  # what is learned, and how its steps are taken
    model: Any = None  # the network
    data: Any = None  # what is learned from
    trainer: TrainerConfig = field(default_factory=TrainerConfig)  # how long, on what, and what is kept
    plugins: list[str] = field(default_factory=list)  # beside lrnnx, that it needs: found out, not set

    def __post_init__(self) -> None:
        if not 0 <= self.seed <= MOST_SEED:
            raise RecipeError(f"seed: expected 0 to {MOST_SEED}, not {self.seed}")


def layer_nodes(layer: Any) -> list[tuple[str, Any]]:
    """Key and content of each layer in `model.layer`, which is one layer or a list."""
    if isinstance(layer, list | ListConfig):
        return [(f"model.layer[{i}]", node) for i, node in enumerate(layer)]
    return [("model.layer", layer)]


def find(recipe: str) -> Path:
    """The file of a recipe, given by its path, or by its name if lrnnx or a plugin provides it.

    Raises:
        RecipeError: there is no such file or name; names the nearest one.
    """
    path = Path(recipe)
    if path.suffix in (SUFFIX, ".yml"):
        if path.is_file():
            return path
        raise RecipeError(f"{recipe}: no such recipe file; `lrnnx recipes` lists those that have names")
    known = recipes()
    if recipe in known:
        return known[recipe][0]
    raise RecipeError(f"{recipe}: unknown recipe; {nearest(recipe, known)}")


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        RecipeError: not readable, not YAML, or not a mapping.
    """
    try:
        with path.open("rb") as file:
            text = file.read(plain_yaml.MOST_BYTES + 1).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: not readable as YAML; {one_line(error)}") from error
    return mapping(text, str(path))


def mapping(text: str, source: str) -> dict[str, Any]:
    """The mapping in a YAML text.

    Raises:
        RecipeError: not YAML, more than plain values, or not a mapping. The message starts with `source`.
    """
    try:
        content = plain_yaml.read(text)
    except plain_yaml.NotPlainError as error:
        raise RecipeError(f"{source}: not readable as YAML of plain values; {error}") from error
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise RecipeError(f"{source}: expected a mapping of keys such as task, model, data and trainer")
    return content


def tree(content: dict[str, Any], source: str) -> DictConfig:
    """A mapping as OmegaConf's DictConfig.

    Raises:
        RecipeError: a value has a type that recipes cannot have.
    """
    try:
        return OmegaConf.create(content)
    except (OmegaConfBaseException, RecursionError) as error:
        raise RecipeError(f"{source}: {one_line(error)}") from error


def system(path: Path) -> tuple[str, str]:
    """The names of the layers, joined by +, and of the data, as they are written in a recipe's file."""
    content = read_yaml(path)
    nodes = layer_nodes(content["model"]["layer"])
    return "+".join(dict.fromkeys(node["name"] for _, node in nodes)), content["data"]["name"]


def load(recipe: str, overrides: Sequence[str] = ()) -> DictConfig:
    """Read, override, check and resolve a recipe.

    Args:
        recipe: path of a YAML file, or a shipped recipe's name.
        overrides: `key.sub=value` each, stronger than the file.

    Raises:
        RecipeError: one line with file (or override), full key, what was expected and the nearest spelling.
    """
    path = find(recipe)
    file = tree(read_yaml(path), str(path))
    return resolve(file, dotlist(overrides), str(path), _plain_name(path.stem))


def resolve(file: DictConfig, overrides: DictConfig, source: str, name: str = "") -> DictConfig:
    """Merge a recipe's own keys and the overrides into the schema; see `load`."""
    if isinstance(_select(overrides, "model.layer"), ListConfig) and isinstance(
        file.get("model"), DictConfig
    ):
        file.model.pop("layer", None)
    _by_index(file)
    _by_index(overrides)
    try:
        chosen = OmegaConf.unsafe_merge(OmegaConf.create(file), overrides)
    except (OmegaConfBaseException, RecursionError, TypeError, ValueError) as error:
        raise RecipeError(f"{source} with the overrides: {one_line(error)}") from error
    assert isinstance(chosen, DictConfig)
    layers, needed = _layer_keys(chosen), _needed(chosen)
    schema = _schema(chosen, source, layers, needed)
    schema.name = name
    _drop_orphans(file, overrides, schema, layers)
    if "plugins" in overrides:
        raise RecipeError("plugins: is found out, not set; expected --plugin FILE, or an installed package")
    merged = _merge(schema, file, source)
    merged = _merge(merged, overrides, "command line")
    merged.plugins = _origins(merged, layers)
    _at_home(merged.data)
    if layers != ["model.layer"]:
        OmegaConf.update(
            merged, "model.layer", [OmegaConf.select(merged, key) for key in layers], merge=False
        )
    if overrides:
        source += " with the overrides"
    _check_words(merged, source)
    for key in (*_inner(merged, layers), *layers, "model", "task", "data", "trainer"):
        try:
            OmegaConf.to_object(OmegaConf.select(merged, key))
        except RecipeError as error:
            raise RecipeError(f"{source}: {key}.{one_line(error)}{plugins.absent(needed)}") from error
        except (OmegaConfBaseException, ValueError, TypeError, OverflowError) as error:
            raise RecipeError(f"{source}: {key}: {one_line(error)}") from error
    return merged


def _check_words(config: DictConfig, source: str) -> None:
    """Check `name` and `about`: `name` becomes a folder's name; both are printed and put into model cards."""
    name, about = str(config.name), str(config.about)
    if name and not PLAIN_NAME.fullmatch(name):
        raise RecipeError(
            f"{source}: name: expected a plain name of letters, digits, spaces and . _ + -, at most 100 of "
            f"them, and no path; not {name!a}"
        )
    if plain_yaml.unsafe(about):
        raise RecipeError(f"{source}: about: holds letters that cannot be shown; expected plain text")


def _plain_name(stem: str) -> str:
    """A file's name as that of a recipe."""
    return stem if PLAIN_NAME.fullmatch(stem) else re.sub(r"[^\w .+-]+", "-", stem).strip("-. +")[:100]


def typed(config: DictConfig) -> Recipe:
    """The recipe as dataclasses."""
    recipe = OmegaConf.to_object(config)
    assert isinstance(recipe, Recipe)
    return recipe


def load_recipe(recipe: str | Path, *overrides: str) -> Recipe:
    """Read a recipe as dataclasses: `load_recipe("denoise_lru", "seed=1").model.layer.d_state`.

    Args:
        recipe: path of a YAML file, or a shipped recipe's name.
        overrides: `key.sub=value` each, stronger than the file.

    Raises:
        RecipeError: one line with file (or override), full key, what was expected and the nearest spelling.
    """
    return typed(load(str(recipe), overrides))


def _by_index(config: DictConfig) -> None:
    """A list of layers as a mapping from index to layer, in place."""
    node = _select(config, "model.layer")
    if isinstance(node, ListConfig):
        nodes = OmegaConf.to_container(node, resolve=False)
        assert isinstance(nodes, list)
        OmegaConf.update(config, "model.layer", {str(i): x for i, x in enumerate(nodes)}, merge=False)


def _layer_keys(chosen: DictConfig) -> list[str]:
    """The keys of the layers, where lists are by index."""
    node = _select(chosen, "model.layer")
    if not isinstance(node, DictConfig) or "name" in node or "0" not in node:
        return ["model.layer"]
    return [f"model.layer[{i}]" for i in range(len(node)) if str(i) in node]


def _schema(chosen: DictConfig, source: str, layers: list[str], needed: list[str]) -> DictConfig:
    """`Recipe` with the Configs of the chosen classes in place."""
    schema = OmegaConf.structured(Recipe)
    parts = {"task": TASKS, "model": MODELS, "data": DATA, **dict.fromkeys(layers, LAYERS)}
    for key, registry in parts.items():
        name, config = _entry(registry, _select(chosen, f"{key}.name"), f"{key}.name", source, needed)
        OmegaConf.update(schema, key, OmegaConf.structured(named(config, name)), force_add=True)
    for outer in layers:
        while _holds_a_layer(schema, outer):
            held = _select(chosen, f"{outer}.layer")
            held = OmegaConf.select(schema, f"{outer}.layer") if held is None else held
            _, config = _entry(LAYERS, held, f"{outer}.layer", source, needed)
            outer += ".options"
            OmegaConf.update(schema, outer, OmegaConf.structured(config), force_add=True)
    OmegaConf.set_struct(schema, True)
    return schema


def _needed(config: DictConfig) -> list[str]:
    """The plugins named in a recipe; imports none of them."""
    named = _select(config, "plugins")
    names = named if isinstance(named, ListConfig) else []
    return [name for name in names if isinstance(name, str) and PLAIN_NAME.fullmatch(name)]


def _entry(registry: Registry, name: Any, key: str, source: str, needed: list[str]) -> tuple[str, type]:
    """The name of an entry and its Config; `needed` are the plugins that the recipe says it was made with."""
    if not isinstance(name, str):
        known = ", ".join(registry)
        raise RecipeError(f"{source}: {key}: expected the name of a {registry.kind}, one of: {known}")
    try:
        return name, registry.find(name, key).Config
    except RecipeError as error:
        raise RecipeError(f"{source}: {error}{plugins.absent(needed)}") from error


def _origins(config: DictConfig, layers: list[str]) -> list[str]:
    """The packages and files other than lrnnx that define the chosen classes and rules."""
    chosen = [(TASKS, config.task.name), (MODELS, config.model.name), (DATA, config.data.name)]
    options = {key: f"{key}.name" for key in layers}  # of a layer -> the key of its name
    options |= {key: f"{key.removesuffix('.options')}.layer" for key in _inner(config, layers)}
    for key, name in options.items():
        layer = OmegaConf.select(config, name)
        chosen += [(LAYERS, layer)]
        chosen += [(RULES, OmegaConf.select(config, f"{key}.rule"))] if LAYERS[layer].taps else []
    return sorted({registry.origins().get(name, "") for registry, name in chosen} - {""})


def _holds_a_layer(config: DictConfig, key: str) -> bool:
    """Whether the layer at `key` contains another layer, by the keys `layer` and `options`."""
    node = OmegaConf.select(config, key)
    return isinstance(node, DictConfig) and "layer" in node and "options" in node


def _inner(config: DictConfig, layers: list[str]) -> list[str]:
    """The keys of the options of layers inside others, the innermost first."""
    found = []
    for key in layers:
        while _holds_a_layer(config, key):
            key += ".options"
            found.insert(0, key)
    return found


def _select(config: DictConfig, key: str) -> Any:
    try:
        return OmegaConf.select(config, key)
    except OmegaConfBaseException:
        return None


def _drop_orphans(file: DictConfig, overrides: DictConfig, schema: DictConfig, layers: list[str]) -> None:
    """If an override names another class, drop the file's keys that this class does not have."""
    for key in ("task", *layers, "model", "data"):
        node = _select(file, key)
        if _select(overrides, f"{key}.name") is not None and isinstance(node, DictConfig):
            for orphan in set(node) - set(OmegaConf.select(schema, key)):
                del node[orphan]
    for key in _inner(schema, layers):
        node = _select(file, key)
        if _select(overrides, f"{key.removesuffix('.options')}.layer") and isinstance(node, DictConfig):
            for orphan in set(node) - set(OmegaConf.select(schema, key)):
                del node[orphan]


def _at_home(node: DictConfig) -> None:
    """Replace a ~ at the start of a path in the settings of data by the user's home."""
    for key, value in node.items():
        if isinstance(value, DictConfig):
            _at_home(value)
        elif isinstance(value, str):
            node[key] = os.path.expanduser(value)


def _merge(schema: DictConfig, content: DictConfig, source: str) -> DictConfig:
    try:
        merged = OmegaConf.merge(schema, content)
    except ConfigKeyError as error:
        key = str(error.full_key)
        parent, _, last = key.rpartition(".")
        node = OmegaConf.select(schema, parent) if parent else schema
        hint = nearest(last, map(str, node)) if isinstance(node, DictConfig) else ""
        raise RecipeError(f"{source}: unknown key '{_shown(key)}'; {hint}") from error
    except (OmegaConfBaseException, RecursionError, ValueError, TypeError) as error:
        key = _shown(getattr(error, "full_key", None) or "")
        raise RecipeError(f"{source}: {f'{key}: ' if key else ''}{one_line(error)}") from error
    assert isinstance(merged, DictConfig)
    return merged


def _shown(key: str) -> str:
    """A key as the user writes it: model.layer[1].d_state, not model.layer.1.d_state."""
    return re.sub(r"^model\.layer\.(\d+)", r"model.layer[\1]", str(key))
