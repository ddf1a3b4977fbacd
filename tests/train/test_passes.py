"""Training by CUDA graphs or compiled blocks takes the steps that training without them takes."""

from unittest.mock import MagicMock

import pytest
import torch
from torch._dynamo.backends.debugging import aot_eager
from torch.utils._pytree import tree_leaves

from lrnnx_app.errors import RecipeError
from lrnnx_app.ops import capture
from lrnnx_app.recipe import find, load, read_yaml, typed
from lrnnx_app.registry import LAYERS, shipped
from lrnnx_app.runs.checkpoint_file import read_checkpoint
from lrnnx_app.runs.run import build, build_data
from lrnnx_app.train import fit, passes
from lrnnx_app.train.learner import learner
from tests.cli.test_recipes_shipped import layers_of, needs_root
from tests.helpers import each_form, small_model

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
def replays(monkeypatch):
    """The shapes that passes were replayed for, with the module itself in place of a graph on a CPU."""
    shapes = []

    def counted(module, x):
        run = capture.capture_passes(module, x) if x.is_cuda else module

        def again(x):
            shapes.append(x.shape)
            return run(x)

        return again

    monkeypatch.setattr(passes, "capture_passes", counted)
    return shapes


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
def test_steps_are_the_same(recipe, precision, tmp_path, replays, capsys):
    options = ["model.dropout=0", f"trainer.precision={precision}"]
    eager = weights(tmp_path / "eager", recipe, *options, "trainer.graph=false")
    assert not replays
    graph = weights(tmp_path / "graph", recipe, *options, "trainer.graph=true")
    batch = next(iter(build_data(typed(load(recipe))).loader("train")))
    assert len(replays) == 8 * batch.rows.plain  # padding and elapsed times are for no graph
    assert "without a CUDA graph" not in capsys.readouterr().err
    still = ["task.lr=0", "task.ssm_lr=0", "task.weight_decay=0"]
    start = weights(tmp_path / "start", recipe, *options, *still)
    apart, moved = distance(graph, eager), distance(eager, start)
    assert apart <= (1e-3 if precision == "32-true" else 5e-2) * moved


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("recipe", ["digits_lru", "text_rglru_mini", "denoise_quick"])
@pytest.mark.parametrize("other", ["trainer.accumulate=3", "trainer.recompute=true", "freeze=[blocks.0.*]"])
def test_steps_of_graphs_are_the_same_with(other, recipe, tmp_path, replays, capsys):
    options = ["model.dropout=0", other, "trainer.max_epochs=-1"]
    eager = weights(tmp_path / "eager", recipe, *options, "trainer.graph=false")
    graph = weights(tmp_path / "graph", recipe, *options, "trainer.graph=true")
    assert len(replays) >= 8
    assert "without a CUDA graph" not in capsys.readouterr().err
    start = weights(tmp_path / "start", recipe, *options, "task.lr=0", "task.ssm_lr=0")
    assert distance(graph, eager) <= 1e-3 * distance(eager, start)


@pytest.mark.parametrize("recipe", one_of_each())
def test_every_task_replays_what_it_runs(recipe, replays, monkeypatch):
    """It may pad a batch, so that the model sees another shape than the batch has."""
    typed_recipe = typed(load(recipe, ["data.batch_size=2"]))
    data, task = build(typed_recipe, learner)
    monkeypatch.setattr(task, "log", lambda *_, **__: None)
    task.model.forward = passes.of_one_shape(task.model, False, True, None)
    batch = next(iter(data.loader("train")))
    for _ in range(2):
        task.training_step(batch, 0)
    assert len(replays) == 2 * batch.rows.plain


class Halves(torch.nn.Module):
    def forward(self, x, state=None):
        return x / 2, "state"


@pytest.mark.filterwarnings("ignore:User provided device_type of 'cuda'")
@pytest.mark.parametrize(
    ("switch", "why"), [("", "not permitted"), ("off", "switched off by LRNNX_GRAPHS=off")]
)
def test_what_no_graph_holds_trains_without_one_and_says_why(switch, why, capsys, monkeypatch):
    def refuse(*_):
        raise RuntimeError("not permitted\nwhen stream is capturing")

    for name in ("device", "synchronize"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    monkeypatch.setattr(capture, "_tried", refuse)
    monkeypatch.setenv(capture.OFF, switch)
    run = passes.of_one_shape(Halves(), compiled=False, graph=True, dtype=None)
    for _ in range(2):
        assert run(torch.ones(1)) == (0.5, "state")
    assert capsys.readouterr().err == f"training without a CUDA graph: {why}\n"


def test_graphs_can_be_switched_off(monkeypatch):
    monkeypatch.setenv(capture.OFF, "off")
    with pytest.raises(capture.CaptureError, match="LRNNX_GRAPHS=off"):
        capture.capture(lambda: torch.ones(1), torch.device("cuda"))


def distance(a, b):
    return sum((a[k] - v).double().square().sum() for k, v in b.items() if v.is_floating_point()).sqrt()


def test_elsewhere_nothing_changes(tmp_path, replays):
    options = ["trainer.accelerator=cpu", "data.batch_size=4"]
    usual = weights(tmp_path / "usual", "digits_lru", *options)
    graph = weights(tmp_path / "graph", "digits_lru", *options, "trainer.graph=true")
    assert not replays
    assert all(torch.equal(graph[k], v) for k, v in usual.items())


def test_a_capture_forbids_nothing_to_other_threads():
    """A loader's thread pins memory meanwhile, which a capture in torch's own mode forbids to all threads."""
    before = torch.cuda.graph
    with capture._own_thread():
        assert torch.cuda.graph.keywords == {"capture_error_mode": "thread_local"}
    assert torch.cuda.graph is before


@pytest.fixture
def compiled_for(monkeypatch):
    """The shapes of sequences that blocks were compiled for, by a compiler that changes nothing."""
    shapes, compile_block = [], torch.nn.Module.compile

    def backend(graph, inputs):
        shapes.extend(
            x.shape for x in inputs if isinstance(x, torch.Tensor) and x.requires_grad and x.grad_fn
        )
        return aot_eager(graph, inputs)

    monkeypatch.setattr(torch.nn.Module, "compile", lambda x, **o: compile_block(x, backend=backend, **o))
    return shapes


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_blocks_take_the_same_steps(tmp_path, compiled_for):
    options = ["trainer.accelerator=cpu", "data.batch_size=4", "trainer.precision=64-true"]
    usual = weights(tmp_path / "usual", "digits_lru", *options)
    assert not compiled_for
    compiled = weights(tmp_path / "compiled", "digits_lru", *options, "trainer.compile=true")
    assert {shape[:2] for shape in compiled_for} == {(4, 64)}
    still = weights(tmp_path / "still", "digits_lru", *options, "task.lr=0", "task.ssm_lr=0")
    assert distance(compiled, usual) <= 1e-9 * distance(usual, still)


class Part(torch.nn.Linear):
    def forward(self, x):  # of its own, since older dynamos leave torch's modules alone
        return x @ self.weight


class Stack(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = torch.nn.ModuleList(Part(1, 1) for _ in range(2))

    def forward(self, x, state=None):
        return self.parts[1](self.parts[0](x)), state


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_only_the_shape_of_training_is_compiled(compiled_for):
    model = Stack()
    run = passes.of_one_shape(model, compiled=True, graph=False, dtype=None)
    for time in (3, 4, 3):
        run(torch.ones(2, time, 1, requires_grad=True) * 1)
    model.eval()
    run(torch.ones(2, 3, 1, requires_grad=True) * 1)
    assert {shape[1] for shape in compiled_for} == {3}


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_what_cannot_be_compiled_is_told_in_one_line(monkeypatch):
    def backend(*_):
        raise OSError("no compiler\nat all")

    compile_block = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda x, **o: compile_block(x, backend=backend, **o))
    run = passes.of_one_shape(Stack(), compiled=True, graph=False, dtype=None)
    with pytest.raises(RecipeError, match=r"trainer\.compile: .*no compiler\)$"):
        run(torch.ones(2, 3, 1))


class Replayed(torch.autograd.Function):
    """w·x, whose gradient by w lies in one memory, as that of a graph does."""

    memory = torch.zeros(1)

    @staticmethod
    def forward(ctx, w, x):
        ctx.x = x
        return w * x

    @staticmethod
    def backward(ctx, gradient):
        return Replayed.memory.copy_(gradient * ctx.x).detach(), None


def test_gradients_of_several_replays_are_added_up():
    module = torch.nn.Linear(1, 1, bias=False)
    hooks = passes.own_gradients(module)
    for x in (3.0, 5.0, 7.0):
        Replayed.apply(module.weight[0], x).backward()
    assert module.weight.grad == 15
    assert len(hooks) == 1


@each_form
@pytest.mark.parametrize("layer", ["lru", "s6"])
def test_blocks_that_run_twice_give_the_same_gradients_and_keep_less(name, form, layer):
    """Bit for bit, with dropout, padding and a state."""
    model = small_model(name, layer, dropout=0.3, **form).train()
    x = torch.randn(2, 6 * model.hop, model.spec.d_input)
    lengths = torch.tensor([6, 4]) * model.hop
    with torch.no_grad():
        _, state = model(x)

    def passed():
        kept = []

        def keep(saved):
            kept.append(saved.numel())
            return saved

        model.zero_grad()
        torch.manual_seed(1)
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda saved: saved):
            y, after = model(x, state, lengths=lengths)
        y.square().sum().backward()
        return sum(kept), [y, *tree_leaves(after)], [p.grad for p in model.parameters()]

    usual, outputs, gradients = passed()
    passes.recompute(model)
    less, again, others = passed()
    assert all(map(torch.equal, outputs, again))
    assert all(a is b is None or torch.equal(a, b) for a, b in zip(gradients, others, strict=True))
    assert less < 0.7 * usual


def test_a_training_whose_blocks_run_twice_takes_the_same_steps(tmp_path):
    options = ["trainer.accelerator=cpu", "data.batch_size=4", "model.dropout=0.1"]
    usual = weights(tmp_path / "usual", "digits_lru", *options)
    twice = weights(tmp_path / "twice", "digits_lru", *options, "trainer.recompute=true")
    assert all(torch.equal(twice[k], v) for k, v in usual.items())


def test_what_cannot_run_twice_is_told_in_one_line(lrnnx):
    lrnnx("train", "digits_lru", "trainer.recompute=true", "trainer.compile=true").refuses("one of them")
    with pytest.raises(RecipeError, match=r"trainer\.recompute: .*model\.dropout or graph"):
        passes.recompute(small_model("backbone", dropout=0.1), graph=True)
