"""A folder for JAX: model.py, pure functions of parameters and state, and the weights as safetensors.

`_functions` writes them from the exported graph of the model's forward pass; what they call beside JAX itself
lies in jax_program/. The recipe is in the folder too, so that what was trained in JAX comes home by `lrnnx
import`.
"""

import ast
import os
import re
import subprocess
import sys
from importlib import resources
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from safetensors.torch import save_file
from torch import Tensor

from lrnnx_app.data import tokenizer
from lrnnx_app.disk.atomic import fresh
from lrnnx_app.errors import LrnnxError, StreamError, UserError
from lrnnx_app.export import _free
from lrnnx_app.export._chunk import TOLERANCE
from lrnnx_app.export._folded import folded
from lrnnx_app.export._functions import Argument, Functions, Graph, Region
from lrnnx_app.export._output import Options, accept
from lrnnx_app.layers._base import Layer
from lrnnx_app.models._base import Model
from lrnnx_app.runs import weights_file
from lrnnx_app.runs.folder import RECIPE, WEIGHTS
from lrnnx_app.runs.run import Run

ENDING = None
PROGRAM, CONSTANTS = "model.py", "constants.safetensors"
FEW = 16  # numbers of a constant that are written in the text
STEPS = 75  # hops of the signals on which the program is compared

IMPORTS = """from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from safetensors import safe_open
from safetensors.flax import load_file, save_file"""
READ = """


def _constants():
    with safe_open(Path(__file__).with_name("constants.safetensors"), "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}


CONSTANTS = _constants()"""
TIMED = """if dt is None:
        return _even(params, x, state, lengths)
    return _timed(params, x, state, lengths, dt)"""
UNTIMED = """if dt is not None:
        raise ValueError("this model takes evenly spaced samples: leave out dt")
    """
EVEN = "return _even(params, x, state, lengths)"
FRAMES = """time = x.shape[1]
    x = jnp.pad(x, ((0, 0), (0, -time % HOP), (0, 0)))
    y, state = _even(params, x, state, lengths)
    return y[:, :time], state"""

RUN = """
import sys
import numpy as np
sys.path.insert(0, sys.argv[1])
import model
given = np.load(sys.argv[2])
y, _ = model.forward(model.load(), given["x"], lengths=given["lengths"] if "lengths" in given else None)
np.save(sys.argv[3], y)
"""


def export(run: Run, path: Path, options: Options) -> list[str]:
    """Write the folder; returns lines that describe it.

    Raises:
        RunError: the run has no checkpoint, or `path` cannot be written.
        StreamError: the model cannot be written for every number of steps.
        UserError: an option is for another format, or an operator of the model is not known here.
    """
    if options.chunk or options.int8:
        raise UserError("--chunk and --int8: functions of JAX take any number of steps, and its own numbers")
    task = run.task()
    text, constants = source(task.model, f"{run.path.name}, as lrnnx wrote it for JAX.")
    with fresh(path, folder=True) as part:
        weights_file.write(part / WEIGHTS, task.model.state_dict(), task.spec, run.config, run.tokenizer())
        (part / PROGRAM).write_text(text, encoding="utf-8")
        (part / RECIPE).write_text(OmegaConf.to_yaml(run.config), encoding="utf-8")
        if run.tokenizer():
            (part / tokenizer.FILE).write_text(run.tokenizer(), encoding="utf-8")
        if constants:
            save_file(constants, part / CONSTANTS)
        told = "pip install jax, and export again to compare it with the model"
        if find_spec("jax"):
            found = _difference(task.model, part)
            accept(path, found, TOLERANCE)
            told = f"differs from the model by {found:.1g}"
    return [
        f"{path}: {PROGRAM} with init_state, forward and step; {told}",
        f"Next: train there, save(params), and lrnnx import {path} -o RUN",
    ]


def outputs(path: Path, x: Tensor, lengths: Tensor | None = None) -> Tensor:
    """The outputs of the written program for a signal x (B, T, …).

    In a process of its own, on a CPU: JAX would take the memory of a GPU, and warn whoever forks later.

    Raises:
        LrnnxError: the program does not run.
    """
    given = {"x": x.numpy()} | ({} if lengths is None else {"lengths": lengths.numpy()})
    with TemporaryDirectory() as folder:
        files = [str(Path(folder) / name) for name in ("given.npz", "found.npy")]
        np.savez(files[0], **given)  # type: ignore[arg-type]  (arrays, no option)
        done = subprocess.run(
            [sys.executable, "-c", RUN, str(path.absolute()), *files],
            env={**os.environ, "JAX_PLATFORMS": "cpu"},
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise LrnnxError(f"{path}: what was written does not run: {reason}")
        return torch.from_numpy(np.load(files[1]))


@torch.no_grad()
def _difference(model: Model, path: Path) -> float:
    """‖program − model‖ / ‖model‖ of outputs for two random signals of different lengths."""
    generator, steps = torch.Generator().manual_seed(0), STEPS * model.hop
    shape = (2, steps) if model.spec.tokens else (2, steps, model.spec.d_input)
    x = torch.randn(shape, generator=generator)
    x = (x.abs() * 100).long() % model.spec.d_input if model.spec.tokens else x
    lengths = torch.tensor([steps, steps // 2])
    found, (wanted, _) = outputs(path, x, lengths), model.eval()(x, lengths=lengths)
    if wanted.ndim == 3:
        found, wanted = (torch.cat((z[0], z[1, : int(lengths[1])])) for z in (found, wanted))
    return float((found - wanted).norm() / wanted.norm())


def source(model: Model, title: str) -> tuple[str, dict[str, Tensor]]:
    """The text of model.py, and its constants of many numbers.

    Raises:
        StreamError, UserError: as of `export`.
    """
    functions, constants, state = Functions(), {}, _state(model)
    for timed in (False, True)[: 1 + takes_dt(model)]:
        free = _free.traced(model, state, _example(model), timed, model.hop)
        constants |= {name: value for name, value in free.constants.items() if value.numel() > FEW}
        _root(model, free, state, functions, timed)
    written = functions.source()
    files = resources.files("lrnnx_app.export").joinpath("jax_program")
    interface = files.joinpath("interface.py").read_text("utf-8")
    run = TIMED if takes_dt(model) else UNTIMED + (FRAMES if model.hop > 1 else EVEN)
    initial = folded(f"    return {_nested(state, _initial)}").strip().removeprefix("return ")
    for word, value in {"RUN": run, "HOP": str(model.hop), "STATE": initial}.items():
        interface = re.sub(rf"\b{word}\b", lambda _, value=value: value, interface)
    parts = [
        _used(files.joinpath("operators.py").read_text("utf-8"), written + interface),
        written,
        interface[interface.index("def ") :],
    ]
    head = f'"""{title}"""\n\n{IMPORTS}{READ if constants else ""}'
    return "\n\n\n".join((head, *(part.strip() for part in parts))) + "\n", constants


def _state(model: Model) -> Any:
    """The state of a batch of two before the first sample; None if the model cannot stream."""
    try:
        return model.init_state(2)
    except StreamError:
        return None


def takes_dt(model: Model) -> bool:
    """Whether elapsed time means something to all layers."""
    return model.hop == 1 and all(part.uses_dt for part in model.modules() if isinstance(part, Layer))


def _example(model: Model) -> Tensor:
    steps = _free.EXAMPLE * model.hop
    if model.spec.tokens:
        return torch.zeros(2, steps, dtype=torch.int64)
    return torch.zeros(2, steps, model.spec.d_input)


def _graph(module: Any, free: _free.Free, words: list[str], functions: Functions) -> Graph:
    arguments = {node: Argument("", path) for node, path in free.weights.items()}
    arguments |= {node: Argument(word) for node, word in zip(free.inputs, words, strict=True)}
    constants = {name: _constant(name, value) for name, value in free.constants.items()}
    return Graph(free.graph, arguments, module, functions, set(map(str, _free.COMPOSED)), constants)


def _root(model: Model, free: _free.Free, state: Any, functions: Functions, timed: bool) -> None:
    """Write the function of the whole model, with its state as a pytree."""
    places = _places(state, "state")
    graph = _graph(model, free, ["x", *places, "lengths", *["dt"] * timed], functions)
    for path, layer in model.named_modules():
        if isinstance(layer, Layer) and layer.loops:
            graph.steps[path] = _step(layer, functions, timed)
    y, *after = graph.returned_nodes()
    graph.handed = dict(zip(after, (re.findall(r"\w+", place)[-1] for place in places), strict=True))
    region = Region(graph, graph.nodes, 0, "")
    region.given = free.inputs
    region.results = [y]
    for node in free.inputs:
        region.take(node, graph.arguments[node].name)
    each = iter(after)
    words = ["p", "x", "state", "lengths", *["dt"] * timed]

    def returned() -> str:
        return f"{region.text(y)}, {_nested(state, lambda _: region.text(next(each)))}"

    region.finish("_timed" if timed else "_even", words, returned)


def _step(layer: Layer, functions: Functions, timed: bool) -> str:
    """Write the function of one step of a layer that loops over steps; returns its name."""
    state = layer.init_state(2)
    free = _free.step_of(layer, state, timed)
    graph = _graph(layer, free, ["x", *["dt"] * timed, *state._fields], functions)
    region = Region(graph, graph.nodes, 0, "")
    region.owns, region.given, region.results = True, free.inputs, graph.returned_nodes()
    return region.function(f"{region.word()}_step")


def _places(state: Any, text: str) -> list[str]:
    """Where each tensor of the state is in the written pytree, in torch's order."""
    if isinstance(state, Tensor):
        return [text]
    if state is None:
        return []
    keys = [f'"{key}"' for key in state._fields] if hasattr(state, "_fields") else range(len(state))
    return [place for key, part in zip(keys, state, strict=True) for place in _places(part, f"{text}[{key}]")]


def _nested(state: Any, leaf: Any) -> str:
    """The state as an expression: named tuples are dictionaries; `leaf` writes a tensor."""
    if state is None:
        return "None"
    if isinstance(state, Tensor):
        return leaf(state)
    parts = [_nested(part, leaf) for part in state]
    if hasattr(state, "_fields"):
        pairs = (f'"{key}": {part}' for key, part in zip(state._fields, parts, strict=True))
        return f"{{{', '.join(pairs)}}}"
    return f"({', '.join(parts)}{',' if len(parts) == 1 else ''})"


def _initial(leaf: Tensor) -> str:
    """A tensor of the state before the first step."""
    shape = ", ".join(("batch", *map(str, leaf.shape[1:])))
    kind = "jnp.float32" if leaf.is_floating_point() else "int"
    if not leaf.any():
        return f"jnp.zeros(({shape}), {kind})" if leaf.ndim > 1 else f"jnp.zeros(batch, {kind})"
    return f"jnp.broadcast_to(jnp.array({leaf[0].tolist()}, {kind}), ({shape},))"


def _constant(name: str, value: Tensor) -> str:
    """A tensor that is no parameter: its numbers if they are few, else its place in the file."""
    return f"np.array({value.tolist()})" if value.numel() <= FEW else f'CONSTANTS["{name}"]'


def _used(operators: str, program: str) -> str:
    """The operators that a program calls, and those that they call, in their order."""
    lines, parts = operators.splitlines(), []
    for item in ast.parse(operators).body:
        if isinstance(item, ast.FunctionDef):
            start = min([item.lineno, *(word.lineno for word in item.decorator_list)])
            parts.append((item.name, "\n".join(lines[start - 1 : item.end_lineno])))
        elif isinstance(item, ast.Expr) and isinstance(item.value, ast.Call):  # name.defvjp(…)
            name = ast.unparse(item.value.func).partition(".")[0]
            parts.append((name, "\n".join(lines[item.lineno - 1 : item.end_lineno])))
    found: set[str] = set()
    wanted = [program]
    while wanted:
        words = set(re.findall(r"\w+", wanted.pop()))
        wanted += [text for name, text in parts if name in words - found]
        found |= words & {name for name, _ in parts}
    return "\n\n\n".join(text for name, text in parts if name in found)
