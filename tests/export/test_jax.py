"""What is written for JAX gives torch's outputs and gradients, trains as torch does, and comes home."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from lrnnx_app.errors import UserError
from lrnnx_app.export import export_run
from lrnnx_app.export import jax as written
from lrnnx_app.layers._examples import D_MODEL, Case, examples
from lrnnx_app.models._base import Model
from lrnnx_app.models.backbone import Backbone
from lrnnx_app.ops._examples import Draw, Sizes
from lrnnx_app.ops._table import OPERATORS, Variant
from lrnnx_app.registry import LAYERS, MODELS
from lrnnx_app.runs.run import Run
from lrnnx_app.spec import DataSpec, Rows
from tests.helpers import FORMS, digits, small, small_model, untrained

OUTPUTS, SLOPES = 1e-5, 1e-4  # ‖JAX − torch‖ / ‖torch‖, float32
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # compiles
FIRST = [examples(name)[0] for name in LAYERS]
EVERY = [case for name in LAYERS for case in examples(name)]


class Each(Model):
    """Layers side by side on the same input; their outputs are channels."""

    def __init__(self, cases: list[Case]) -> None:
        super().__init__(DataSpec(D_MODEL, D_MODEL * len(cases)))
        self.layers = nn.ModuleList(case.build(torch.float32) for case in cases)

    def init_state(self, batch: int) -> tuple[Any, ...]:
        return tuple(layer.init_state(batch) for layer in self.layers)

    def run(self, x: Tensor, state: Any, rows: Rows) -> tuple[Tensor, tuple[Any, ...]]:
        states = (None,) * len(self.layers) if state is None else state
        found = [layer(x, z, **rows._asdict()) for layer, z in zip(self.layers, states, strict=True)]
        return torch.cat([y for y, _ in found], -1), tuple(z for _, z in found)


def given(model: Model, steps: int, timed: bool, masked: bool) -> dict[str, Tensor]:
    """Inputs of the model, its outputs, and gradients of a weighted sum of these."""
    generator = torch.Generator().manual_seed(steps)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator).to(next(model.parameters()).dtype)

    tokens = model.spec.tokens
    x = (
        torch.arange(2 * steps).view(2, -1) % model.spec.d_input
        if tokens
        else draw(2, steps, model.spec.d_input)
    )
    dt = draw(2, steps).abs() + 0.1 if timed else None
    lengths = torch.tensor([steps, steps * 2 // 3]) if masked else None
    state = written._state(model)
    if state is not None:
        state = tree_map(lambda z: z + 0.1 * draw(*z.shape).abs() if z.is_floating_point() else z, state)
    before = [] if state is None else tree_leaves(state)
    slopes = {f"state.{k}": z for k, z in enumerate(z for z in before if z.is_floating_point())}
    slopes |= {name: z for name, z in (("x", x), ("dt", dt)) if z is not None and z.is_floating_point()}
    slopes |= {f"params.{name}": p for name, p in model.named_parameters()}
    for z in slopes.values():
        z.requires_grad_()
    y, after = model(x, state, dt=dt, lengths=lengths)
    if lengths is not None and y.ndim == 3:
        y = Rows(lengths=lengths).unpadded(y)
    outs = [y, *(z for z in tree_leaves(after) if z.is_floating_point() and state is not None)]
    weights = [draw(*z.shape) for z in outs]
    found = torch.autograd.grad(
        sum((z * w).sum() for z, w in zip(outs, weights, strict=True)),  # type: ignore[arg-type]
        list(slopes.values()),
        materialize_grads=True,
        allow_unused=True,
    )
    content = (
        {"x": x} | ({} if dt is None else {"dt": dt}) | ({} if lengths is None else {"lengths": lengths})
    )
    for word, tensors in (("state", before), ("weight", weights), ("out", outs)):
        content |= {f"{word}.{k}": z for k, z in enumerate(tensors)}
    return content | {f"slope.{name}": z for name, z in zip(slopes, found, strict=True)}


def write(folder: Path, model: Model, *settings: tuple[int, bool, bool], double: bool = False) -> Path:
    """A folder for `jax_compared.py`, for each (steps, timed, masked); by torch in float64 if `double`."""
    folder.mkdir()
    text, constants = written.source(model.eval(), folder.name)
    (folder / "model.py").write_text(text, encoding="utf-8")
    save_file({name: z.contiguous() for name, z in model.state_dict().items()}, folder / "model.safetensors")
    if constants:
        save_file(constants, folder / "constants.safetensors")
    for setting in settings:
        content = given(model.double() if double else model, *setting)
        numbers: Any = {name: z.detach().numpy() for name, z in content.items()}
        np.savez(folder / f"given {setting}.npz", **numbers)
    return folder


def compare(folders: list[Path], double: bool = False) -> None:
    """All folders in one process without torch."""
    script = Path(__file__).with_name("jax_compared.py")
    done = subprocess.run(
        [sys.executable, str(script), *map(str, folders)],
        env={**os.environ, "XLA_FLAGS": QUICK, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": str(int(double))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    for folder, found in json.loads(done.stdout).items():
        limits = {name: OUTPUTS if " out." in name else SLOPES for name in found}
        assert found
        assert {name: error for name, error in found.items() if not error <= limits[name]} == {}, folder


def timed(case: Case) -> bool:
    layer = case.build(torch.float32)
    return layer.causal and layer.uses_dt


def test_every_layer_and_kind_of_model(tmp_path: Path) -> None:
    kinds = [case for case in FIRST if timed(case)], [case for case in FIRST if not timed(case)]
    folders = [
        write(tmp_path / "timed", Each(kinds[0]), (7, True, True)),
        write(tmp_path / "even", Each(kinds[1]), (7, False, True)),
        write(tmp_path / "unet", small_model("unet"), (75, False, True)),
    ]
    compare(folders)


@pytest.mark.release
def test_every_example_form_and_way(tmp_path: Path) -> None:
    """S4 in float64, since its dense powers lose digits, and differ by where they are taken."""
    folders: dict[bool, list[Path]] = {True: [], False: []}
    for case in EVERY:
        layer, double = LAYERS.config(case.name, **case.options), case.name == "s4"
        model = Backbone(DataSpec(3, 5), Backbone.Config(d_model=4, depth=1, pool="none", layer=layer))
        settings = [(37, with_dt, True) for with_dt in (False, True)[: 1 + timed(case)]]
        folders[double].append(write(tmp_path / str(case), model, *settings, double=double))
    for name, form in FORMS:
        model, words = small_model(name, **form), "-".join((name, *map(str, form.values())))
        settings = [(1, False, False), (3 * model.hop + 5, False, True)]
        folders[False].append(write(tmp_path / words, model, *settings))
    config = Backbone.Config(d_model=4, depth=2, bidirectional=True, layer=small("s5"))
    both = Backbone(DataSpec(3, 5), config)
    folders[False].append(write(tmp_path / "both", both, (37, False, True), (37, True, True)))
    config = MODELS.config("language", d_model=8, depth=2, layer=small("rglru+local_attention"))
    model = MODELS["language"](DataSpec(11, 11, tokens=True), config)
    folders[False].append(write(tmp_path / "tokens", model, (37, False, True)))
    for double in folders:
        compare(folders[double], double)


CALL = """
import json, sys
import numpy as np
scope = {}
exec(open(sys.argv[1], encoding="utf-8").read(), scope)
for path in sys.argv[2:]:
    given = dict(np.load(path))
    name, options = json.loads(str(given.pop("call")))
    found = scope[name](**given, **options)
    found = found if isinstance(found, tuple) else (found,)
    np.savez(path, **{str(k): value for k, value in enumerate(found)})
"""
CALLED = {"linear_scan": "", "matrix_scan": "", "gru_scan": "gru_states", "fft_conv": "convolve", "rfft": ""}


def test_operators_are_those_of_the_table(tmp_path: Path) -> None:
    calls: dict[str, tuple[str, Variant, Any]] = {}
    for name, called in CALLED.items():
        for variant in OPERATORS[name].variants:
            entry, path = OPERATORS[name], str(tmp_path / f"{len(calls)}.npz")
            operands = entry.draw(Draw(0), Sizes(2, 9, 3), variant)
            if name != "linear_scan" or operands["b"].ndim < 5:  # else lrnnx flattens them before the call
                calls[path] = name, variant, operands
                given: Any = {key: z.numpy() for key, z in entry.typed(operands, torch.float32).items()}
                options = {} if called else dict(variant.options)
                np.savez(path, call=json.dumps([called or name, options]), **given)
    file = Path(written.__file__).parent / "jax_program" / "operators.py"
    environment = {**os.environ, "XLA_FLAGS": QUICK, "JAX_PLATFORMS": "cpu"}
    subprocess.run([sys.executable, "-c", CALL, str(file), *calls], check=True, env=environment)
    for path, (name, variant, operands) in calls.items():
        entry = OPERATORS[name]
        wanted = entry.definition(**entry.typed(operands, torch.float64), **variant.options)
        with np.load(path) as found:
            for k, expected in enumerate(wanted if isinstance(wanted, tuple) else (wanted,)):
                if str(k) in found:
                    error = np.linalg.norm(found[str(k)] - expected.numpy()) / np.linalg.norm(
                        expected.numpy()
                    )
                    assert error <= entry.allowed(torch.float32).output, (name, variant.words)


TRAIN = """
import jax, jax.numpy as jnp, numpy as np, sys
sys.path.insert(0, sys.argv[1])
import model
given = np.load(sys.argv[2])
x, y = given["x"], given["y"]

def loss(params):
    return -jax.nn.log_softmax(model.forward(params, x)[0])[jnp.arange(len(y)), y].mean()

@jax.jit
def step(params, m, v, t):
    value, g = jax.value_and_grad(loss)(params)
    m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
    v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
    def new(p, m, v):
        return p - 1e-3 * (m / (1 - 0.9**t)) / (jnp.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return jax.tree.map(new, params, m, v), m, v, value

params = model.load()
m = v = jax.tree.map(jnp.zeros_like, params)
losses = []
for t in range(1, 101):
    params, m, v, value = step(params, m, v, t)
    losses.append(float(value))
model.save(params)
np.save(sys.argv[3], losses)
"""


def test_training_in_jax_is_that_in_torch_and_comes_home(tmp_path: Path, lrnnx) -> None:
    run = untrained(tmp_path / "run", *digits(1))
    lrnnx("export", run, "-o", tmp_path / "there", "--format", "jax").done()
    model = Run(run).task().model.eval()
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 15, model.spec.d_input, generator=generator)
    y = torch.randint(model.spec.d_output, (8,), generator=generator)
    adam, losses = torch.optim.Adam(model.parameters(), 1e-3), []
    for _ in range(100):
        adam.zero_grad()
        loss = nn.functional.cross_entropy(model(x)[0], y)
        loss.backward()
        adam.step()
        losses.append(float(loss.detach()))
    np.savez(tmp_path / "given.npz", x=x.numpy(), y=y.numpy())
    words = ["-c", TRAIN, *(str(tmp_path / name) for name in ("there", "given.npz", "losses.npy"))]
    subprocess.run([sys.executable, *words], check=True, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    assert losses[-1] < 0.9 * losses[0]
    assert np.abs(np.load(tmp_path / "losses.npy") - losses).max() <= 1e-4
    lrnnx("import", tmp_path / "there", "-o", tmp_path / "home").done()
    with torch.no_grad():
        home = Run(tmp_path / "home").task().model.eval()
        assert (home(x)[0] - model(x)[0]).abs().max() <= 1e-3
    assert "accuracy" in lrnnx("evaluate", tmp_path / "home", "trainer.accelerator=cpu").done().out


def test_other_weights_and_options_are_refused(tmp_path: Path, lrnnx) -> None:
    run = untrained(tmp_path / "run", *digits(1))
    export_run(run, tmp_path / "there", "jax")
    lrnnx("export", run, "-o", tmp_path / "x", "--format", "jax", "--int8").refuses("--int8")
    save_file({"head.weight": torch.zeros(2)}, tmp_path / "there" / "model.safetensors")
    lrnnx("import", tmp_path / "there", "-o", tmp_path / "home").refuses("not a model that lrnnx exported")


def test_an_operator_without_a_line_is_named() -> None:
    class Odd(Each):
        def run(self, x: Tensor, state: Any, rows: Rows) -> tuple[Tensor, Any]:
            return super().run(torch.special.bessel_j0(x), state, rows)

    with pytest.raises(UserError, match="special_bessel_j0"):
        written.source(Odd([examples("lru")[0]]), "odd")
