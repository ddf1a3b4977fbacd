"""A matmul of a few rows and what follows it, against its definition in float64; and launches in a chain."""

import itertools

import pytest
import torch

from lrnnx_app.layers import rglru
from lrnnx_app.ops import block_linear
from lrnnx_app.ops._compare import compared
from lrnnx_app.ops._examples import Draw
from lrnnx_app.ops._table import OPERATORS, Variant
from lrnnx_app.ops.row_linear import CODES, MOST, reference, row_linear

ROWS = (1, 3, 8, 9, 16, 33, 64, 65)
SIZES = ((512, 2048), (1024, 64), (32, 1024), (1024, 512), (20, 7), (21, 5), (4, 1), (100, 1000))
ROWS_OF = OPERATORS["row_linear"]


def check(device, dtypes, operands, **options):
    for dtype, worst in compared(ROWS_OF, operands, Variant(options=options), device, dtypes).items():
        assert worst.within(ROWS_OF.allowed(dtype)), (dtype, worst)


@pytest.mark.parametrize("rows", ROWS)
def test_equals_the_definition(device, rows):
    draw = Draw()
    for inputs, outputs in SIZES:
        given = {"x": draw.normal(rows, inputs), "weight": draw.normal(outputs, inputs)}
        check(device, ROWS_OF.dtypes, given)
        check(device, ROWS_OF.dtypes, given | {"bias": draw.normal(outputs)})


@pytest.mark.parametrize("activation", CODES)
def test_what_follows(device, activation):
    draw = Draw()
    for rows, outputs in itertools.product((1, 5, 64), (33, 512)):
        given = {"x": draw.normal(rows, 64) / 8, "weight": draw.normal(outputs, 64)}
        bias, times = {"bias": draw.normal(outputs)}, {"times": draw.normal(rows, outputs)}
        skip = {"skip": draw.normal(outputs), "via": draw.normal(rows, outputs)}
        for more in (bias | skip | times, skip, bias | times):
            check(device, [torch.float32], given | more, activation=activation)
        louder = given | bias | {"x": 8 * given["x"]}
        check(device, [torch.float32], louder, activation=activation, gelu=True)


def test_blocks_along_the_diagonal(device):
    for rows, (heads, width) in itertools.product((1, 7, 64), ((2, 16), (16, 32), (3, 20))):
        x, weight = torch.randn(rows, heads * width), torch.randn(2 * heads * width, width)
        check(
            device, [torch.float32], {"x": x, "weight": weight, "bias": torch.randn(len(weight))}, heads=heads
        )
        whole = torch.cat([torch.block_diag(*part.split(width)) for part in weight.split(heads * width)])
        torch.testing.assert_close(reference(x, weight, *[None] * 4, heads, 0, False), x @ whole.T)


def test_rows_and_weights_as_they_lie(device):
    """Parts of wider rows, rows that start at any number, a batch of steps, no rows."""
    wide, weight = torch.randn(9, 200).to(device), torch.randn(48, 64).to(device)
    for x in (wide[:, :64], wide[:, 4:68], wide[:, 3:67], wide[::2, 64:128], wide[:, :64].mT.contiguous().mT):
        torch.testing.assert_close(row_linear(x, weight), x @ weight.mT, rtol=1e-5, atol=1e-5)
        times = wide[: len(x), 1:49]
        want = (x @ weight.mT) * times
        torch.testing.assert_close(row_linear(x, weight, times=times), want, rtol=1e-5, atol=1e-5)
    steps = wide[:8, :64].unflatten(0, (2, 4))
    torch.testing.assert_close(row_linear(steps, weight), steps @ weight.mT, rtol=1e-5, atol=1e-5)
    assert row_linear(wide[:0, :64], weight).shape == (0, 48)
    misplaced = torch.randn(48 * 64 + 1).to(device)[1:].unflatten(0, (48, 64))
    torch.testing.assert_close(
        row_linear(wide[:, :64], misplaced), wide[:, :64] @ misplaced.mT, rtol=1e-5, atol=1e-5
    )


def test_numbers_without_a_value_stay_in_their_row(device):
    x, weight = torch.randn(4, 64).to(device), torch.randn(32, 64).to(device)
    x[1, 3], x[2, 5] = torch.nan, torch.inf
    y = row_linear(x, weight)
    assert y[[0, 3]].isfinite().all()
    assert not y[[1, 2]].isfinite().any()


def test_gates_of_a_step_and_of_a_sequence_agree(device, monkeypatch):
    layer = rglru.RGLRU(64, rglru.RGLRU.Config()).to(device).requires_grad_(False)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter)
    u = torch.randn(2, MOST, layer.recurrent_param.shape[0]).to(device)
    want = layer.gates(u)
    monkeypatch.setattr(block_linear, "few", lambda *_: True)  # on a CPU too, by the definition
    for t in (0, 7):
        for got, whole in zip(layer.gates(u[:, t : t + 1]), want, strict=True):
            torch.testing.assert_close(got[:, 0], whole[:, t], rtol=1e-5, atol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no CUDA device")
def test_each_launch_of_a_chain_waits_for_the_one_before():
    """Launches that are on the GPU early, among others and copies, give in a graph what they give apart."""
    weights = [torch.randn(256, 256, device="cuda") / 16 for _ in range(8)]
    held, x = torch.zeros(4, 256, device="cuda"), torch.randn(4, 256, device="cuda")

    def run(wait):
        y = x
        for k in range(40):
            y = row_linear(y, weights[k % 8], times=y)
            wait()
            if k % 5 == 4:
                held.copy_(y)  # by a copy, a kernel of torch's, and in place
                y = held.clamp(-3, 3)
                held.add_(y)
                wait()
        return y + held

    apart = run(torch.cuda.synchronize)
    for _ in range(20):
        assert torch.equal(run(lambda: None), apart)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y = run(lambda: None)
    for _ in range(200):
        y.zero_()
        graph.replay()
        assert torch.equal(y, apart)
