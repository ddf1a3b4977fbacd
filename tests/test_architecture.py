"""Which room of the package may import which, and what stays out of a streaming session.

A room is a folder of `lrnnx_app`, one of its loose modules, or `data_modules`. They are printed floor by
floor, with their lines and arrows, by `python -m tests.test_architecture`.
"""

import ast
import importlib
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from lrnnx_app.train.internals import PLACES
from tests.helpers import ROOT

PACKAGES = ("lrnnx_app", "data_modules")
ENTRY = "lrnnx_app"  # the room of the package's own __init__, which only names what is elsewhere
LOOSE = {"cli", "errors", "machine", "plots", "plugins", "recipe", "registry", "spec"}

# room -> the rooms that it may import; each arrow is one that the code has
ARROWS: dict[str, set[str]] = {
    ENTRY: set(),
    "errors": set(),
    "spec": set(),
    "machine": {"errors"},
    "plugins": {"errors"},
    "registry": {"errors", "plugins"},
    "console": {"errors", "machine", "registry"},
    "disk": {"console", "errors"},
    "recipe": {"disk", "errors", "plugins", "registry"},
    "plots": {"console", "disk", "errors", "spec"},
    "ops": {"disk", "errors", "registry", "spec"},
    "layers": {"errors", "ops", "registry", "spec"},
    "interop": {"errors", "layers", "ops", "registry"},
    "models": {"errors", "layers", "ops", "recipe", "registry", "spec"},
    "tasks": {"errors", "layers", "plots", "registry", "spec"},
    "data": {"console", "disk", "errors", "spec"},
    "data_modules": {"data", "disk", "errors", "spec"},
    "streaming": {"console", "data", "disk", "errors", "layers", "models", "ops", "spec"},
    "runs": {"console", "data", "disk", "errors", "recipe", "registry", "spec"},
    "published": {
        *("console", "data", "disk", "errors", "interop", "models", "recipe", "registry", "runs", "spec"),
    },
    "train": {
        *("console", "data", "disk", "errors", "layers", "machine", "models", "ops", "plots", "plugins"),
        *("recipe", "registry", "runs", "spec", "tasks", ENTRY),
    },
    "infer": {
        *("console", "data", "disk", "errors", "machine", "models", "plots", "runs"),
        *("spec", "streaming", "tasks"),
    },
    "serve": {
        *("console", "errors", "machine", "models", "registry", "runs", "streaming", "tasks"),
    },
    "export": {
        *("data", "disk", "errors", "layers", "models", "ops", "plugins", "recipe", "runs", "spec"),
        *("published", "streaming"),
    },
    "reports": {
        *("console", "data", "disk", "errors", "layers", "machine", "models", "ops", "plots", "recipe"),
        *("registry", "runs", "spec"),
    },
    "bench": {
        *(
            "console",
            "data",
            "disk",
            "errors",
            "export",
            "layers",
            "machine",
            "models",
            "ops",
            "plots",
            "recipe",
        ),
        *("registry", "runs", "spec", "streaming", "tasks", "train"),
    },
    "cli": {
        *(
            "bench",
            "console",
            "data",
            "errors",
            "export",
            "infer",
            "plugins",
            "published",
            "recipe",
            "reports",
            "runs",
            "serve",
            "spec",
        ),
        "train",
        ENTRY,
    },
    "__main__": {"cli"},
}
LIGHTNING = {"train", "bench"}  # rooms that may import it
HEAVY = ("lightning", "torchmetrics", "matplotlib", "tensorboard", "torchaudio", "torch._dynamo")


@cache
def modules() -> dict[str, Path]:
    """Dotted name -> file of every module."""
    files = (file for package in PACKAGES for file in sorted((ROOT / package).rglob("*.py")))
    return {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in files
    }


def room(module: str) -> str:
    package, *rest = module.split(".")
    return rest[0] if rest and package == "lrnnx_app" else package


def _imported(tree: ast.AST) -> Iterator[str]:
    """What a module imports at any place, save what only a type checker reads."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None, "imports are absolute"
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from (name if name in modules() else node.module for name in names)
        elif not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            yield from _imported(node)


@cache
def imports() -> dict[str, frozenset[str]]:
    """Module -> all that it imports, of this package or not."""
    return {name: frozenset(_imported(ast.parse(file.read_text()))) for name, file in modules().items()}


def arrows() -> dict[tuple[str, str], list[str]]:
    """(room, imported room) -> the imports that make it."""
    found = defaultdict(list)
    for name, targets in imports().items():
        for target in sorted(targets & modules().keys()):
            if room(name) != room(target):
                found[room(name), room(target)].append(f"{name} imports {target}")
    return dict(found)


def floors(graph: dict[str, set[str]]) -> Iterator[list[str]]:
    """Nodes from the ground up: each floor imports lower ones only. What is left at the end is a circle."""
    rest = dict(graph)
    while rest:
        ready = sorted(name for name, targets in rest.items() if not targets & rest.keys())
        assert ready, f"a circle of imports among {sorted(rest)}"
        yield ready
        for name in ready:
            del rest[name]


def test_rooms_import_only_what_they_may() -> None:
    surprising = [
        line
        for (source, target), lines in arrows().items()
        for line in lines
        if target not in ARROWS.get(source, ())
    ]
    assert not surprising


def test_every_arrow_that_is_allowed_is_there() -> None:
    allowed = {(source, target) for source, targets in ARROWS.items() for target in targets}
    assert sorted(allowed - arrows().keys()) == []


def test_the_rooms_are_those_of_the_table_and_few_are_loose() -> None:
    assert {room(name) for name in modules()} == ARROWS.keys()
    loose = {path.stem for path in (ROOT / "lrnnx_app").glob("*.py")} - {"__init__", "__main__"}
    assert loose == LOOSE
    assert len(loose) <= 8


def test_no_circle_among_rooms_or_modules() -> None:
    assert len(list(floors(ARROWS))) > 5
    graph = {name: set(targets & modules().keys()) - {name} for name, targets in imports().items()}
    assert len(list(floors(graph))) > 5


def test_only_the_command_imports_the_benchmarks() -> None:
    assert [source for source, target in arrows() if target == "bench"] == ["cli"]


def test_lightning_stays_in_its_rooms() -> None:
    found = {
        room(name)
        for name, targets in imports().items()
        if any(target.partition(".")[0] in ("lightning", "pytorch_lightning") for target in targets)
    }
    assert found == LIGHTNING


def test_inference_imports_torch_and_ours_alone() -> None:
    """torch's compiler alone takes a second and 150 MB."""
    code = """
import sys, torch, lrnnx_app.infer.start
from lrnnx_app import Session, load
from lrnnx_app.registry import LAYERS, TASKS
assert all(LAYERS.values()) and all(TASKS.values())
Session(load("denoise")).push(torch.zeros(1, 256, 1))
print(*sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not set(done.stdout.split()) & set(HEAVY)


def _reached(start: Any, path: str) -> Any:
    """What stands at the end of a path, see `internals`."""
    for part in re.findall(r"\.\w+|\[\w+\]|\(\)", path):
        if part == "()":
            start = start()
        elif part[0] == "[":
            start = start[part[1:-1]]
        else:
            start = getattr(start, part[1:])
    return start


@pytest.fixture(scope="module")
def lightning() -> dict[str, Any]:
    """What the paths of `internals.PLACES` begin with."""
    from lightning import Trainer
    from lightning.fabric.plugins.environments import LightningEnvironment
    from lightning.pytorch.callbacks import ModelCheckpoint, TQDMProgressBar
    from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
    from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return {
        "trainer": Trainer(accelerator="cpu", enable_model_summary=False, **quiet),
        "launcher": _SubprocessScriptLauncher(LightningEnvironment(), 1, 1),
        "ddp": DDPStrategy(),
        "fsdp": ModelParallelStrategy(),
        "best": ModelCheckpoint(),
        "bar": TQDMProgressBar(),
    }


@pytest.mark.parametrize("place", PLACES)
def test_the_installed_lightning_has_what_training_leans_on(lightning: dict[str, Any], place: str) -> None:
    start, _, _ = place.partition(".")
    _reached(lightning[start], place.removeprefix(start))


def test_what_training_leans_on_is_listed_and_nowhere_else() -> None:
    """Loops, launchers and schedules of a trainer, and underscored names of Lightning's that ours replace."""
    inner = re.compile(r"\b(?:fit_loop|launcher|lr_scheduler_configs)\b(?:\.\w+)*")
    for name, file in modules().items():
        code = ast.unparse(ast.parse(file.read_text()))  # without comments
        found = {match for match in inner.findall(code) if "." in match}
        if room(name) != "train":
            assert not found, f"{name} looks into Lightning: {found}"
        elif not name.endswith("internals"):
            assert all(any(path in place for place in PLACES) for path in found - {"launcher.procs"}), found
    replaced = set()
    for name in modules():
        if room(name) in LIGHTNING:
            for kind in vars(importlib.import_module(name)).values():
                if isinstance(kind, type) and kind.__module__ == name:
                    bases = [base for base in kind.__mro__ if base.__module__.startswith("lightning.")]
                    taken = {key for base in bases for key in vars(base) if key[0] == "_" and key[:2] != "__"}
                    replaced |= {(room(name), key) for key in vars(kind).keys() & taken}
    listed = {("train", place.rpartition(".")[2]) for place in PLACES}
    assert replaced - {(where, key) for where, key in replaced if key.startswith("_abc")} <= listed


def table() -> list[str]:
    """Rooms from the ground up with their modules, lines and arrows."""
    found = arrows()
    out: dict[str, set[str]] = {room(name): set() for name in modules()}
    for source, target in found:
        out[source].add(target)
    files = defaultdict(list)
    for name, file in modules().items():
        files[room(name)].append(len(file.read_text().splitlines()))
    lines = [f"{'floor':5}  {'room':12}  {'modules':>7}  {'lines':>6}  imports"]
    for floor, names in enumerate(floors(out)):
        lines += [
            f"{floor:5}  {name:12}  {len(files[name]):7}  {sum(files[name]):6}  {' '.join(sorted(out[name]))}"
            for name in names
        ]
    total = sum(map(sum, files.values()))
    return [*lines, f"{len(out)} rooms, {len(found)} arrows, {len(modules())} modules, {total} lines"]


if __name__ == "__main__":
    print(*table(), sep="\n")
