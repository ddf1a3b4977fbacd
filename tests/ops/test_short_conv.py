"""The short convolution against torch's own, its state, and what it refuses."""

import pytest
import torch

from lrnnx_app.ops.short_conv import short_conv


def case(width, time=7, batch=3, channels=2):
    def make(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    return [
        make(batch, time, channels),
        make(channels, width),
        make(channels),
        make(batch, width - 1, channels),
    ]


def test_equals_conv1d():
    x, weight, bias, _ = case(4)
    y, _ = short_conv(x, weight, bias)
    padded = torch.nn.functional.pad(x.mT, (3, 0))
    wanted = torch.nn.functional.conv1d(padded, weight[:, None], bias, groups=2).mT
    torch.testing.assert_close(y, wanted)


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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 0, 2)}, "T ≥ 1"),
        ({"weight": torch.zeros(3, 4)}, "weight must be"),
        ({"bias": torch.zeros(3)}, "bias must be"),
        ({"state": torch.zeros(3, 4, 2)}, "state must be"),
        ({"lengths": torch.zeros(2)}, "lengths must be"),
        ({"reset": torch.zeros(3, 6)}, "reset must be"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    given = {"x": torch.zeros(3, 7, 2), "weight": torch.zeros(2, 4)} | change
    with pytest.raises(ValueError, match=message):
        short_conv(**given)
