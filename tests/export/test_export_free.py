"""A layer or model that is exported with a free number of steps is right at every number of them."""

import pytest
import torch
from torch.export import Dim, export
from torch.utils._pytree import tree_leaves

from lrnnx_app.models.backbone import Backbone
from lrnnx_app.registry import LAYERS
from lrnnx_app.spec import DataSpec
from tests.helpers import relative
from tests.layers.test_layers import D_MODEL, PLAIN, TIMED_PLAIN, _name

CASES = [(case, timed) for case, timed in TIMED_PLAIN if case in PLAIN]
LENGTHS = (2, 31, 150)  # within a chunk or window, across one, and across several


def agrees(module, given) -> None:
    """The exported module gives what the module gives, output and state, at each length."""
    args, kwargs = given(40)
    steps = Dim("steps", min=2, max=4096)
    shapes = {name: {1: steps} if name in ("x", "dt") else None for name in ("x", *kwargs)}
    shapes |= {"state": None} if len(args) > 1 else {}
    with torch.no_grad():
        program = export(module, args, kwargs, dynamic_shapes=shapes, strict=False).module()
        for length in LENGTHS:
            args, kwargs = given(length)
            wanted, found = module(*args, **kwargs), program(*args, **kwargs)
            for value, expected in zip(tree_leaves(found), tree_leaves(wanted), strict=True):
                if expected is not None:
                    assert value.shape == expected.shape
                    assert relative(value, expected) < 1e-10 or (value - expected).abs().max() < 1e-12


REFUSED = ("s4", "local_attention", "mlstm")  # whose steps, windows or doublings are a loop in Python


@pytest.mark.parametrize(("case", "timed"), CASES, ids=_name)
def test_layers(case, timed):
    module = case.build().eval()

    def given(length):
        x = torch.randn(2, length, D_MODEL, dtype=torch.float64)
        return (x,), {"dt": torch.rand(2, length, dtype=torch.float64) + 0.1} if timed else {}

    if case.name in REFUSED:
        with pytest.raises(ValueError, match="is exported for a fixed number of steps: leave time out"):
            agrees(module, given)
    else:
        agrees(module, given)


@pytest.mark.parametrize("pool", ["mean", "last", "none"])
def test_a_backbone(pool):
    layer = LAYERS.config("s5", d_state=8)
    model = Backbone(DataSpec(3, 5), Backbone.Config(d_model=8, depth=2, pool=pool, layer=layer))
    agrees(model.double().eval(), lambda length: ((torch.randn(2, length, 3).double(),), {}))
