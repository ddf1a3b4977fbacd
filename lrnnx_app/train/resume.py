"""The settings of a resumed run: its own, changed by those overrides that can still have an effect.

The trainer, the loss, the learning rates and the workers that prepare batches are built again, so they may
change. The model and the order of the data may not, since weights and position in the checkpoint depend on
them.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lrnnx_app import recipe as recipes
from lrnnx_app.errors import RecipeError, RunError
from lrnnx_app.runs.checkpoint_file import newest, read_checkpoint
from lrnnx_app.runs.folder import CHECKPOINTS, RECIPE
from lrnnx_app.runs.run import Run

COUNTS = "trainer.*, task.* but task.name, *.dropout, data.workers, data.root and data.noise_root"
KEYS = ("about", "plugins", "data.workers", "data.root", "data.noise_root")
GLOBAL = ("data.batch_size", "trainer.devices", "trainer.nodes")


def settings(recipe: str | None, run: Path, overrides: Sequence[str]) -> DictConfig:
    """The settings of a run, with overrides. A `recipe`, if named, must be the one that the run began with.

    Raises:
        RunError: the run was begun with another recipe.
        RecipeError: as of `recipe.load`.
    """
    opened = Run(run, overrides)
    if recipe:
        path = recipes.find(recipe)
        name, own = (recipes.read_yaml(p).get("name", path.stem) for p in (path, run / RECIPE))
        if name != own:
            raise RunError(f"{run}: a run of {own}, not of {name}; go on with: lrnnx train --resume {run}")
    return opened.config


def start(run: Run, config: DictConfig, say: Callable[[str], None]) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to resume from and its content; None and {} if the run has no checkpoint yet.

    Raises:
        RecipeError: a setting that a resumed run cannot change differs from the run's own; names its key.
        RunError: no checkpoint of the run is good.
    """
    found = newest(run.path / CHECKPOINTS, read_checkpoint, say)
    if found is None:
        say(f"{run.path}: no checkpoint yet, starting from the beginning")
        return None, {}
    path, content = found
    _check(run, config, content)
    say(f"{run.path}: resuming from step {content['global_step']}, epoch {content['position'][0]}")
    return path, content


def _check(run: Run, config: DictConfig, content: dict[str, Any]) -> None:
    own, new = (dict(_flat(OmegaConf.to_container(c))) for c in (run.config, config))
    changed = [key for key in own | new if own.get(key) != new.get(key)]
    for key in changed:
        if not _counts(key) and key not in GLOBAL:
            raise RecipeError(
                f"{key}: {new.get(key)} instead of {own.get(key)} cannot count in a run that is resumed; "
                f"these can: {COUNTS}"
            )
    rows = [int(c["data.batch_size"]) * c["trainer.devices"] * c["trainer.nodes"] for c in (own, new)]
    if rows[0] != rows[1]:
        keys = ", ".join(key for key in GLOBAL if key in changed)
        raise RecipeError(
            f"{keys}: {rows[1]} examples a batch in all instead of {rows[0]}, which a resumed run cannot "
            f"change; set {' × '.join(GLOBAL)} to {rows[0]}"
        )
    done = {"max_steps": content["global_step"], "max_epochs": content["position"][0]}
    for name, count in done.items():
        if (key := f"trainer.{name}") in changed and 0 <= new[key] < count:
            raise RecipeError(f"{key}: {new[key]}, but {count} are done already; expected {count} at least")


def _counts(key: str) -> bool:
    first, _, rest = key.partition(".")
    if first in ("trainer", "task"):
        return rest != "name"
    return key in KEYS or key.endswith(".dropout")


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(content, list) and content and all(isinstance(part, dict) for part in content):
        for number, value in enumerate(content):
            yield from _flat(value, f"{prefix}[{number}]")
    else:
        yield prefix, content
