"""The scan at every length and width, and with coefficients of another precision."""

import pytest
import torch

from lrnnx_app.ops._compare import compared, errors, poisoned, results
from lrnnx_app.ops._examples import Draw, Sizes
from lrnnx_app.ops._table import OPERATORS, Variant
from lrnnx_app.ops.linear_scan import linear_scan
from tests.helpers import relative

SCAN = OPERATORS["linear_scan"]
LENGTHS = (1, 2, 3, 16, 17, 31, 33, 127, 500, 1000, 2049)


def check(device: str, sizes: Sizes, variant: Variant) -> None:
    drawn = SCAN.draw(Draw(), sizes, variant)
    dtypes = (torch.float64, torch.float32)
    for operands in (drawn, SCAN.needed(drawn)):
        for dtype, worst in compared(SCAN, operands, variant, device, dtypes).items():
            assert worst.within(SCAN.allowed(dtype)), (variant.words, dtype, worst)
            assert worst.output <= 2e-6


@pytest.mark.parametrize("time", LENGTHS)
def test_lengths(device, time):
    for variant in (v for v in SCAN.variants if v.example["a"] in ("full", "constant")):
        check(device, Sizes(2, time, 3), variant)


@pytest.mark.parametrize("channels", [1, 3, 16, 63, 64, 65, 100, 256, 1000])
def test_widths(device, channels):
    for variant in SCAN.variants:
        check(device, Sizes(2, 10, channels), variant)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("a", ["full", "constant"])
def test_wider_coefficients(device, a, dtype):
    """Under autocast `a` is float32 beside half-precision inputs."""
    variant = Variant(example={"planes": 2, "a": a})
    drawn = SCAN.needed(SCAN.draw(Draw(), Sizes(2, 130, 5), variant))
    with poisoned():
        given = SCAN.typed(drawn, dtype, device) | {"a": drawn["a"].to(device)}
        got = results(SCAN, linear_scan, given, variant)
    want = results(SCAN, SCAN.definition, SCAN.typed(drawn, torch.float64), variant)
    assert errors(got, want).within(SCAN.allowed(dtype))


@pytest.mark.parametrize("state", [(2, 30, 20), (3, 16, 16, 2), (4, 1, 1)])
@pytest.mark.parametrize("axes", [0, 1, 2])
def test_coefficients_of_the_first_axes_of_a_state(device, axes, state):
    """As those of every state, in groups that fill several blocks of a kernel, one, or part of one."""
    draw = Draw()
    a = draw.uniform(0, 1, 2, 9, *state[:axes]).double().to(device).requires_grad_()
    b = draw.normal(2, 9, *state).double().to(device).requires_grad_()
    whole = a.view(*a.shape, *[1] * (len(state) - axes)).expand_as(b)
    along = draw.normal(*b.shape).to(b)
    got = linear_scan(a, b)[0]
    want = linear_scan(whole.flatten(2), b.flatten(2))[0].view_as(b)
    assert relative(got, want) <= SCAN.allowed(torch.float64).output
    for x, y in zip(*(torch.autograd.grad(z, (a, b), along) for z in (got, want)), strict=True):
        assert relative(x, y) <= SCAN.allowed(torch.float64).gradient
