"""The properties of the layers and rules in plugin files, as `lrnnx doctor --plugin` shows them."""

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from lrnnx_app.layers import _properties, _rule_properties
from lrnnx_app.ops.rules import Rule
from lrnnx_app.registry import LAYERS, RULES, Registry

Trials = Iterable[tuple[str, str, Callable[[], None]]]  # the property, what it is tried on, and how


def layers(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """A row for each property of each layer in files that are loaded: trials, failures, the first reason."""
    return [row for name in _in(LAYERS, paths) for row in _rows("layer", name, _of_layer(name))]


def rules(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """The same of each rule, whose properties are its own and those of each layer that takes it."""
    return [row for name in _in(RULES, paths) for row in _rows("rule", name, _of_rule(RULES[name]))]


def _in(registry: Registry, paths: Sequence[Path]) -> list[str]:
    origins = registry.origins()
    return list(dict.fromkeys(path.stem for path in paths if origins.get(path.stem) == path.name))


def _of_layer(name: str) -> Iterator[tuple[str, str, Callable[[], None]]]:
    return ((trial.name, str(trial.case), trial.run) for trial in _properties.trials(name))


def _of_rule(rule: Rule) -> Iterator[tuple[str, str, Callable[[], None]]]:
    for name, check in _rule_properties.PROPERTIES.items():
        yield name, rule.name, partial(check, rule)
    for trial in _rule_properties.contract(rule):
        yield f"a layer: {trial.name}", str(trial.case), trial.run


def _rows(kind: str, name: str, trials: Trials) -> list[dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    for label, tried, run in trials:
        fresh = {kind: name, "property": label.replace("_", " "), "trials": 0, "failed": 0, "ok": True}
        row = rows.setdefault(label, fresh)
        row["trials"] += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                run()
        except Exception as error:  # whatever a stranger's code does
            row["failed"] += 1
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            row["ok"] = False
            row.setdefault("first", f"{tried}: {reason}")
    return list(rows.values())
