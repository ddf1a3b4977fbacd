"""One step of a recurrence as one operator, against its definition, and what layers make of it."""

import itertools
from typing import Any

import pytest
import torch

from lrnnx_app.ops import planar
from lrnnx_app.ops._compare import compared
from lrnnx_app.ops._examples import Draw, Sizes
from lrnnx_app.ops._table import OPERATORS, Variant
from lrnnx_app.ops.rules import names
from lrnnx_app.ops.step import diagonal_step

STEP = OPERATORS["diagonal_step"]


def operands(planes, groups, n, batch=3, contracted=True) -> dict[str, Any]:
    """All operands, in float64."""
    variant = Variant(example={"planes": planes, "n": n, "contracted": contracted})
    return STEP.typed(STEP.draw(Draw(), Sizes(batch, 1, groups), variant), torch.float64)


def check(given, device, dtypes=(torch.float64,), **options):
    for dtype, worst in compared(STEP, given, Variant(options=options), device, dtypes).items():
        assert worst.within(STEP.allowed(dtype)), (dtype, worst)


@pytest.mark.parametrize("rule", [None, *names(1)])
@pytest.mark.parametrize("planes", [1, 2])
def test_equals_the_definition(device, planes, rule):
    for (groups, n), contracted in itertools.product(((5, 1), (3, 16), (2, 37), (70, 1)), (True, False)):
        given = operands(planes, groups, n, contracted=contracted)
        if rule is None:
            given = {k: x / 4 if k == "a" else x for k, x in given.items() if k not in ("step", "dt")}
            check(given, device, STEP.dtypes)
        else:
            check(given, device, STEP.dtypes, rule=rule, softplus=True)


@pytest.mark.parametrize("n", [16, 5])
@pytest.mark.parametrize("alike", [True, False], ids=["one step", "a step for each state"])
def test_more_than_a_gpu_runs_at_once(device, alike, n):
    """So that lanes have several states each, the last of which may be missing."""
    given = operands(1, 512, n, batch=64)
    given["step"] = given["step"] if alike else torch.randn(64, 512, n, dtype=torch.float64)
    check(given, device, rule="zoh", softplus=True)


def test_states_in_another_order(device):
    """Planes outside of groups, as banks keep them: read where they lie, and returned alike."""
    given = operands(2, 5, 6)
    state = given["h"].movedim(1, 2).contiguous()
    given["h"] = state.movedim(1, 2)
    check(given, device, rule="zoh")
    moved = {k: x.to(device) for k, x in given.items()} | {"h": state.to(device).movedim(1, 2)}
    assert diagonal_step(**moved, rule="zoh")[1].movedim(1, 2).is_contiguous()


def test_one_step_from_rest_without_input_is_the_coefficient(device):
    given = operands(2, 3, 4)
    a = given["a"].to(device)
    h = planar.one(a).expand(1, 3, 2, 4).contiguous()
    _, after = diagonal_step(torch.zeros(1, 3, dtype=a.dtype, device=device), h, a, rule="zoh")
    torch.testing.assert_close(after[0], planar.exp(a))
