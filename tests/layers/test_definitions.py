"""Every layer against the definition beside its class, and proof that a wrong layer does not pass."""

import pytest
import torch
from torch import nn

from lrnnx_app.layers._definition import definition_of, differences
from lrnnx_app.layers._examples import examples
from lrnnx_app.layers._properties import DEFINED, inputs, moved
from lrnnx_app.registry import LAYERS
from tests.helpers import relative
from tests.layers.test_layers import EXAMPLES

SEEN = 1e-7
FIRST = [examples(name)[0] for name in LAYERS]


@pytest.mark.parametrize("case", EXAMPLES, ids=str)
def test_many_steps_are_the_definition_too(case):
    """More than a chunk of any path."""
    layer, definition = moved(case)
    x, _ = inputs(False, time=70)
    with torch.no_grad():
        expected = definition(x)
        assert relative(layer(x)[0], expected) <= DEFINED


class Louder(nn.Module):
    """A layer that is wrong by 20 % in the same way in forward, in steps and in chunks."""

    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x, state=None, **rest):
        y, state = self.layer(x, state, **rest)
        return 1.2 * y, state

    def step(self, x, state, dt=None):
        y, state = self.layer.step(x, state, dt)
        return 1.2 * y, state


@pytest.mark.parametrize("case", FIRST, ids=str)
def test_a_gain_that_is_wrong_everywhere_alike_is_seen(case):
    layer, definition = moved(case)
    wrong, (x, _) = Louder(layer), inputs(False)
    whole, _ = wrong(x)
    first, state = wrong(x[:, :4])
    one, state = wrong.step(x[:, 4], state)
    rest, _ = wrong(x[:, 5:], state)
    assert torch.allclose(torch.cat((first, one[:, None], rest), 1), whole), "steps and chunks see nothing"
    assert differences(wrong, definition, x)["y"] == pytest.approx(0.2)


@pytest.mark.parametrize("case", EXAMPLES, ids=str)
def test_a_definition_notices_every_parameter(case):
    layer, definition = moved(case)
    x, _ = inputs(False)
    with torch.no_grad():
        expected = definition(x)
        for name, p in layer.named_parameters():
            before = p.clone()
            p.mul_(1.2)
            changed = layer(x)[0]
            p.copy_(before)
            assert (changed - expected).norm() > SEEN * expected.norm(), name


def test_a_layer_without_a_definition_is_told_what_to_write():
    class Bare(nn.Module):
        pass

    with pytest.raises(
        NotImplementedError, match=r"has no definition of Bare. Add the paper's own loop"
    ) as told:
        definition_of(Bare)
    assert "def definition(layer: Bare, x: Tensor" in str(told.value)
