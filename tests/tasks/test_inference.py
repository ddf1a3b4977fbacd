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
from tests.helpers import example

SHOWS = '    inference = "meaning"\n'
RECIPE = """
task: {name: regress}
model: {name: backbone, d_model: 8, depth: 1, layer: {name: lru}}
data: {name: levels, batch_size: 8}
trainer: {max_epochs: 1, accelerator: cpu}
"""


@pytest.fixture(params=(SHOWS, ""), ids=("shown", "silent"))
def run(request, tmp_path: Path, lrnnx, monkeypatch) -> Path:
    """A trained run of a task and data that one file each has brought."""
    for registry, package, name, code in (
        (TASKS, tasks, "regress", example("regress.py").replace(SHOWS, request.param)),
        (DATA, data_modules, "levels", example("levels.py")),
    ):
        folder = tmp_path / registry.kind
        folder.mkdir()
        (folder / f"{name}.py").write_text(code)
        monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
        monkeypatch.setattr(package.__spec__, "submodule_search_locations", package.__path__)
        monkeypatch.delitem(sys.modules, f"{package.__name__}.{name}", raising=False)
    (tmp_path / "levels.yaml").write_text(RECIPE)
    (tmp_path / "a.txt").write_text("1\n2\n3\n")
    done = lrnnx("train", tmp_path / "levels.yaml", "-o", tmp_path / "run").done()
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
