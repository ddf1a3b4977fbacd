"""What tests of several folders share: errors, small recipes, runs, trainings cut short, the docs' code."""

import csv
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

from lrnnx_app import recipe
from lrnnx_app.errors import RecipeError, UserError
from lrnnx_app.models._base import Model
from lrnnx_app.ops import _compilers, _extension
from lrnnx_app.ops._table import TOLERANCE as ROUNDING
from lrnnx_app.registry import LAYERS, MODELS, TASKS
from lrnnx_app.runs import sealed
from lrnnx_app.runs.checkpoint_file import read_checkpoint, step_of
from lrnnx_app.runs.folder import CHECKPOINTS, LAST, RECIPE
from lrnnx_app.runs.run import build
from lrnnx_app.spec import Batch, DataSpec
from lrnnx_app.tasks._base import Task
from lrnnx_app.train import fit

ROOT = Path(__file__).parents[1]  # of the checkout
DOCS = ROOT / "lrnnx_app" / "docs"
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FILE = re.compile(r"# (\w+\.\w+)\n")  # the first line of a block that is a whole file
# Of `relative`, for the same numbers on two ways through a layer or a model.
TOLERANCE = {torch.float64: 1e4 * ROUNDING[torch.float64], torch.float32: 10 * ROUNDING[torch.float32]}
HYBRID = "rglru+local_attention"
FORMS = [(name, form) for name, entry in MODELS.items() for form in entry.forms]
each_form = pytest.mark.parametrize(("name", "form"), FORMS, ids=str)
SMALL = [
    "trainer.max_steps=3",
    "trainer.checkpoint_every=1",
    "trainer.log_every=1",
    "trainer.validate_every=1",
    "trainer.accelerator=cpu",
    "data.batch_size=2",
]
TINY = ["model.d_model=8", "model.depth=1", "data.batch_size=600", "trainer.accelerator=cpu"]  # of digits
DENOISE = [
    "denoise_lru",
    *SMALL,
    "model.channels=[8,8]",
    "model.strides=[16,16]",
    "data.seconds=0.2",
    "data.examples_per_epoch=4",
    "data.mixtures=1",
]


def blocks(document: Path) -> list[tuple[str, str, str]]:
    """Language, name of the file that it is or "", and content of each code block of a Markdown file."""
    found = []
    for language, content in BLOCK.findall(document.read_text("utf-8")):
        named = FILE.match(content)
        found.append((language, named[1], content[named.end() :]) if named else (language, "", content))
    return found


def small(name: str, **more: Any) -> Any:
    """The Config of a layer's first example, as in a recipe; a list of them for names joined by '+'."""
    if "+" in name:
        return [small(part, **more) for part in name.split("+")]
    return LAYERS.config(name, **{**LAYERS[name].examples[0], **more})


def small_model(name: str, layer: str = "lru", rule: str = "", **form: Any) -> Model:
    """A small model, of several channels if it takes them; a mask that starts near one is off it."""
    config = small(layer, rule=rule) if rule else small(layer)
    entry, config = MODELS[name], MODELS.config(name, layer=config, **{**MODELS[name].small, **form})
    try:
        model = entry(DataSpec(3, 5), config)
    except RecipeError:
        model = entry(DataSpec(1, 1), config)
    if isinstance(mask := getattr(model, "mask", None), torch.nn.Linear):
        torch.nn.init.normal_(mask.weight)
    return model.eval()


@contextmanager
def refused(kind: type[UserError], *words: str, match: str | None = None) -> Iterator[None]:
    """What is done raises an error of one line to show, with these words in it."""
    with pytest.raises(kind, match=match) as caught:
        yield
    said = str(caught.value)
    assert said.isprintable()
    assert [word for word in words if word not in said] == [], said


@cache
def example(name: str) -> str:
    """The file of that name in `lrnnx docs extend`."""
    return next(content for _, file, content in blocks(DOCS / "extend.md") if file == name)


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    """‖value − expected‖ / ‖expected‖."""
    difference, size = (float(x.detach().norm()) for x in (value - expected, expected))
    return difference / max(size, 1e-300)


@cache
def compiles() -> bool:
    """Whether there is a C++ compiler that works, without which kernels cannot be built."""
    try:
        command = [_compilers.host_compiler(), "-x", "c++", "-E", os.devnull]
    except _compilers.BuildError:
        return False
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


def needs_kernels(device: str) -> None:
    """Skip a test about kernels where they are switched off; elsewhere they must load."""
    if device not in _extension.wanted():
        pytest.skip("kernels are switched off, as they are without a compiler")
    assert _extension.load(device), _extension.status(device)


def trained(folder: Path, name: str, words: Sequence[str], seconds: float = 300) -> Path:
    """A run folder, trained once for the module by the real command, in so many seconds at most."""
    path = folder / name
    if not path.exists():
        command = [sys.executable, "-m", "lrnnx_app.cli", "train", *words, "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds)
        assert done.returncode == 0, done.stderr
        assert "Next: lrnnx" in done.stdout
    return path


def untrained(path: Path, source: str, *overrides: str) -> Path:
    """A run folder of a recipe with the weights at its start."""
    config = recipe.load(source, overrides)
    task = build(recipe.typed(config))[1]
    content: dict[str, Any] = {"state_dict": task.state_dict(), "global_step": 1}
    task.on_save_checkpoint(content)
    sealed.write(content, path / CHECKPOINTS / LAST)
    (path / RECIPE).write_text(OmegaConf.to_yaml(config))
    return path


def digits(epochs: int) -> list[str]:
    """A short training with noise and dropout, four steps in an epoch, each with a checkpoint."""
    return [
        "digits_lru",
        f"trainer.max_epochs={epochs}",
        "trainer.checkpoint_every=1",
        "trainer.log_every=1",
        "trainer.accelerator=cpu",
        "data.batch_size=324",
        "data.workers=1",
        "data.noise=0.1",
        "model.d_model=8",
        "model.depth=1",
        "model.dropout=0.2",
    ]


def started(*words: object) -> subprocess.Popen[str]:
    """`lrnnx train` with these words, in a process group of its own."""
    command = [sys.executable, "-m", "lrnnx_app.cli", "train", *map(str, words)]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, process_group=0
    )


def children(process: int) -> list[int]:
    """The processes that one has started."""
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]


def in_step(task: type[Task], step: int, do: Callable[[], object], patch: pytest.MonkeyPatch) -> None:
    """Call `do` in the training step of that number."""
    whole = task.training_step

    def interfered(self: Task, batch: Batch, batch_idx: int) -> torch.Tensor:
        if self.global_step == step:
            do()
        return whole(self, batch, batch_idx)

    patch.setattr(task, "training_step", interfered)


def cut(config: DictConfig, run: Path, step: int) -> None:
    """Train, or go on, until the power goes after optimizer step `step`."""

    def fail() -> None:
        raise RuntimeError("power cut")

    with pytest.MonkeyPatch.context() as patch:
        in_step(TASKS[config.task.name], step, fail, patch)
        with pytest.raises(RuntimeError, match="power cut"):
            fit.train(config, *((None, run) if run.exists() else (run,)))


def wait_for_progress(run: Path, process: subprocess.Popen[str], seen: int) -> None:
    """Until a checkpoint beyond step `seen` is there, or the process has ended."""
    while process.poll() is None and latest(run) <= seen:
        time.sleep(0.002)


def latest(run: Path) -> int:
    """The step of a run's newest checkpoint, 0 if there is none."""
    return max(map(step_of, (run / "checkpoints").glob("step_*")), default=0)


def rows(run: Path) -> list[dict[str, str]]:
    """metrics.csv without what depends on the clock."""
    with (run / "metrics.csv").open(newline="") as file:
        found = csv.DictReader(file)
        return [
            {k: v for k, v in row.items() if not k.endswith(("_second", "_utilization"))} for row in found
        ]


def same(run: Path, other: Path) -> None:
    """Equal weights, optimizer states and schedules bit for bit, the same best weights, the same metrics."""
    for name in ("last", "best"):
        one, two = (read_checkpoint(path / "checkpoints" / f"{name}.ckpt") for path in (run, other))
        assert one["global_step"] == two["global_step"]
        assert one["state_dict"].keys() == two["state_dict"].keys()
        for key, value in one["state_dict"].items():
            assert torch.equal(value, two["state_dict"][key]), key
        states = [end["optimizer_states"][0]["state"] for end in (one, two)]
        for index, state in states[0].items():
            assert all(torch.equal(value, states[1][index][key]) for key, value in state.items())
        assert one["lr_schedulers"] == two["lr_schedulers"]
    assert rows(run) == rows(other)


def again_without_kernels(file: str, chosen: str = "") -> None:
    """Run a test file, or those of its tests that pytest's -k chooses, where operators are torch code."""
    if os.environ.get("LRNNX_BUILD") == "off":
        return  # this is what the others have tested
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-k", chosen, file]
    alone = {key: value for key, value in os.environ.items() if not key.startswith("PYTEST_")}
    done = subprocess.run(
        command, env={**alone, "LRNNX_BUILD": "off"}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:]
