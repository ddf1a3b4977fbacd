"""The properties of the layers in a plugin's file, as `lrnnx doctor --plugin` shows them."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lrnnx_app.layers._properties import PROPERTIES, trials
from lrnnx_app.registry import LAYERS


def checked(paths: Sequence[Path]) -> list[dict[str, Any]]:
    """A row for each property of each layer in files that are loaded: trials, failures, the first reason."""
    names = [path.stem for path in paths if LAYERS.origins().get(path.stem) == path.name]
    return [row for name in dict.fromkeys(names) for row in _rows(name)]


def _rows(name: str) -> list[dict[str, Any]]:
    rows = {
        label: {
            "layer": name,
            "property": label.replace("_", " "),
            "trials": 0,
            "failed": 0,
            "ok": True,
        }
        for label in PROPERTIES
    }
    for trial in trials(name):
        row = rows[trial.name]
        row["trials"] += 1
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                trial.run()
        except Exception as error:  # whatever a stranger's layer does
            row["failed"] += 1
            reason = (str(error).splitlines() or [""])[0] or type(error).__name__
            row["ok"] = False
            row.setdefault("first", f"{trial.case}: {reason}")
    return [row for row in rows.values() if row["trials"]]
