"""A model that filters sound as a plug-in for audio hosts: the C of the model amid that of `plugin/`.

`plugin/` has what all interfaces share, and a folder for each. Rates are converted as `infer` converts them.
"""

import ctypes
import re
import shutil
import tempfile
import time
import weakref
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lrnnx_app.data.resample import ROLLOFF, WIDTH
from lrnnx_app.disk.atomic import fresh
from lrnnx_app.errors import UserError
from lrnnx_app.export import c
from lrnnx_app.export._c_program import identifier
from lrnnx_app.export._chunk import CHUNKS, TOLERANCE, Chunk
from lrnnx_app.export._output import Options, accept
from lrnnx_app.export.onnx import INT8_TOLERANCE
from lrnnx_app.runs.run import Run
from lrnnx_app.streaming.numbers import LOUDEST

FILES = Path(__file__).parent / "plugin"
FIXED = ("-std=c99", "-fPIC", "-fvisibility=hidden")  # beside flags for speed, which a user may choose
HOST_RATE, BLOCK = 48000, 768  # of the host whose cost is measured: Hz, and samples, 16 ms
BLOCKS, TRIES = 50, 5


@dataclass(frozen=True)
class Interface:
    """How hosts call a plug-in.

    Args:
        name: that of its folder, and of the function `<name>_descriptor` that a library has.
        descriptor: what that function returns, with `instantiate`, `connect`, `activate`, `run`, `cleanup`.
        given: what `instantiate` takes after the rate.
        on: the value of the switch with which the model is heard.
        place: the folder in which hosts look for it, for make.
        parts: the files that it needs there.
    """

    name: str
    descriptor: type[ctypes.Structure]
    given: tuple[Any, ...]
    on: float
    place: str
    parts: str


class Instance:
    """One channel of the plug-in in the folder `path`, in a host of that rate.

    Attributes:
        switch, mix: its controls.
    """

    def __init__(self, path: Path, interface: Interface, rate: int) -> None:
        (library,) = path.glob("*.so")
        find = getattr(ctypes.CDLL(str(library)), f"{interface.name}_descriptor")
        find.restype = ctypes.POINTER(interface.descriptor)
        self._plugin = find(0).contents
        self._handle = self._plugin.instantiate(ctypes.addressof(self._plugin), rate, *interface.given)
        weakref.finalize(self, self._plugin.cleanup, self._handle)
        self.switch, self.mix = ctypes.c_float(interface.on), ctypes.c_float(1.0)
        self._latency = ctypes.c_float()
        for port, control in enumerate((self.switch, self.mix, self._latency), 2):
            self._plugin.connect(self._handle, port, ctypes.addressof(control))
        self.reset()

    @property
    def latency(self) -> int:
        """Samples of the host by which the output is late, as it tells the host."""
        self.push(torch.zeros(0))
        return int(self._latency.value)

    def reset(self) -> None:
        self._plugin.activate(self._handle)

    def push(self, x: Tensor) -> Tensor:
        """The next outputs, as many as the samples x (T,)."""
        x, y = x.contiguous(), torch.empty_like(x)
        for port, samples in enumerate((x, y)):
            self._plugin.connect(self._handle, port, samples.data_ptr())
        self._plugin.run(self._handle, len(x))
        return y


def write(run: Run, path: Path, options: Options, interface: Interface) -> list[str]:
    """Write the folder of a plug-in and build it; returns lines that describe it.

    Raises:
        UserError: the model is no filter of sound, or a package of the extra or a C compiler is missing.
        RunError: the run has no checkpoint, or `path` cannot be written.
        StreamError: the model cannot stream, or an option does not fit it.
    """
    task = run.task()
    model, spec = task.model, task.spec
    if task.inference != "audio" or (spec.d_input, spec.d_output) != (1, 1) or options.timed:
        raise UserError("a plug-in is for a model that filters sound; this run does something else")
    name = identifier(path.absolute())
    facts = {
        "NAME": name,
        "ID": 1000 + zlib.crc32(name.encode()) % 0xFFF000,  # below 2^24, and none of those for experiments
        "CROSSINGS": WIDTH,
        "CUTOFF": ROLLOFF,
        "LOUDEST": LOUDEST,
        "FORMAT": interface.name,
        "FIXED": " ".join(FIXED),
        "FLAGS": " ".join(c.FAST),
        "PLACE": interface.place.format(name=name),
        "PARTS": interface.parts.format(name=name),
    }
    with fresh(path, folder=True) as part, tempfile.TemporaryDirectory() as scratch:
        c.export(run, Path(scratch) / "model.c", options)
        for file in ("model.c", "model.h"):
            shutil.copyfile(Path(scratch) / file, part / file)
        for file in (*FILES.iterdir(), *(FILES / interface.name).iterdir()):
            if file.is_file():
                text = re.sub("@([A-Z]+)@", lambda key: str(facts[key[1]]), file.read_text(encoding="utf-8"))
                (part / file.name).write_text(text, encoding="utf-8")
        _build(part, Path(scratch), f"{name}.so")
        found = _difference(Chunk(model, options.chunk or model.hop), part, interface)
        accept(path, found, INT8_TOLERANCE if options.int8 else TOLERANCE)
        cost, own = (_seconds(part, interface, rate) for rate in (HOST_RATE, spec.sample_rate))
        late = Instance(part, interface, HOST_RATE).latency
    return [
        f"{path}: {name}.so filters a channel at any rate; differs from the model by {found:.1g}",
        f"in a host of {HOST_RATE} Hz: {late} samples late; {1e6 * cost:.0f} µs for {BLOCK} samples, "
        f"{max(0, 1 - own / cost):.0%} of it to convert the rate",
        f"make -C {path} install copies it to where hosts look for it",
    ]


def filtered(path: Path, interface: Interface, x: Tensor) -> Tensor:
    """What the written plug-in makes of a signal x (1, T, 1) at the model's rate, as the model would give it.

    Only the outputs that the model gives before that of the first sample are zero.
    """
    sizes = c.sizes(path / "model.c")
    late = x.new_zeros(sizes["HOP"] - 1)
    y = Instance(path, interface, sizes["RATE"]).push(torch.cat((x[0, :, 0], late)))
    return y[None, len(late) :, None]


def _build(part: Path, scratch: Path, library: str) -> None:
    """What the Makefile does, with the objects elsewhere."""
    objects = [scratch / f"{file.stem}.o" for file in sorted(part.glob("*.c"))]
    for made in objects:
        source = part / f"{made.stem}.c"
        c.compiled([c.compiler(), *FIXED, *c.FAST, "-c", str(source), "-o", str(made)], source.name)
    c.compiled([c.compiler(), "-shared", *map(str, objects), "-lm", "-o", str(part / library)], library)


@torch.no_grad()
def _difference(chunk: Chunk, path: Path, interface: Interface) -> float:
    """‖plug-in − model‖ / ‖model‖ on noise at the model's rate."""
    (x,) = chunk.signal(1, chunk.chunk * CHUNKS, torch.Generator().manual_seed(1))
    expected = chunk.model(x)[0][:, chunk.delay :]
    return float((filtered(path, interface, x)[:, chunk.delay :] - expected).norm() / expected.norm())


def _seconds(path: Path, interface: Interface, rate: int) -> float:
    """What BLOCK samples of HOST_RATE take when the host has `rate`."""
    plugin, noise = Instance(path, interface, rate), torch.randn(BLOCK * rate // HOST_RATE)
    times = []
    for _ in range(TRIES):
        start = time.perf_counter()
        for _ in range(BLOCKS):
            plugin.push(noise)
        times.append((time.perf_counter() - start) / BLOCKS)
    return min(times)
