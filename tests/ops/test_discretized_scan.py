"""Scans that discretize as they go, and the layers' coefficients that lead to them."""

import pytest
import torch

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._coefficients import Discretized, Given
from lrnnx_app.ops import planar
from lrnnx_app.ops._examples import Draw, Sizes
from lrnnx_app.ops._table import OPERATORS
from lrnnx_app.ops.discretized_scan import discretized_scan
from lrnnx_app.ops.rules import find, names


def test_either_kind_of_coefficients():
    drawn = OPERATORS["discretized_scan"].draw(Draw(), Sizes(2, 9, 5))
    z, dt, v, h0 = (drawn[name] for name in ("z", "dt", "v", "h0"))
    for rule in map(find, names(1)):
        a, gain = rule.from_rates(z, dt)
        found = Discretized(z, dt, rule).scan(v, h0)
        for got, want in zip(found, Given(a).scan(planar.mul(gain.expand(v.shape), v), h0), strict=True):
            torch.testing.assert_close(got, want)


def test_an_unknown_rule_is_named():
    with pytest.raises(RecipeError, match="unknown 'foh'; did you mean 'zoh'"):
        discretized_scan(torch.ones(2, 3), torch.ones(1, 5), torch.ones(1, 5, 2, 3), rule="foh")
