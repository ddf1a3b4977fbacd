"""The kernels of the scan with matrices as states, interpreted by Triton on a CPU."""

import subprocess
import sys

import numpy as np
import pytest

PROGRAM = """
import sys
import torch
from lrnnx_app.ops import _matrix_gpu
from lrnnx_app.ops._examples import Draw
from lrnnx_app.ops.matrix_scan import reference

delta, of_channels = (word == "True" for word in sys.argv[1:])
for time, masked in ((70, True), (128, False)):
    draw, shape = Draw(fine=True), (2, time, 2, 16)
    given = [draw.normal(*shape), draw.direction(*shape), draw.normal(2, time, 2, 32)]
    given.append(draw.uniform(-9, 0, *(shape if of_channels else shape[:-1])))
    given += [draw.uniform(0, 2, *shape[:-1]) if delta else None, draw.normal(2, 2, 32, 16), None]
    masks = {"lengths": torch.tensor([time, time // 2]), "reset": draw.uniform(0, 1, 2, time) < 0.05}
    masks = masks if masked else dict.fromkeys(masks)
    found = _matrix_gpu.forward(*given, *masks.values())
    along = [draw.normal(*x.shape) for x in found]
    grads = _matrix_gpu.backward(*along, *given, *masks.values())
    leaves = [x if x is None else x.double().requires_grad_() for x in given[:6]]
    want = reference(*leaves, **masks)
    needed = [x for x in leaves if x is not None]
    want = (*want, *torch.autograd.grad(want, needed, [x.double() for x in along]))
    found = (*found, *(x for x in grads if x.numel()))
    assert len(found) == len(want)
    for i, (x, y) in enumerate(zip(found, want)):
        assert (x - y).norm() < 2e-5 * y.norm(), (time, i, float((x - y).norm() / y.norm()))
"""


WRONG = """
import torch
from lrnnx_app.ops import _matrix_gpu
case = torch.device("cpu"), False, False, 16, 16, True, torch.float32
assert _matrix_gpu.right(*case)
_matrix_gpu.right.cache_clear()
outputs = _matrix_gpu._outputs
_matrix_gpu._outputs = lambda *given, **more: outputs(*given, **more) * 0.9
assert not _matrix_gpu.right(*case)
"""


def interpreted(program, *words):
    command = [sys.executable, "-c", program, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stderr


@pytest.fixture(autouse=True)
def _interpreter(monkeypatch):
    triton = pytest.importorskip("triton")
    if triton.__version__.startswith("3.6.") and tuple(map(int, np.__version__.split(".")[:2])) >= (2, 4):
        pytest.skip("the interpreter of Triton 3.6 takes an array for a number, which numpy 2.4 refuses")
    monkeypatch.setenv("TRITON_INTERPRET", "1")


def test_kernels_that_are_wrong_are_not_taken():
    """Where Triton's compiler makes them wrong: torch code runs, and a warning says so."""
    assert "Triton's kernels are wrong here" in interpreted(WRONG)


@pytest.mark.parametrize(("delta", "of_channels"), [(False, False), (False, True), (True, False)])
def test_interpreted_kernels_agree_with_the_definition(delta, of_channels):
    """Forward and every gradient, with sequences in a row, lengths and a state before."""
    interpreted(PROGRAM, delta, of_channels)
