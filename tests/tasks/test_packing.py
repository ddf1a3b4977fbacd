"""Packed examples: each model takes them as it takes them apart, or says at once that it does not."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lrnnx_app import recipe as recipes
from lrnnx_app.data.module import collate, pack
from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._examples import examples
from lrnnx_app.registry import DATA, LAYERS, MODELS, TASKS, shipped
from lrnnx_app.runs import run
from lrnnx_app.runs.run import check_packing
from lrnnx_app.spec import Batch, DataSpec, Example
from lrnnx_app.train import fit, grid
from tests.helpers import TOLERANCE, relative

PACKING = [name for name in MODELS if MODELS[name].packs]
LENGTHS = (5, 2, 3, 1, 4)
SPEC = DataSpec(2, 3)
POOLS = {"classify": ("mean", "last"), "predict": ("none",)}
UNPOOLED = {"language": {"tied": False}}  # models whose output has a time axis, and their options here
CASES = [
    (task, model, case, options)
    for task in TASKS
    if TASKS[task].packs
    for model in PACKING
    for name in LAYERS
    for case in examples(name)[:1]
    for pool in POOLS[task]
    if model not in UNPOOLED or pool == "none"
    for options in (UNPOOLED.get(model, {"pool": pool}),)
]


def build(task: str, model: str, case: Any, options: dict[str, Any]) -> Any:
    torch.manual_seed(0)
    layer = LAYERS.config(case.name, **case.options)
    config = MODELS.config(model, d_model=4, depth=2, layer=layer, **options)
    built = TASKS[task](TASKS[task].Config(), config, SPEC).double()
    built.meters()
    built.log = built.log_dict = lambda *_, **__: None  # which only a trainer takes
    return built


def rows(task: str, timed: bool) -> list[Example]:
    torch.manual_seed(1)
    found = []
    for length in LENGTHS:
        x, dt = torch.randn(length, 2).double(), torch.rand(length).double() if timed else None
        y = torch.randint(3, ()) if task == "classify" else torch.randn(length, 3).double()
        found.append(Example(x, y, dt, str(length)))
    return found


def loss(task: Any, batch: Batch) -> Tensor:
    return task.training_step(batch, 0)


@pytest.mark.parametrize(("task", "model", "case", "options"), CASES, ids=lambda value: str(value))
def test_packed_is_separate(task, model, case, options):
    timed = LAYERS[case.name].uses_dt
    given, built = rows(task, timed), build(task, model, case, options)
    packed = pack(given)
    assert packed.reset is not None
    assert packed.x.shape[:2] == (3, 5)
    assert sorted(packed.names) == sorted(example.name for example in given)
    weights = [1 if task == "classify" else len(example.x) for example in given]
    apart = sum(w * loss(built, collate([e])) for w, e in zip(weights, given, strict=True)) / sum(weights)
    assert relative(loss(built, packed), apart) < TOLERANCE[torch.float32]  # which tasks take losses in


def test_every_pair_says_whether_it_takes_packed_rows(tmp_path, monkeypatch):
    """Of all recipes; those that do not are refused before their data are looked at."""
    monkeypatch.setattr(run, "build_data", lambda _: pytest.fail("the data were looked at"))
    refused: dict[tuple[str, str], str] = {}
    for name in shipped():
        config = recipes.load(name, ["data.pack=true"])
        model, task = config.model.name, config.task.name
        if MODELS[model].packs and TASKS[task].packs:
            check_packing(recipes.typed(config))
            continue
        if (model, task) in refused:
            continue
        refused[model, task] = name
        with pytest.raises(
            RecipeError, match=r"^data\.pack: .* takes one example a row; expected false, or \w+\.name"
        ) as said:
            fit.train(config, tmp_path / name)
        assert "\n" not in str(said.value)
    assert {model for model, _ in refused} >= set(MODELS) - set(PACKING)
    with pytest.raises(RecipeError, match=r"^data\.pack"):
        grid.run(refused.popitem()[1], grid.cells(["data.pack=true"], [0, 1]), tmp_path / "grid")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name in MODELS if name not in PACKING])
def test_a_model_that_takes_one_sequence_a_row_says_so(name):
    layer = LAYERS.config("lru", d_state=4)
    model = MODELS[name](DataSpec(1, 1), MODELS.config(name, layer=layer))
    with pytest.raises(ValueError, match="one sequence a row"):
        model(torch.zeros(1, 4, 1), reset=torch.zeros(1, 4, dtype=torch.bool))


def test_sources_of_batches_are_packed_too():
    config = DATA.config("image_sequence", batch_size=3, pack=True)
    batch = next(iter(DATA["image_sequence"](config).loader("train")))
    assert batch.reset.sum(1).tolist() == [1, 1, 1]  # all are as long as the row
    assert batch.reset[:, 0].all()


def test_buckets_want_lengths():
    config = DATA.config("image_sequence", bucket=True)
    with pytest.raises(RecipeError, match=r"^data\.bucket: .*; expected false$"):
        DATA["image_sequence"](config).loader("train")
