"""A run folder: recipe.yaml, checkpoints, events, metrics.csv, plots, summary.json."""

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

from lrnnx_app import recipe as recipes
from lrnnx_app.data import tokenizer
from lrnnx_app.disk.overrides import dotlist
from lrnnx_app.disk.plain_yaml import unsafe
from lrnnx_app.errors import RecipeError, RunError, StreamError
from lrnnx_app.registry import DATA, MODELS, TASKS, trained
from lrnnx_app.runs import weights_file
from lrnnx_app.runs.checkpoint_file import read_checkpoint
from lrnnx_app.runs.folder import BEST, CHECKPOINTS, LAST, RECIPE, SUMMARY, WEIGHTS
from lrnnx_app.spec import DataSpec

if TYPE_CHECKING:
    from torch import nn

    from lrnnx_app.data.module import DataModule
    from lrnnx_app.models._base import Model
    from lrnnx_app.tasks._base import Task

Kind = Callable[[type["Task"]], type["Task"]]
DENOISER = "denoise_attenuate"  # the recipe


def build_task(recipe: recipes.Recipe, spec: DataSpec, kind: Kind | None = None) -> "Task":
    """The task of a recipe, with its model.

    Args:
        recipe: its `task` and `model`.
        spec: what the data give.
        kind: makes the class of the task that of one that is trained or tested: `train.learner.learner`.

    Raises:
        RecipeError: a network cannot be built from these settings.
    """
    task = TASKS.find(recipe.task.name, "task.name")
    with _built("model"):
        return (kind(task) if kind else task)(recipe.task, recipe.model, spec)


def build_data(recipe: recipes.Recipe) -> "DataModule":
    """The data module of a recipe.

    Raises:
        RecipeError: it cannot be built from these settings.
    """
    with _built("data"):
        return DATA.find(recipe.data.name, "data.name")(recipe.data, recipe.seed)


def build(recipe: recipes.Recipe, kind: Kind | None = None) -> "tuple[DataModule, Task]":
    """The data module of a recipe, and a task for its data; reads no data. `kind` as of `build_task`.

    Raises:
        RecipeError: they cannot be built from these settings, the task needs another kind of target, or
            `data.pack` is set and the model or the task takes no packed rows.
    """
    check_packing(recipe)
    data = build_data(recipe)
    TASKS.find(recipe.task.name, "task.name").check(data.spec)
    return data, build_task(recipe, data.spec, kind)


def check_packing(recipe: recipes.Recipe) -> None:
    """Refuse `data.pack` if the model or the task cannot take several examples in a row.

    Raises:
        RecipeError: says which of them cannot, and what to choose instead.
    """
    for key, registry in (("model", MODELS), ("task", TASKS)) if recipe.data.pack else ():
        name = getattr(recipe, key).name
        if not registry.find(name, f"{key}.name").packs:
            able = ", ".join(other for other in registry if registry[other].packs)
            raise RecipeError(
                f"data.pack: {key} '{name}' takes one example a row; expected false, or {key}.name of: {able}"
            )


@contextmanager
def _built(key: str) -> Iterator[None]:
    """Turns a library's error about settings into a RecipeError that names the part of the recipe."""
    try:
        yield
    except (ValueError, TypeError, ArithmeticError) as error:
        raise RecipeError(f"{key}: {error}; expected settings that it can be built from") from error


class Run:
    """A trained model: its `recipe` as dataclasses, checkpoints, summary and task.

    Args:
        path: a run folder, such as runs/denoise_lru/<time>, also of an imported model; or a file that
            `lrnnx export` wrote as safetensors; or the name of a model that lrnnx ships. All but the first
            have no checkpoints.
        overrides: settings `key.sub=value`, which replace those of the run's recipe.

    Raises:
        RunError: there is no such folder, file or name, or no recipe that this version understands.
        RecipeError: an override does not fit.
    """

    def __init__(self, path: str | Path, overrides: Sequence[str] = ()) -> None:
        path = Path(path)
        path = path if path.exists() else trained().get(str(path), path)
        self.path, self._written = path, None
        if path.is_file():
            source, self._written = str(path), weights_file.read(path)
            content = self._written.recipe
        elif not path.is_dir():
            known = "".join(f", {name}" for name in trained())
            raise RunError(
                f"{path}: no such run folder; `lrnnx train RECIPE` makes one, and lrnnx ships{known[1:]}"
            )
        elif not (path / RECIPE).is_file():
            raise RunError(f"{path}: no {RECIPE} in it; expected the folder of a finished or interrupted run")
        else:
            source = str(path / RECIPE)
            content = recipes.tree(recipes.read_yaml(path / RECIPE), source)
            if (path / WEIGHTS).is_file():
                self._written = weights_file.read(path / WEIGHTS)
        self.config = recipes.resolve(content, dotlist(overrides), source)
        self.recipe = recipes.typed(self.config)
        if self._written is None:
            with_tokenizer(self.recipe, path)
        elif self._written.tokenizer:
            self.recipe.data.tokenizer = self._written.tokenizer

    def tokenizer(self) -> str:
        """The content of the tokenizer's file that the run keeps; "" if it keeps none."""
        path = self.path / tokenizer.FILE
        if self._written is not None:
            return self._written.tokenizer
        return path.read_text("utf-8") if path.is_file() else ""

    @property
    def timed(self) -> bool:
        """Whether the steps of its data come with their elapsed times dt."""
        return bool(getattr(self.recipe.data, "timed", False))

    @property
    def best(self) -> Path:
        return self.path / CHECKPOINTS / BEST

    @property
    def last(self) -> Path:
        return self.path / CHECKPOINTS / LAST

    def checkpoint(self) -> Path:
        """The best checkpoint; or the last one, if the run was stopped before its first validation.

        Raises:
            RunError: there is no checkpoint.
        """
        for path in (self.best, self.last):
            if path.exists():
                return path
        raise RunError(f"{self.path}: no {CHECKPOINTS}/{BEST} or {LAST}; train it first: lrnnx train RECIPE")

    def task(self, kind: Kind | None = None) -> "Task":
        """The trained task, in evaluation mode, on the CPU. `kind` as of `build_task`.

        Raises:
            RunError: the checkpoint is missing or unreadable, or belongs to another model.
        """
        if self._written is not None:
            task = build_task(self.recipe, self._written.spec, kind)
            load_weights(task.model, self._written.weights, self.path)
            return task.eval()
        path = self.checkpoint()
        content = read_checkpoint(path)
        task = build_task(self.recipe, content["spec"], kind)
        load_weights(task, content["state_dict"], path)
        return task.eval()

    def summary(self) -> dict[str, Any]:
        """The content of summary.json; {} if there is none.

        Raises:
            RunError: the file is not one that a training writes.
        """
        path = self.path / SUMMARY
        if not path.is_file():
            return {}
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            metrics = content["metrics"].items()
            rates = content["parameters"], content["samples_per_second"]
            if any(type(value) not in (int, float, NoneType) for _, value in metrics):
                raise ValueError("a metric is no number")
            if any(type(value) not in (int, float) for value in rates):
                raise ValueError("parameters or samples_per_second are no numbers")
            if unsafe("".join(content["metrics"]) + content["device"]):
                raise ValueError("a name cannot be shown")
            content["metrics"] = {key: math.nan if value is None else value for key, value in metrics}
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
            raise RunError(
                f"{path}: not a summary that lrnnx wrote ({reason}); restore it, or train the run again"
            ) from error
        return content


def with_tokenizer(recipe: recipes.Recipe, folder: Path) -> recipes.Recipe:
    """The recipe of a run, with the tokenizer that its folder keeps in place of the one of its settings."""
    if (path := folder / tokenizer.FILE).is_file() and hasattr(recipe.data, "tokenizer"):
        recipe.data.tokenizer = str(path)
    return recipe


def load_weights(module: "nn.Module", weights: dict[str, Any], path: Path) -> None:
    """Load the state dict of a task or model, which must fit exactly.

    Raises:
        RunError: names or shapes do not fit this model; says which one differs first.
    """
    own = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    given = {name: tuple(value.shape) for name, value in weights.items()}
    differing = sorted(name for name in own.keys() | given.keys() if own.get(name) != given.get(name))
    if differing:
        name = differing[0]
        raise RunError(
            f"{path}: holds another model's weights: {name} is {given.get(name, 'missing')}, "
            f"expected {own.get(name, 'no such parameter')} by {RECIPE}"
        )
    module.load_state_dict(weights)


def load(run: str | Path, *overrides: str) -> "Model":
    """The trained model of a run folder, in evaluation mode, on the CPU.

    It maps x (B, T, d_input), or tokens (B, T), to (y, state). y is (B, T, d_output), or (B, d_output) if the
    model pools over time. `model.spec` describes input and output; its `sample_rate` is in Hz.

    Args:
        run: as of `Run`.
        overrides: settings `key.sub=value`, which replace those of the run's recipe.

    Raises:
        RunError: the folder, its recipe or its checkpoint is missing or unreadable, or does not fit the
            model.
        RecipeError: an override does not fit.
    """
    return Run(run, overrides).task().model


def audio_model(run: Path | None) -> "Model":
    """The model of a run on audio. Without a run, that of the shipped denoiser with untrained weights.

    Raises:
        RunError, RecipeError: see `Run`.
        StreamError: the model has no sampling rate, so it is not for audio.
    """
    if run is None:
        recipe = recipes.load_recipe(DENOISER)
        spec = DataSpec(1, 1, sample_rate=recipe.data.sample_rate)
        return build_task(recipe, spec).model.eval()
    model = load(run)
    if not model.spec.sample_rate:
        raise StreamError(f"{run}: its steps have no rate to keep up with; expected a model of audio")
    return model
