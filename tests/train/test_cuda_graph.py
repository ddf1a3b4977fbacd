"""Training by CUDA graphs takes the steps that training without them takes."""

import pytest
import torch

from lrnnx_app.errors import RecipeError
from lrnnx_app.recipe import load, typed
from lrnnx_app.registry import shipped
from lrnnx_app.runs.checkpoint_file import read_checkpoint
from lrnnx_app.runs.run import build_data, build_task
from lrnnx_app.train import cuda_graph, fit

DIGITS = {name for name in shipped() if name.startswith("digits_")}


@pytest.fixture
def captures(monkeypatch):
    """How often passes were captured."""
    count, replay = [], cuda_graph.replay

    def counted(model, x):
        count.append(tuple(x.shape))
        replay(model, x)

    monkeypatch.setattr(cuda_graph, "replay", counted)
    return count


def weights(folder, recipe, *options):
    config = load(recipe, [*options, "trainer.max_steps=8"])
    fit.train(config, folder)
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize(
    "recipe",
    ["denoise_attenuate", "denoise_lru", "text_s6_mini", *sorted(DIGITS - {"digits_gru", "digits_s4"})],
)
def test_steps_are_the_same(recipe, precision, tmp_path, captures):
    options = ["model.dropout=0", f"trainer.precision={precision}"]
    eager = weights(tmp_path / "eager", recipe, *options, "trainer.graph=false")
    assert not captures
    graph = weights(tmp_path / "graph", recipe, *options, "trainer.graph=true")
    assert len(captures) == 1
    still = ["task.lr=0", "task.ssm_lr=0", "task.weight_decay=0"]
    start = weights(tmp_path / "start", recipe, *options, *still)
    apart, moved = distance(graph, eager), distance(eager, start)
    assert apart <= (1e-3 if precision == "32-true" else 5e-2) * moved


@pytest.mark.parametrize(("name", "expected"), [("lru", True), ("gru", False), ("s4", False)])
@pytest.mark.parametrize("both", ["false", "true"])
def test_layers_say_whether_they_can_be_captured(name, expected, both):
    recipe = typed(load(f"digits_{name}", [f"model.bidirectional={both}"]))
    assert cuda_graph.capturable(build_task(recipe, build_data(recipe).spec).model) == expected


def test_a_refusal_is_one_line(monkeypatch):
    def refuse(*_):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", refuse)
    with pytest.raises(RecipeError, match=r"trainer\.graph: .* \(operation not permitted\)$"):
        cuda_graph.replay(torch.nn.Linear(1, 1), torch.ones(1))


def distance(a, b):
    return sum((a[k] - v).double().square().sum() for k, v in b.items() if v.is_floating_point()).sqrt()


@pytest.mark.filterwarnings("ignore:GPU available but not used")
def test_elsewhere_nothing_changes(tmp_path, captures):
    options = ["trainer.accelerator=cpu", "data.batch_size=4"]
    usual = weights(tmp_path / "usual", "digits_lru", *options)
    graph = weights(tmp_path / "graph", "digits_lru", *options, "trainer.graph=true")
    assert not captures
    assert all(torch.equal(graph[k], v) for k, v in usual.items())
