"""A page of static files that runs a model of sound in a browser: the C of the model as WebAssembly.

The page takes the microphone or a file. It shows what goes in and what comes out, the latency and the load.
It needs no other library, and nothing leaves it. `page/` holds its files.
"""

import json
import shutil
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lrnnx_app.disk.atomic import fresh
from lrnnx_app.errors import UserError, needs
from lrnnx_app.export import c
from lrnnx_app.export._chunk import TOLERANCE, Chunk, difference, joined
from lrnnx_app.export._output import Options, accept
from lrnnx_app.export.onnx import INT8_TOLERANCE
from lrnnx_app.runs.run import Run
from lrnnx_app.streaming.session import live_chunk

ENDING = None
FILES = Path(__file__).parent / "page"
GLUE = """#include "model.h"
static model_stream stream;
static float x[MODEL_HOP][MODEL_INPUTS], y[MODEL_ROWS][MODEL_OUTPUTS];
void begin(void) { model_init(&stream); }
float *input(void) { return x[0]; }
float *output(void) { return y[0]; }
int push(void) { return model_push(&stream, x[0], y[0]); }
"""
FLAGS = ("-std=c99", *c.FAST, "-msimd128", "-s", "-mexec-model=reactor")
EXPORTS = ("begin", "input", "output", "push")
SOUND = {"audio": True, "meaning": False}  # by the inference of a task: whether the outputs are sound
SIZES = ("hop", "delay", "inputs", "rows", "outputs", "pooled")


def export(run: Run, path: Path, options: Options) -> list[str]:
    """Write the folder of a page; returns lines that describe it.

    Raises:
        UserError: the model takes no sound of one channel, or a package of the extra is missing.
        RunError: the run has no checkpoint, or `path` cannot be written.
        StreamError: the model cannot stream, or an option does not fit it.
    """
    task = run.task()
    model, spec = task.model, task.spec
    if (
        spec.tokens
        or spec.d_input != 1
        or not spec.sample_rate
        or options.timed
        or task.inference not in SOUND
    ):
        raise UserError(
            "a page is for sound of one channel, made better or told apart; this run does something else"
        )
    options = replace(options, chunk=options.chunk or live_chunk(model))
    with fresh(path, folder=True) as part, tempfile.TemporaryDirectory() as scratch:
        c.export(run, Path(scratch) / "model.c", options)
        _compile(Path(scratch), part / "model.wasm")
        sizes = c.sizes(Path(scratch) / "model.c")
        facts = {
            "name": run.recipe.name,
            "about": run.recipe.about,
            "rate": spec.sample_rate,
            "sound": SOUND[task.inference],
            "classes": list(spec.classes),
            **{key: sizes[key.upper()] for key in SIZES},
        }
        (part / "model.json").write_text(json.dumps(facts), encoding="utf-8")
        for file in FILES.iterdir():
            shutil.copyfile(file, part / file.name)
        found = difference(Chunk(model, facts["hop"], False), _Streams(part, 3))
        accept(path, found, INT8_TOLERANCE if options.int8 else TOLERANCE)
        size = sum(file.stat().st_size for file in part.iterdir())
    return [
        f"{path}: a page of {size / 1024:,.0f} KiB; differs from the model by {found:.1g}",
        f"python3 -m http.server -b 127.0.0.1 -d {path} shows it at http://127.0.0.1:8000",
    ]


def outputs(path: Path, x: Tensor) -> Tensor:
    """The outputs of the written page's model for a signal x (1, T, 1), hop by hop."""
    push = _Streams(path, 1)
    return joined([push([part])[0] for part in x.split(push.facts["hop"], 1)])


def _compile(folder: Path, target: Path) -> None:
    """model.c of a folder as WebAssembly."""
    try:
        import ziglang  # noqa: F401  (run below)
    except ImportError as error:
        raise needs("web", error) from error
    (folder / "glue.c").write_text(GLUE, encoding="utf-8")
    exports = [f"-Wl,--export={name}" for name in EXPORTS]
    sources = [str(folder / name) for name in ("model.c", "glue.c")]
    zig = [sys.executable, "-m", "ziglang", "cc", "--target=wasm32-wasi"]
    c.compiled([*zig, *FLAGS, *exports, *sources, "-lm", "-o", str(target)], "model.c")


class _Streams:
    """Streams of the WebAssembly in a folder, as a function (x,) → (y,) that carries their states itself."""

    def __init__(self, folder: Path, count: int) -> None:
        try:
            import wasmtime
        except ImportError as error:
            raise needs("web", error) from error
        self.facts = json.loads((folder / "model.json").read_text(encoding="utf-8"))
        engine = wasmtime.Engine()
        module = wasmtime.Module.from_file(engine, str(folder / "model.wasm"))
        self.streams: list[tuple[Any, Any]] = []
        for _ in range(count):
            store = wasmtime.Store(engine)
            exports: Any = wasmtime.Instance(store, module, []).exports(store)
            exports["begin"](store)
            self.streams.append((store, exports))

    def __call__(self, inputs: Any) -> list[Tensor]:
        rows, outputs = self.facts["rows"], self.facts["outputs"]
        y = np.empty((len(self.streams), rows, outputs), np.float32)
        for i, (store, exports) in enumerate(self.streams):
            exports["memory"].write(store, inputs[0][i].numpy().tobytes(), exports["input"](store))
            exports["push"](store)
            at = exports["output"](store)
            y[i] = np.frombuffer(exports["memory"].read(store, at, at + y[i].nbytes), np.float32).reshape(
                y[i].shape
            )
        made = torch.from_numpy(y)
        return [made[:, 0] if self.facts["pooled"] else made, *inputs[1:]]
