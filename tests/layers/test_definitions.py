"""Every layer against the definition beside its class, and proof that a wrong layer does not pass."""

from functools import partial

import pytest
import torch
from torch import nn

from lrnnx_app.layers import _bidirectional
from lrnnx_app.layers._definition import definition_of, differences
from lrnnx_app.layers._examples import D_MODEL, examples
from lrnnx_app.registry import LAYERS

EXACT, SEEN = 1e-9, 1e-7
EXAMPLES = [case for name in LAYERS for case in examples(name)]
FIRST = [examples(name)[0] for name in LAYERS]


def made(case):
    """The layer with no parameter at 0 or 1, where an error could hide; and its definition."""
    layer = case.build()
    with torch.no_grad():
        for p in layer.parameters():
            p.add_(0.1 * torch.randn_like(p))
    definition = _bidirectional.definition if case.bidirectional else definition_of(LAYERS[case.name])
    return layer, partial(definition, layer)


def drawn(timed, time=9):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, time, D_MODEL, generator=generator, dtype=torch.float64)
    dt = torch.rand(2, time, generator=generator, dtype=torch.float64) * 2 + 0.1
    return x, dt if timed else None


@pytest.mark.parametrize("case", EXAMPLES, ids=str)
def test_many_steps_are_the_definition_too(case):
    """More than a chunk of any path."""
    layer, definition = made(case)
    x, _ = drawn(False, 70)
    with torch.no_grad():
        expected = definition(x)
        assert (layer(x)[0] - expected).norm() <= EXACT * expected.norm()


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
    layer, definition = made(case)
    wrong, (x, _) = Louder(layer), drawn(False)
    whole, _ = wrong(x)
    first, state = wrong(x[:, :4])
    one, state = wrong.step(x[:, 4], state)
    rest, _ = wrong(x[:, 5:], state)
    assert torch.allclose(torch.cat((first, one[:, None], rest), 1), whole), "steps and chunks see nothing"
    assert differences(wrong, definition, x)["y"] == pytest.approx(0.2)


@pytest.mark.parametrize("case", EXAMPLES, ids=str)
def test_a_definition_notices_every_parameter(case):
    layer, definition = made(case)
    x, _ = drawn(False)
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
