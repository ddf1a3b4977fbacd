"""ONNX: one chunk as a function of tensors, for any batch size, by standard operators on real numbers."""

import logging
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.export import ExportedProgram

from lrnnx_app.disk.atomic import fresh
from lrnnx_app.errors import RunError, needs
from lrnnx_app.export import _example
from lrnnx_app.export._chunk import TOLERANCE, Chunk, Run, difference, streamed, traced
from lrnnx_app.export._output import Options, accept
from lrnnx_app.runs.run import Run as RunFolder

ENDING = ".onnx"
OPSET = 20
INT8_TOLERANCE = 0.1
TABLE = 1 << 22  # bytes of a constant, such as a table of a transform, that is computed once for all
PARAMETER = "model."  # what the name of a parameter of the chunk begins with
LEAST = 1024  # smaller matrices are not stored in 8 bits


def export(run: RunFolder, path: Path, options: Options) -> list[str]:
    """Write the program and a script that runs it; returns lines that describe them.

    Raises:
        UserError: onnx, onnxscript or onnxruntime is not installed.
        RunError: the run has no checkpoint, or `path` cannot be written.
        StreamError: the model cannot stream, or an option does not fit it.
    """
    try:
        import onnx
        import onnxruntime  # noqa: F401  (used by `session`)
        import onnxscript  # noqa: F401  (used by torch.onnx)
    except ImportError as error:
        raise needs("onnx", error) from error
    if path.suffix != ENDING:
        raise RunError(f"{path}: expected a name ending in {ENDING}")
    chunk = Chunk(run.task().model, options.chunk, options.timed or run.timed)
    script = _example.beside(path)
    with fresh(script) as script_part, fresh(path) as part:
        model = to_onnx(chunk, traced(chunk))
        if options.int8:
            weights_in_8_bits(model)
        onnx.save(model, str(part))
        found = difference(chunk, session(part))
        accept(path, found, INT8_TOLERANCE if options.int8 else TOLERANCE)
        _example.write(script_part, path, "onnx", chunk)
    kind = "int8 weights; " if options.int8 else ""
    told = f"opset {OPSET}, chunks of {chunk.chunk} samples, any batch; {kind}differs from the model by"
    return [f"{path}: {told} {found:.1g}", f"{script} runs it with onnxruntime alone"]


def outputs(path: Path, x: Tensor) -> Tensor:
    """The outputs of the written program for a signal x (1, T, …), chunk by chunk."""
    import onnx

    about = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return streamed(session(path), about["lrnnx"], x)


def to_onnx(chunk: Chunk, program: ExportedProgram) -> Any:
    """The traced chunk as an onnx.ModelProto, with its description in the metadata under "lrnnx"."""
    from onnx_ir.passes import common
    from onnxscript import ir, optimizer

    for library in ("torch.onnx", "onnx_ir"):
        logging.getLogger(library).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns about itself
        exported = torch.onnx.export(
            program,
            input_names=chunk.inputs(),
            output_names=chunk.outputs(),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
            optimize=False,  # its rules take away what is nearly x + 0 or x · 1, such as x + 1e-10
        )
    assert exported is not None
    for step in (
        common.InlinePass(),  # older exporters leave calls of functions
        partial(optimizer.fold_constants, input_size_limit=TABLE, output_size_limit=TABLE),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0),
        common.DeduplicateInitializersPass(),
        common.CommonSubexpressionEliminationPass(),
        common.RemoveUnusedNodesPass(),
        common.RemoveUnusedOpsetsPass(),
    ):
        step(exported.model)
    model = ir.to_proto(exported.model)
    _distinct(model.graph, chunk.inputs())
    model.metadata_props.add(key="lrnnx", value=chunk.description())
    return model


def _distinct(graph: Any, names: list[str]) -> None:
    """Give outputs that are an input or a constant a node of their own, and inputs their names again."""
    from onnx import helper

    made = {name for node in graph.node for name in node.output}
    for output in (output.name for output in graph.output if output.name not in made):
        given = dict(zip((value.name for value in graph.input), names, strict=True))
        source = given.get(output, f"{output}.constant")
        for value in (*graph.input, *graph.initializer):
            value.name = source if value.name == output else value.name
        for node in graph.node:
            node.input[:] = [source if name == output else name for name in node.input]
        graph.node.append(helper.make_node("Identity", [source], [output]))


def session(path: Path) -> Run:
    """The written program under onnxruntime on a CPU."""
    import onnxruntime

    runtime = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [i.name for i in runtime.get_inputs()]

    def run(inputs: Any) -> list[Tensor]:
        numbers = (z.numpy() for z in inputs)
        return [torch.from_numpy(y) for y in runtime.run(None, dict(zip(names, numbers, strict=True)))]

    return run


def by_rows(model: Any) -> None:
    """Replace x·Wᵀ + b by x·V + b of a stored V, whose rows are read in order."""
    from onnx import helper, numpy_helper

    stored = {initial.name: initial for initial in model.graph.initializer}
    for place, node in enumerate(model.graph.node):
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        if node.op_type != "Gemm" or given.pop("transB", 0) != 1 or node.input[1] not in stored:
            continue
        if any(value != 1 for key, value in given.items() if key != "transA") or given.get("transA"):
            continue
        x, weight, *bias = node.input
        if f"{weight}.rows" not in stored:
            turned = np.ascontiguousarray(numpy_helper.to_array(stored[weight]).T)
            stored[f"{weight}.rows"] = numpy_helper.from_array(turned, f"{weight}.rows")
            model.graph.initializer.append(stored[f"{weight}.rows"])
        (y,) = node.output
        product = f"{y}.product" if bias else y
        model.graph.node[place].CopyFrom(helper.make_node("MatMul", [x, f"{weight}.rows"], [product]))
        if bias:
            model.graph.node.insert(place + 1, helper.make_node("Add", [product, *bias], [y]))
    used = {name for node in model.graph.node for name in node.input}
    for initial in [each for each in model.graph.initializer if each.name not in used]:
        model.graph.initializer.remove(initial)


def weights_in_8_bits(model: Any) -> None:
    """Replace matrices by int8 ones, after whose products each output has its scale.

    Those are parameters, and what was folded from them, but for the last one, whose errors nothing averages.
    Tables of transforms stay exact.
    """
    from onnx import helper, numpy_helper

    by_rows(model)
    graph, found = model.graph, {}
    for initial in graph.initializer:
        weight = numpy_helper.to_array(initial)
        matrix = weight.ndim == 2 or (weight.ndim > 2 and initial.name.startswith(PARAMETER))
        users = [node for node in graph.node if initial.name in node.input]
        products = all(node.op_type == "MatMul" and node.input[1] == initial.name for node in users)
        if matrix and products and weight.dtype == np.float32 and weight.size >= LEAST:
            found[initial.name] = initial, weight
    order = [node.input[1] for node in graph.node if node.op_type == "MatMul" and node.input[1] in found]
    for name in dict.fromkeys(order[:-1]):
        if name == order[-1]:
            continue
        initial, weight = found[name]
        scale = np.maximum(np.abs(weight).max(-2, keepdims=True) / 127, 1e-12).astype(np.float32)
        narrow = np.rint(weight / scale).astype(np.int8)
        graph.initializer.remove(initial)
        graph.initializer.append(numpy_helper.from_array(narrow, f"{name}.int8"))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}.scale"))
        for place in reversed([place for place, node in enumerate(graph.node) if name in node.input]):
            y = graph.node[place].output[0]
            graph.node[place].output[0] = f"{y}.narrow"
            graph.node.insert(place + 1, helper.make_node("Mul", [f"{y}.narrow", f"{name}.scale"], [y]))
        first = next(place for place, node in enumerate(graph.node) if name in node.input)
        cast = helper.make_node("Cast", [f"{name}.int8"], [name], to=1)
        graph.node.insert(first, cast)
