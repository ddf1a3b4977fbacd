"""Training by CUDA graphs takes the steps that training without them takes."""

from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
import torch

from lrnnx_app.ops import capture
from lrnnx_app.recipe import find, load, read_yaml, typed
from lrnnx_app.registry import LAYERS, shipped
from lrnnx_app.runs.checkpoint_file import read_checkpoint
from lrnnx_app.runs.run import build_data
from lrnnx_app.spec import Rows
from lrnnx_app.train import cuda_graph, fit
from tests.cli.test_recipes_shipped import layers_of, needs_root

OWN_DATA = [name for name in shipped() if not needs_root(name)]
ITERATING = [  # as often as values ask for, which a graph cannot know
    name
    for name in OWN_DATA
    if any(hasattr(LAYERS[layer].Config, "max_iterations") for layer in layers_of(name))
]


def one_of_each() -> list[str]:
    """Recipes that differ in task, data, model or layers."""
    found: dict[tuple[str, ...], str] = {}
    for name in OWN_DATA:
        config = read_yaml(find(name))
        kinds = (config[part]["name"] for part in ("task", "data", "model"))
        found.setdefault((*kinds, *sorted(layers_of(name))), name)
    return [name for name in found.values() if name not in ITERATING]


@pytest.fixture
def captures(monkeypatch):
    """How often passes were captured."""
    count, replay = [], cuda_graph.replay

    def counted(model, x, dtype):
        count.append(tuple(x.shape))
        replay(model, x, dtype)

    monkeypatch.setattr(cuda_graph, "replay", counted)
    return count


def weights(folder, recipe, *options):
    config = load(recipe, [*options, "trainer.max_steps=8"])
    fit.train(config, folder)
    return read_checkpoint(folder / "checkpoints" / "last.ckpt")["state_dict"]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recipe", ITERATING)
def test_layers_that_wait_for_values_train_without(recipe, tmp_path, capsys):
    weights(tmp_path, recipe, "trainer.graph=true")
    assert "training without a CUDA graph: " in capsys.readouterr().err


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("recipe", one_of_each())
def test_steps_are_the_same(recipe, precision, tmp_path, captures, capsys):
    options = ["model.dropout=0", f"trainer.precision={precision}"]
    eager = weights(tmp_path / "eager", recipe, *options, "trainer.graph=false")
    assert not captures
    graph = weights(tmp_path / "graph", recipe, *options, "trainer.graph=true")
    batch = next(iter(build_data(typed(load(recipe))).loader("train")))
    assert len(captures) == batch.rows.plain  # padding and elapsed times are for no graph
    assert "without a CUDA graph" not in capsys.readouterr().err
    still = ["task.lr=0", "task.ssm_lr=0", "task.weight_decay=0"]
    start = weights(tmp_path / "start", recipe, *options, *still)
    apart, moved = distance(graph, eager), distance(eager, start)
    assert apart <= (1e-3 if precision == "32-true" else 5e-2) * moved


@pytest.fixture
def refused(monkeypatch):
    """The first step of a training on a GPU, whose passes no graph can hold."""

    def refuse(*_):
        raise RuntimeError("operation not permitted\nwhen stream is capturing")

    for name in ("device", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(capture, "_tried", refuse)
    model = torch.nn.Linear(1, 1)
    batch = SimpleNamespace(x=SimpleNamespace(is_cuda=True, shape=(1,), device="cuda"), rows=Rows())

    def start(trainer):
        settings = SimpleNamespace(graph=True, precision="32-true")
        cuda_graph.GraphReplay(model, settings).on_train_batch_start(trainer, model, batch, 0)
        assert "forward" not in vars(model)

    return start


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_what_no_graph_holds_trains_without_one_and_says_why(refused, capsys):
    refused(SimpleNamespace(world_size=1, accumulate_grad_batches=1))
    assert capsys.readouterr().err == "training without a CUDA graph: operation not permitted\n"


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
def test_graphs_can_be_switched_off(refused, capsys, monkeypatch):
    monkeypatch.setenv(capture.OFF, "off")
    refused(SimpleNamespace(world_size=1, accumulate_grad_batches=1))
    assert capsys.readouterr().err == "training without a CUDA graph: switched off by LRNNX_GRAPHS=off\n"
    with pytest.raises(capture.CaptureError, match="LRNNX_GRAPHS=off"):
        capture.capture(lambda: torch.ones(1), torch.device("cuda"))


def distance(a, b):
    return sum((a[k] - v).double().square().sum() for k, v in b.items() if v.is_floating_point()).sqrt()


def test_elsewhere_nothing_changes(tmp_path, captures):
    options = ["trainer.accelerator=cpu", "data.batch_size=4"]
    usual = weights(tmp_path / "usual", "digits_lru", *options)
    graph = weights(tmp_path / "graph", "digits_lru", *options, "trainer.graph=true")
    assert not captures
    assert all(torch.equal(graph[k], v) for k, v in usual.items())


def test_a_capture_forbids_nothing_to_other_threads():
    """A loader's thread pins memory meanwhile, which a capture in torch's own mode forbids to all threads."""
    before = torch.cuda.graph
    with capture._own_thread():
        assert torch.cuda.graph.keywords == {"capture_error_mode": "thread_local"}
    assert torch.cuda.graph is before
