import pytest
import torch
from torch.autograd import gradcheck

from lrnnx_app.ops.short_conv import reference, short_conv


def case(width, time=7, batch=3, channels=2, bias=True):
    def make(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    return [
        make(batch, time, channels),
        make(channels, width),
        make(channels) if bias else None,
        make(batch, width - 1, channels),
    ]


MASKS = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([7, 2, 0])},
    "reset": {"reset": torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) < 0.4},
}
MASKS["both"] = MASKS["lengths"] | MASKS["reset"]


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 9])
def test_equals_the_definition(width, masks):
    inputs = case(width, bias=width != 3)
    for silu in (False, True):
        got, wanted = short_conv(*inputs, **masks, silu=silu), reference(*inputs, **masks, silu=silu)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_equals_conv1d():
    x, weight, bias, _ = case(4)
    y, _ = short_conv(x, weight, bias)
    padded = torch.nn.functional.pad(x.mT, (3, 0))
    wanted = torch.nn.functional.conv1d(padded, weight[:, None], bias, groups=2).mT
    torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_gradients(masks):
    assert gradcheck(lambda *z: short_conv(*z, **masks, silu=True), case(3))


@pytest.mark.parametrize("width", [2, 5])
def test_chunks_carry_inputs_not_outputs(width):
    x, weight, bias, state = case(width, time=11)
    whole, last = short_conv(x, weight, bias, state, silu=True)
    parts = []
    for part in x.split([1, 3, 7], 1):
        y, state = short_conv(part, weight, bias, state, silu=True)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, last)
    torch.testing.assert_close(state, x[:, 12 - width :])


def test_half_precision_keeps_a_float32_state():
    x, weight, bias, _ = (z.bfloat16() for z in case(4))
    y, state = short_conv(x, weight, bias)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 0, 2)}, "T ≥ 1"),
        ({"weight": torch.zeros(3, 4)}, "weight must be"),
        ({"state": torch.zeros(3, 4, 2)}, "state must be"),
        ({"lengths": torch.zeros(2)}, "lengths must be"),
        ({"reset": torch.zeros(3, 6)}, "reset must be"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    given = {"x": torch.zeros(3, 7, 2), "weight": torch.zeros(2, 4)} | change
    with pytest.raises(ValueError, match=message):
        short_conv(**given)
