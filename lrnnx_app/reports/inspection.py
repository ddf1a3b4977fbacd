"""Statistics of any data module: number of examples, classes, lengths, times, padding."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from omegaconf import OmegaConf

from lrnnx_app import recipe as recipes
from lrnnx_app.data.module import EVALUATION_SEED, DataModule, Source
from lrnnx_app.disk.overrides import dotlist
from lrnnx_app.registry import DATA
from lrnnx_app.runs.run import build_data
from lrnnx_app.spec import SPLITS, Example

READ = 400  # most examples of a split that are read; they are evenly spaced
BATCHES = 8  # batches whose padding is measured
QUANTILES = (0, 0.5, 0.95, 1)


@dataclass
class Split:
    """One split.

    Attributes:
        read: number of `examples` that were read for the statistics below.
        classes: number of examples of each class; empty if examples have no class.
        lengths: QUANTILES of the number of steps.
        dt: least, median and largest elapsed time between samples; None for evenly spaced ones.
        padding: share of the steps of a batch that are padding.
    """

    examples: int
    read: int
    shape: str
    classes: dict[str, int]
    lengths: list[int]
    dt: list[float] | None
    padding: float


def open_data(name: str, overrides: Sequence[str] = ()) -> DataModule:
    """The data of a recipe, or of a data module by its name.

    Raises:
        RecipeError: neither exists, or an override does not fit.
    """
    if name not in DATA:
        return build_data(recipes.load_recipe(name, *overrides))
    rest = {"task": {"name": "classify"}, "model": {"name": "backbone", "layer": {"name": "lru"}}}
    content = OmegaConf.create({**rest, "data": {"name": name}})
    return build_data(recipes.typed(recipes.resolve(content, dotlist(overrides), name)))


def prepared(name: str, overrides: Sequence[str] = ()) -> Iterator[tuple[str, int]]:
    """The name of each split and its number of examples, once what they need is made.

    Raises:
        DataError: files are missing or unreadable.
    """
    data = open_data(name, overrides)
    for split in SPLITS:
        yield split, len(data.source(split))


def splits(data: DataModule) -> Iterator[tuple[str, Split]]:
    """The name and the statistics of each split.

    Raises:
        DataError: files are missing or unreadable.
    """
    for name in SPLITS:
        source = data.source(name)
        yield name, _split(data, name, source)


def _split(data: DataModule, name: str, source: Source) -> Split:
    examples = sample(source, READ)
    known = getattr(source, "lengths", None)  # a source may know the lengths of its examples
    steps = [len(e.x) for e in examples] if known is None else known
    gaps = [e.dt.double().numpy() for e in examples if e.dt is not None]
    dt = np.concatenate(gaps) if gaps else None
    known = getattr(source, "labels", None)  # and their classes
    found = [e.y for e in examples if e.y.ndim == 0]
    labels = Counter(int(y) for y in (known if found and known is not None else found))
    names = data.spec.classes or tuple(map(str, range(data.spec.d_output)))
    return Split(
        examples=len(source),
        read=len(examples),
        shape=_shape(examples[0], data.spec.target) if examples else "",
        classes={names[label]: count for label, count in sorted(labels.items())},
        lengths=[int(x) for x in np.quantile(steps, QUANTILES)] if len(steps) else [],
        dt=None if dt is None or not dt.size else [float(f(dt)) for f in (np.min, np.median, np.max)],
        padding=padding(data, name),
    )


def sample(source: Source, count: int) -> list[Example]:
    """At most `count` examples, evenly spaced."""
    rows = np.unique(np.linspace(0, max(0, len(source) - 1), min(count, len(source))).round().astype(int))
    return [source.example(int(row), np.random.default_rng([EVALUATION_SEED, int(row)])) for row in rows]


def padding(data: DataModule, split: str) -> float:
    """The share of padding in the steps of the first BATCHES batches."""
    filled = total = 0
    for batch in islice(data.loader(split), BATCHES):
        rows, steps = batch.x.shape[:2]
        total += rows * steps
        filled += rows * steps if batch.lengths is None else int(batch.lengths.sum())
    return 1 - filled / total if total else 0.0


def _shape(example: Example, target: str) -> str:
    def shape(tensor: Any) -> str:
        return "×".join(["T", *map(str, tensor.shape[1:])])

    if example.y.ndim == 0:
        return f"{shape(example.x)} → class"
    return f"{shape(example.x)} → {len(example.y) if target == 'vector' else shape(example.y)}"


def picture(data: DataModule, count: int = 4) -> Any:
    """A figure of training examples, of different classes if there are classes."""
    from lrnnx_app import plots

    chosen: dict[Any, Example] = {}
    for example in sample(data.source("train"), 8 * count):
        chosen.setdefault(int(example.y) if example.y.ndim == 0 else len(chosen), example)
    rows = list(chosen.values())[:count]
    return plots.examples(rows, [_title(row, data) for row in rows], data.spec)


def _title(example: Example, data: DataModule) -> str:
    if example.y.ndim:
        return example.name
    classes = data.spec.classes
    return f"{classes[int(example.y)] if classes else int(example.y)} ({example.name})".removesuffix(" ()")
