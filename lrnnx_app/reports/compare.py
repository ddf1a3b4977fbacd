"""Runs side by side: metric with its spread, parameters, state, training throughput and latency of a step.

Runs that differ in nothing but their seed are one row.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from lrnnx_app.disk.files import below
from lrnnx_app.errors import RunError, StreamError
from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._bidirectional import Bidirectional
from lrnnx_app.machine import median_ms
from lrnnx_app.models._base import Model
from lrnnx_app.recipe import layer_nodes
from lrnnx_app.registry import TASKS
from lrnnx_app.runs.folder import RECIPE, SUMMARY
from lrnnx_app.runs.run import Run
from lrnnx_app.spec import DataSpec

REPEATS = 50  # steps that are timed for the latency
NOTE = "~ runs in both directions and cannot stream: state and latency of the layers' forward halves"


@dataclass
class Row:
    """Runs of one setting.

    Attributes:
        value: mean of the metric over runs.
        spread: its standard deviation over seeds ("sd"); or, for a single run, its standard error over the
            test set ("se"); None if that is not known.
        spread_of: "sd" or "se".
        metrics: every metric of the test as [mean, standard deviation or None].
        state: number of floats in the state of one stream.
        samples_per_second: speed of the training, on `device`.
        step_ms: time of one hop of one stream in ms, on this machine's CPU.
        streams: False if the model cannot stream; then state and step_ms are those of its forward layers.
    """

    label: str
    metric: str
    value: float
    spread: float | None
    spread_of: str
    runs: int
    metrics: dict[str, tuple[float, float | None]]
    parameters: int
    state: int
    samples_per_second: float
    device: str
    step_ms: float
    hop: int
    streams: bool


def find(paths: Sequence[Path]) -> list[Run]:
    """The finished runs in these folders; a folder may be a run, or contain runs at any depth.

    Raises:
        RunError: one of them holds no finished run.
    """
    runs: dict[Path, Run] = {}
    for path in paths:
        if not path.is_dir():
            raise RunError(f"{path}: no such folder; expected a run, or a folder of runs")
        found = (file.parent for file in below(path, (RECIPE,)) if file.name == RECIPE)
        inside = [folder for folder in found if (folder / SUMMARY).is_file()]
        if not inside:
            raise RunError(f"{path}: no finished run in it; expected {RECIPE} and {SUMMARY}")
        runs |= {folder.resolve(): Run(folder) for folder in inside}
    return list(runs.values())


def rows(runs: Sequence[Run]) -> list[Row]:
    """A row for each setting, in the order of `runs`.

    Raises:
        RunError: the runs are of different tasks.
    """
    tasks = sorted({run.recipe.task.name for run in runs})
    if len(tasks) > 1:
        raise RunError(f"runs of different tasks ({', '.join(tasks)}) have no metric in common")
    groups: dict[str, list[Run]] = {}
    for run in runs:
        content = OmegaConf.merge(run.config, {"seed": 0, "about": ""})
        groups.setdefault(json.dumps(OmegaConf.to_container(content), sort_keys=True), []).append(run)
    labels = _labels([group[0] for group in groups.values()])
    return [_row(label, group) for label, group in zip(labels, groups.values(), strict=True)]


def _row(label: str, runs: Sequence[Run]) -> Row:
    summaries = [run.summary() for run in runs]
    shared = set.intersection(*(set(s["metrics"]) for s in summaries))
    series = {
        key.removeprefix("test/"): [s["metrics"][key] for s in summaries]
        for key in sorted(shared)
        if key.startswith("test/")
    }
    metrics = {key: (mean(v), stdev(v) if len(v) > 1 else None) for key, v in series.items()}
    metric = TASKS[runs[0].recipe.task.name].headline(metrics)
    if metric not in metrics:
        raise RunError(f"{runs[0].path / SUMMARY}: no test/{metric} in it; train it again")
    value, spread = metrics[metric]
    if len(runs) == 1:
        spread = metrics.get(f"{metric}_stderr", (None,))[0]
    task = runs[0].task()
    size, step, streams = _step(task.model, task.spec)
    return Row(
        label=label,
        metric=metric,
        value=value,
        spread=spread,
        spread_of="sd" if len(runs) > 1 else "se",
        runs=len(runs),
        metrics=metrics,
        parameters=summaries[0]["parameters"],
        state=size,
        samples_per_second=mean(s["samples_per_second"] for s in summaries),
        device=summaries[0]["device"],
        step_ms=step,
        hop=task.model.hop,
        streams=streams,
    )


@torch.no_grad()
def _step(model: Model, spec: DataSpec) -> tuple[int, float, bool]:
    """Floats of state, ms of a hop, and whether the model streams (else both are of its forward layers)."""
    try:
        state = model.init_state(1)
    except StreamError:
        layers = list(_outermost(model))
        inputs = [torch.randn(1, layer.d_model) for layer in layers]
        states = [layer.init_state(1) for layer in layers]

        def run() -> None:
            for layer, x, state in zip(layers, inputs, states, strict=True):
                layer.step(x, state)

        return sum(layer.state_size for layer in layers), median_ms(run, "cpu", REPEATS), False
    shape = (1, model.hop) if spec.tokens else (1, model.hop, spec.d_input)
    x = torch.randint(spec.d_input, shape) if spec.tokens else torch.randn(shape)
    step = getattr(model, "step", None) if model.hop == 1 else None

    def hop() -> Any:
        return model(x, state) if step is None else step(x[:, 0], state)

    size = sum(leaf.numel() for leaf in tree_leaves(state) if isinstance(leaf, Tensor))
    return size, median_ms(hop, "cpu", REPEATS), True


def _outermost(module: nn.Module) -> Iterator[Layer]:
    """The layers that are not inside another layer; of a bidirectional layer only the forward one."""
    for child in module.children():
        if isinstance(child, Bidirectional):
            yield child.ahead
        elif isinstance(child, Layer):
            yield child
        else:
            yield from _outermost(child)


def _labels(runs: Sequence[Run]) -> list[str]:
    """A label for each row: layer, or recipe and layer; and, if two are equal, the settings that differ."""
    names = [run.recipe.name for run in runs]
    layers = ["+".join(node.name for _, node in layer_nodes(run.recipe.model.layer)) for run in runs]
    heads = layers
    if len(set(names)) > 1 and len(set(layers)) < len(layers):
        heads = [f"{name} ({layer})" for name, layer in zip(names, layers, strict=True)]
    flat = [dict(_flat(OmegaConf.to_container(run.config))) for run in runs]
    found = []
    for head, own in zip(heads, flat, strict=True):
        alike = [other for h, other in zip(heads, flat, strict=True) if h == head]
        keys = [k for k in own if k not in ("seed", "about") and any(own[k] != o.get(k) for o in alike)]
        found.append(" ".join([head, *(f"{key.rpartition('.')[2]}={own[key]}" for key in keys)]))
    return found


def _flat(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(content, dict):
        for key, value in content.items():
            yield from _flat(value, f"{prefix}.{key}" if prefix else str(key))
    else:
        yield prefix, str(content)


def cells(row: Row) -> tuple[str, ...]:
    """A row as text, in the order of `columns`."""
    spread = "" if row.spread is None else f" ± {row.spread:.2g}"
    about = f" ({row.runs} seeds)" if row.runs > 1 else ""
    mark = "" if row.streams else "~"
    return (
        row.label,
        f"{row.value:.4g}{spread}{about}",
        f"{row.parameters:,}",
        f"{mark}{row.state:,}",
        f"{row.samples_per_second:.4g} ({row.device})",
        f"{mark}{row.step_ms:.3g}" + (f" per {row.hop} samples" if row.hop > 1 else ""),
    )


def columns(found: Sequence[Row]) -> tuple[str, ...]:
    spread = "/".join(sorted({row.spread_of for row in found if row.spread is not None}, reverse=True))
    metric = f"{found[0].metric}{f' ± {spread}' if spread else ''}"
    return ("", metric, "parameters", "state (floats)", "training samples/s", "step (ms, CPU here)")
