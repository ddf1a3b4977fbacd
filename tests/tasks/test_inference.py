"""A task says what inference is: every one of the registry, and one of a user's own in a single file."""

import json
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

import data_modules
from lrnnx_app import tasks
from lrnnx_app.data.module import collate
from lrnnx_app.infer.start import ERRORS, JOBS
from lrnnx_app.registry import DATA, TASKS
from lrnnx_app.spec import TARGETS, DataSpec, Example
from lrnnx_app.tasks._base import Task

LEVELS = '''
"""Series of one channel in text files, and their mean and spread."""
from dataclasses import dataclass
import numpy as np, torch
from lrnnx_app.data.module import DataModule
from lrnnx_app.errors import DataError
from lrnnx_app.spec import DataSpec, Example

class Drawn:
    def __len__(self): return 24
    def example(self, index, rng):
        x = torch.tensor(rng.normal(index % 3, 1 + index % 2, (20, 1)), dtype=torch.float32)
        return Example(x, torch.tensor([x.mean(), x.std()]), name=str(index))

class Levels(DataModule):
    @dataclass
    class Config(DataModule.Config):
        pass
    spec = DataSpec(1, 2, target="vector")
    def source(self, split): return Drawn()
    def read(self, path):
        return Example(torch.tensor(np.loadtxt(path), dtype=torch.float32)[:, None], torch.zeros(2))
'''
REGRESS = '''
"""Numbers for a whole series, judged by their squared error."""
from dataclasses import dataclass
from lrnnx_app.tasks._base import Meaning, Task

class Regress(Task):
    monitor, mode, score = "valid/loss", "min", "loss"
    targets = ("vector",)
    @dataclass
    class Config(Task.Config):
        pass
    def _loss(self, batch, split):
        y, _ = self.model(batch.x, lengths=batch.lengths)
        loss = (y - batch.y).square().mean()
        self.log(f"{split}/loss", loss, batch_size=len(batch.y))
        return loss
    def training_step(self, batch, index): return self._loss(batch, "train")
    def validation_step(self, batch, index): self._loss(batch, "valid")
    def test_step(self, batch, index): self._loss(batch, "test")
'''
SHOWN = """
    inference = "meaning"
    def meaning(self, output):
        values = dict(zip(("mean", "spread"), output.tolist()))
        return Meaning(values, "value", "values", f"mean {values['mean']:.3f}")
"""
RECIPE = """
task: {name: regress}
model: {name: backbone, d_model: 8, depth: 1, layer: {name: lru}}
data: {name: levels, batch_size: 8}
trainer: {max_epochs: 1, accelerator: cpu}
"""


@pytest.fixture(params=(SHOWN, ""), ids=("shown", "silent"))
def run(request, tmp_path: Path, lrnnx, monkeypatch) -> Path:
    """A trained run of a task and data that one file each has brought."""
    for registry, package, name, code in (
        (TASKS, tasks, "regress", REGRESS + request.param),
        (DATA, data_modules, "levels", LEVELS),
    ):
        folder = tmp_path / registry.kind
        folder.mkdir()
        (folder / f"{name}.py").write_text(code)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.setattr(package.__spec__, "submodule_search_locations", package.__path__)
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)
    (tmp_path / "levels.yaml").write_text(RECIPE)
    (tmp_path / "a.txt").write_text("1\n2\n3\n")
    done = lrnnx("train", tmp_path / "levels.yaml", "-o", tmp_path / "run")
    assert done.code == 0, done.error
    assert f"Next: lrnnx evaluate {tmp_path / 'run'}" in done.out
    return tmp_path / "run"


@pytest.mark.parametrize("name", TASKS)
def test_a_task_says_what_inference_is(name):
    task = TASKS[name]
    assert task.inference in ("", ERRORS, *JOBS)
    assert set(task.targets) <= set(TARGETS)
    assert "{run}" in task.next_words
    means = task.inference == "meaning"
    assert (task.meaning is not Task.meaning) == means
    assert (task.errors_from is not Task.errors_from) == (task.inference == ERRORS)


def test_what_an_output_means_is_shown_as_the_task_says(run, lrnnx, request):
    if "silent" in request.node.name:
        refused = lrnnx("infer", run, run.parent / "a.txt")
        assert refused.code == 2
        assert refused.error == (
            f"error: {run}: the task regress has no inference; `lrnnx evaluate` measures the run\n"
        )
        return
    whole = lrnnx("infer", run, run.parent / "a.txt", "--json")
    values = json.loads(whole.out.splitlines()[0])
    assert whole.code == 0
    assert list(values["values"]) == ["mean", "spread"]
    table = lrnnx("infer", run, run.parent / "a.txt").out.split()
    assert table[1] == "value"
    assert table[table.index("mean") + 1] == f"{values['values']['mean']:.3g}"
    picture = run.parent / "a.png"
    steps = lrnnx("infer", run, run.parent / "a.txt", "--running", "--steps", 1, "--plot", picture)
    lines = [line.split() for line in steps.out.splitlines()]
    assert [float(line[1]) for line in lines] == [1, 2, 3]
    assert lines[-1][2:] == ["mean", f"{values['values']['mean']:.3f}"]
    assert picture.is_file()


def test_targets_that_a_task_does_not_learn_are_refused(lrnnx):
    refused = lrnnx("train", "samples_s4d_mini", "task.name=classify", "--dry-run")
    assert refused.code == 2
    assert refused.error == (
        "error: task.name: classify learns the index of a class (class); "
        "these data give numbers (T, d_output), or tokens (T,), for every step (step)\n"
    )


def test_vectors_of_whole_examples_are_stacked():
    rows = [Example(torch.ones(n, 1), torch.tensor([1.0, 2.0])) for n in (3, 5)]
    batch = collate(rows)
    assert batch.y.shape == (2, 2)
    assert batch.lengths is not None


@pytest.mark.parametrize("target", ["", *TARGETS])
def test_the_kind_of_target_is_kept_in_a_checkpoint(target):
    spec = DataSpec(1, 2, target=target)
    assert DataSpec.read(asdict(spec)) == spec
    old = asdict(spec)
    del old["target"]
    assert DataSpec.read(old).target == ""
    with pytest.raises(ValueError, match="target of kind 'else'"):
        DataSpec.read({**old, "target": "else"})
