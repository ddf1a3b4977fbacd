"""Submodules that are wrapped, hooked or parametrized act in every layer and model, on all paths."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lrnnx_app.models.unet import Down, Up
from lrnnx_app.registry import LAYERS, MODELS
from tests.helpers import relative, small_model
from tests.layers.test_layers import D_MODEL, PLAIN, each_both

TIME = 9
PARTS = (nn.Linear, nn.Conv1d)


class Adapted(nn.Module):
    """A module beside a product of two thin ones, with none of its own weights at the usual names."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        self.base = base
        if isinstance(base, nn.Conv1d):
            self.down = nn.Conv1d(base.in_channels, 2, base.kernel_size[0], bias=False)
            self.up: nn.Module = nn.Conv1d(2, base.out_channels, 1, bias=False)
        else:
            self.down = nn.Linear(base.in_features, 2, bias=False)
            self.up = nn.Linear(2, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


def parts(module: nn.Module) -> list[str]:
    return [name for name, part in module.named_modules() if isinstance(part, PARTS)]


LAYER_PARTS = [(case, part) for case in PLAIN for part in parts(case.build())]
CONVOLVING = [case for case in PLAIN if any("conv" in part for part in parts(case.build()))]
each_part = pytest.mark.parametrize(("case", "part"), LAYER_PARTS, ids=str)


def swap(module: nn.Module, part: str) -> Any:
    """Puts an adapter in the place of the part."""
    parent, _, last = part.rpartition(".")
    adapted = Adapted(module.get_submodule(part)).double()
    setattr(module.get_submodule(parent), last, adapted)
    return adapted


def steps(layer: Any, x: Tensor) -> Tensor:
    state, ys = layer.init_state(len(x)), []
    for one in x.unbind(1):
        y, state = layer.step(one, state)
        ys.append(y)
    return torch.stack(ys, 1)


def check(layer: Any, before: Tensor, x: Tensor) -> Tensor:
    """forward = steps, other than before."""
    y, _ = layer(x)
    assert relative(steps(layer, x), y) < 1e-10
    assert relative(y, before) > 1e-6
    return y


def test_all_that_holds_a_weight_is_a_part():
    for case in PLAIN:
        held = {name for name, _ in case.build().named_parameters() if name.endswith(".weight")}
        assert held == {f"{part}.weight" for one, part in LAYER_PARTS if one == case}
    assert LAYER_PARTS


@each_part
def test_an_adapter_acts_and_learns(case, part):
    layer, x = case.build(), torch.randn(2, TIME, D_MODEL, dtype=torch.float64)
    before, _ = layer(x)
    adapted = swap(layer, part)
    check(layer, before, x).square().sum().backward()
    for p in adapted.parameters():
        assert p.grad is not None
        assert p.grad.abs().max() > 0


@each_part
def test_a_hook_acts(case, part):
    layer, x = case.build(), torch.randn(2, TIME, D_MODEL, dtype=torch.float64)
    before, _ = layer(x)
    handle = layer.get_submodule(part).register_forward_hook(lambda module, given, y: 1.5 * y)
    check(layer, before, x)
    handle.remove()
    assert torch.equal(layer(x)[0], before)
    layer.get_submodule(part).register_forward_pre_hook(lambda module, given: (1.5 * given[0],))
    check(layer, before, x)


@each_part
def test_a_parametrization_acts(case, part):
    layer, x = case.build(), torch.randn(2, TIME, D_MODEL, dtype=torch.float64)
    before, _ = layer(x)
    expected = deepcopy(layer)
    with torch.no_grad():
        expected.get_submodule(part).weight.mul_(2)
    parametrize.register_parametrization(layer.get_submodule(part), "weight", Doubled())
    assert relative(check(layer, before, x), expected(x)[0]) < 1e-12


@each_part
def test_a_replaced_forward_acts(case, part):
    """As libraries that move weights between devices replace it."""
    layer, x = case.build(), torch.randn(2, TIME, D_MODEL, dtype=torch.float64)
    before, _ = layer(x)
    module = layer.get_submodule(part)
    run = module.forward
    module.forward = lambda given: 1.5 * run(given)
    check(layer, before, x)


@pytest.mark.parametrize("case", CONVOLVING, ids=str)
def test_an_adapted_convolution_knows_ends_and_starts(case):
    layer, x = case.build(), torch.randn(2, TIME, D_MODEL, dtype=torch.float64)
    part = next(part for part in parts(layer) if "conv" in part)
    same = deepcopy(layer)
    same.get_submodule(part).register_forward_hook(lambda *_: None)  # the same by the other way
    reset, lengths = torch.zeros(2, TIME, dtype=torch.bool), torch.tensor([TIME, 6])
    reset[0, 4] = reset[1, 2] = True
    _, state = layer(x)
    for options in ({"lengths": lengths}, {"reset": reset}, {"lengths": lengths, "reset": reset}):
        y, last = layer(x, state, **options)
        again, after = same(x, state, **options)
        assert relative(again, y) < 1e-12
        assert all(relative(one, other) < 1e-12 for one, other in zip(after, last, strict=True))


@each_both
def test_both_directions_take_adapters(case):
    both, x = case.build(), torch.randn(2, TIME, D_MODEL, dtype=torch.float64)
    for part in parts(both):
        before, _ = both(x)
        swap(both, part)
        assert relative(both(x)[0], before) > 1e-6, part


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("name", MODELS)
def test_adapters_in_models(name, layer):
    model = small_model(name, layer).double()
    chunk = 4 * model.hop
    x = torch.randn(2, 3 * chunk, model.spec.d_input, dtype=torch.float64)
    adapters = []
    for part in parts(model):
        before, _ = model(x)
        if isinstance(model.get_submodule(part), Down | Up):  # their output is of another shape
            continue
        adapters.append(swap(model, part))
        assert relative(model(x)[0], before) > 1e-9, part
    whole, _ = model(x)
    state, pieces = model.init_state(2), []
    for piece in x.split(chunk, 1):
        y, state = model(piece, state)
        pieces.append(y)
    streamed = torch.cat(pieces, 1) if y.ndim == 3 else pieces[-1]
    assert relative(streamed, whole) < 1e-10
    whole.square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for a in adapters for p in a.parameters())


def test_a_hook_on_a_layer_acts_on_a_chunk_of_one_step():
    model, x = small_model("backbone").double(), torch.randn(2, 6, 3, dtype=torch.float64)
    model.get_submodule("blocks.0.layer").register_forward_hook(lambda module, given, y: (1.5 * y[0], y[1]))
    whole, _ = model(x)
    state = model.init_state(2)
    pieces = []
    for one in x.split(1, 1):
        y, state = model(one, state)
        pieces.append(y)
    assert relative(pieces[-1], whole) < 1e-10
