"""The scan against its definition: every length, direction, dtype, mask; gradients; operator checks."""

from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor

from lrnnx_app.ops.linear_scan import linear_scan, reference
from tests.helpers import relative

BATCH, STATES = 2, 3
LENGTHS = (1, 2, 3, 16, 17, 31, 33, 127, 500, 1000, 2049)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-6, torch.bfloat16: 5e-3, torch.float16: 1e-3}


def problem(
    time: int,
    is_complex: bool,
    varying: bool = True,
    masked: bool = False,
    dtype: torch.dtype = torch.float64,
) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
    """a inside the unit circle, b and h0; and the masks."""
    state = (2, STATES) if is_complex else (STATES,)
    a = torch.rand(*((BATCH, time) if varying else (1, 1)), *state, dtype=dtype) * 0.7
    b = torch.randn(BATCH, time, *state, dtype=dtype)
    h0 = torch.randn(BATCH, *state, dtype=dtype)
    masks = {}
    if masked:
        masks = {"lengths": torch.tensor([time, time // 2]), "reset": torch.rand(BATCH, time) < 0.1}
    return (a.requires_grad_(), b.requires_grad_(), h0.requires_grad_()), masks


@pytest.mark.parametrize("time", LENGTHS)
def test_equals_the_definition_with_gradients(time: int) -> None:
    for is_complex, varying, masked, reverse in product((False, True), repeat=4):
        inputs, masks = problem(time, is_complex, varying, masked)
        fast = linear_scan(*inputs, **masks, reverse=reverse)
        slow = reference(*inputs, **masks, reverse=reverse)
        weights = [torch.randn_like(x) for x in slow]
        gradients = [
            torch.autograd.grad(sum((w * y).sum() for w, y in zip(weights, ys, strict=True)), inputs)
            for ys in (fast, slow)
        ]
        for value, expected in zip((*fast, *gradients[0]), (*slow, *gradients[1]), strict=True):
            assert relative(value, expected) < TOLERANCE[torch.float64]


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_precision(dtype: torch.dtype) -> None:
    for is_complex in (False, True):
        (a, b, h0), _ = problem(1000, is_complex, dtype=dtype)
        h, last = linear_scan(a, b, h0)
        expected, expected_last = reference(a.double(), b.double(), h0.double())
        assert h.dtype == dtype
        assert last.dtype == (dtype if dtype.itemsize > 2 else torch.float32)
        assert relative(h.double(), expected) < TOLERANCE[dtype]
        assert relative(last.double(), expected_last) < min(TOLERANCE[dtype], 2e-6)


def test_chunks_equal_one_go() -> None:
    (a, b, _), _ = problem(100, True)
    whole, last = linear_scan(a, b)
    state, parts = None, []
    for piece in (1, 7, 30, 2, 60):
        start = sum(len(p) for p in parts)
        h, state = linear_scan(a[:, start : start + piece], b[:, start : start + piece], state)
        parts.append(h.transpose(0, 1))
    assert relative(torch.cat(parts).transpose(0, 1), whole) < 1e-12
    assert state is not None
    assert relative(state, last) < 1e-12


def test_strided_inputs() -> None:
    (a, b, h0), _ = problem(40, False)
    flipped = [x.detach().transpose(1, 2).contiguous().transpose(1, 2) for x in (a, b)]
    assert relative(linear_scan(*flipped, h0)[0], reference(a, b, h0)[0]) < 1e-12


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of opcheck
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("is_complex", [False, True])
def test_gradcheck_and_opcheck(is_complex: bool, reverse: bool) -> None:
    for varying, masked in product((False, True), repeat=2):
        inputs, masks = problem(20, is_complex, varying, masked)
        assert torch.autograd.gradcheck(lambda *x, m=masks: linear_scan(*x, **m, reverse=reverse), inputs)
        torch.library.opcheck(
            torch.ops.lrnnx.linear_scan.default,
            (*inputs, masks.get("lengths"), masks.get("reset"), reverse),
        )


def test_second_derivative() -> None:
    inputs, _ = problem(5, True)
    assert torch.autograd.gradgradcheck(lambda *x: linear_scan(*x), inputs)


@pytest.mark.parametrize(
    ("shapes", "word"),
    [
        (((1, 1, 3), (2, 0, 3), None), "T ≥ 1"),
        (((1, 1, 4), (2, 5, 3), None), "does not broadcast"),
        (((1, 1, 3, 3), (2, 5, 3, 3), None), "b must be"),
        (((1, 1, 3), (2, 5, 3), (2, 4)), "h0 must be"),
    ],
)
def test_shapes_that_do_not_fit_are_named(shapes: Any, word: str) -> None:
    a, b, h0 = (None if shape is None else torch.zeros(shape) for shape in shapes)
    with pytest.raises(ValueError, match=word):
        linear_scan(a, b, h0)
