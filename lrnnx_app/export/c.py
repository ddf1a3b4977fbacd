"""C99 with libm alone: weights, state and a function that pushes one hop, for microcontrollers and plug-ins.

Beside the model lie its header, a Makefile, and a main.c that does what `lrnnx infer` does with the run.
"""

import ctypes
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrnnx_app.disk.atomic import fresh
from lrnnx_app.errors import RunError, UserError
from lrnnx_app.export import _c_main, _c_text, onnx
from lrnnx_app.export._c_program import identifier, program, size
from lrnnx_app.export._chunk import TOLERANCE, Chunk, difference, joined
from lrnnx_app.export._chunk import Run as Push
from lrnnx_app.export._output import Options, accept
from lrnnx_app.runs.run import Run, build_data

ENDING = ".c"
FAST = ("-O3", "-ffast-math", "-fno-finite-math-only")


def export(run: Run, path: Path, options: Options) -> list[str]:
    """Write the model, its header, a program that runs it and a Makefile; returns lines that describe them.

    Raises:
        UserError: emx-onnx-cgen or a C compiler is missing, or a layer has no C.
        RunError: the run has no checkpoint, or `path` cannot be written.
        StreamError: the model cannot stream, or an option does not fit it.
    """
    if path.suffix != ENDING or path.stem == "main":
        raise RunError(f"{path}: expected a name ending in {ENDING}, and another than main.c")
    task = run.task()
    model, events = task.model, task.inference == "meaning" and task.spec.tokens
    pixels = build_data(run.recipe).pixels if events else None
    targets = path, path.with_suffix(".h"), path.with_name("main.c"), path.with_name("Makefile")
    with ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
        parts = {target: stack.enter_context(fresh(target)) for target in targets}
        chunk = Chunk(model, options.chunk or model.hop, options.timed or run.timed)
        made, name = program(path, chunk, options.int8), identifier(path)
        texts = (
            made.text + _c_text.functions(name, chunk, made),
            _c_text.header(name, chunk, made),
            _c_main.main(name, path, chunk, task.inference, pixels),
            _c_text.makefile(name, path),
        )
        for target, text in zip(targets, texts, strict=True):
            (Path(folder) / target.name).write_text(text, encoding="utf-8")
        found = difference(chunk, Library(Path(folder) / path.name).streams(3))
        accept(path, found, onnx.INT8_TOLERANCE if options.int8 else TOLERANCE)
        for target, part in parts.items():
            shutil.copyfile(Path(folder) / target.name, part)
    kind = "int8 weights; " if options.int8 else ""
    return [
        f"{path}: C99, a hop of {chunk.chunk} a push; {kind}differs from the model by {found:.1g}",
        f"{made.products:,} multiply-adds a push; bytes: {size(made.weights):,} of constants, "
        f"{2 * size(made.states):,} of state, {size(made.scratch):,} of scratch",
        f"make -C {path.parent} builds {name}, which runs it",
    ]


def outputs(path: Path, x: Tensor) -> Tensor:
    """The outputs of the written C for a signal x (1, T, …), push by push."""
    library = Library(path)
    push = library.streams(1)
    return joined([push([part])[0] for part in x.split(library.sizes["HOP"], 1)])


def sizes(path: Path) -> dict[str, int]:
    """The constants in the header of the C at `path`, without their prefix, such as HOP."""
    header = path.with_suffix(".h").read_text(encoding="utf-8")
    return {k: int(v) for k, v in re.findall(rf"#define {identifier(path).upper()}_(\w+) (\d+)", header)}


def compiled(command: Sequence[str], name: str) -> None:
    """Run a compiler on the C of that name.

    Raises:
        UserError: the compiler refuses it.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        said = next((line for line in done.stderr.splitlines() if "error" in line), "no reason given")
        raise UserError(f"{command[0]} did not compile {name}: {said}")


class Library:
    """The C at `path`, compiled for this machine.

    Attributes:
        sizes: the constants of its header without their prefix, such as HOP.

    Raises:
        UserError: there is no C compiler, or it refuses the file.
    """

    def __init__(self, path: Path, flags: tuple[str, ...] = ("-O1",)) -> None:
        name, self.sizes = identifier(path), sizes(path)
        self.timed = "const float *dt" in path.with_suffix(".h").read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            library = f"{folder}/library.so"
            compiled(
                [compiler(), "-std=c99", *flags, "-shared", "-fPIC", str(path), "-lm", "-o", library],
                path.name,
            )
            loaded = ctypes.CDLL(library)
        self._bytes = getattr(loaded, f"{name}_bytes")
        self._bytes.restype = ctypes.c_size_t
        self._init, self._push = getattr(loaded, f"{name}_init"), getattr(loaded, f"{name}_push")

    def streams(self, count: int) -> Push:
        """Fresh streams as a function (x, [dt,] …) -> (y, …), which carries their states itself."""
        streams = [ctypes.create_string_buffer(self._bytes()) for _ in range(count)]
        for stream in streams:
            self._init(stream)

        def push(inputs: Any) -> list[Tensor]:
            rows, outputs = self.sizes["ROWS"], self.sizes["OUTPUTS"]
            y = torch.empty(count, rows, outputs)
            signals = [z.contiguous() for z in inputs[: 1 + self.timed]]
            for i, stream in enumerate(streams):
                self._push(stream, *(ctypes.c_void_p(z[i].data_ptr()) for z in (*signals, y)))
            return [y[:, 0] if self.sizes["POOLED"] else y, *inputs[len(signals) :]]

        return push


def compiler() -> str:
    """The C compiler: the one that CC names, or one on PATH.

    Raises:
        UserError: there is none, so that what is written could not be checked.
    """
    for name in [os.environ["CC"]] if os.environ.get("CC") else ["gcc", "clang", "cc"]:
        if found := shutil.which(name):
            return found
    raise UserError("no C compiler on PATH, which checks what is written; install one (apt install gcc)")
