"""The RG-LRU's scan where nothing decays, and first steps that are told by numbers."""

import pytest
import torch

from lrnnx_app.ops._compare import compared, results
from lrnnx_app.ops._examples import Draw, Sizes
from lrnnx_app.ops._table import OPERATORS, PLAIN
from lrnnx_app.ops.rglru_scan import rglru_scan

DTYPES = (torch.float64, torch.float32, torch.bfloat16)
SCAN = OPERATORS["rglru_scan"]


def operands(device="cpu", time=6):
    return SCAN.typed(SCAN.draw(Draw(), Sizes(2, time, 5)), torch.float32, device)


@pytest.mark.parametrize("time", [1, 6])
def test_numbers_say_as_well_where_a_sequence_starts(device, time):
    given = operands(device, time)
    got = results(SCAN, rglru_scan, given | {"first": given["first"].float()}, PLAIN)
    want = results(SCAN, rglru_scan, given, PLAIN)
    assert all(map(torch.equal, got.outputs, want.outputs))
    assert all(map(torch.equal, got.gradients.values(), want.gradients.values()))


@pytest.mark.parametrize("rate", [0.0, 2.0**-30])
def test_gradients_are_right_where_nothing_decays(device, rate):
    """The second rounds a to 1 in float32; float16 could not hold what gates gain of so small a rate."""
    given = operands()
    given["rate"].fill_(rate)
    for dtype, worst in compared(SCAN, given, PLAIN, device, DTYPES).items():
        assert worst.within(SCAN.allowed(dtype)), (dtype, worst)
