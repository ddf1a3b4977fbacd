"""The chunked recurrence beside the scan of all its states, and with strong decays."""

import pytest
import torch

from lrnnx_app.ops._compare import relative
from lrnnx_app.ops._examples import Draw, Sizes
from lrnnx_app.ops._table import OPERATORS, TOLERANCE
from lrnnx_app.ops.chunked_scan import chunked_scan
from lrnnx_app.ops.linear_scan import linear_scan

SCAN = OPERATORS["chunked_scan"]
OF = pytest.mark.parametrize("variant", [SCAN.variants[0], SCAN.variants[-1]], ids=["of heads", "of states"])


def operands(variant, time=40, dtype=torch.float64):
    return SCAN.typed(SCAN.draw(Draw(), Sizes(2, time, 4), variant), dtype)


@OF
def test_equals_a_scan_of_all_states(variant):
    """A decay of a head serves its whole state (N, P), one of a state its row (P,)."""
    given = SCAN.needed(operands(variant))
    x, log_a, B, C = (given[k] for k in ("x", "log_a", "B", "C"))
    B, C = (z.repeat_interleave(x.shape[2] // z.shape[2], 2) for z in (B, C))
    states, last = linear_scan(log_a.exp(), B[..., None] * x[..., None, :])
    y, after = chunked_scan(**given)
    assert relative(y, (C[..., None] * states).sum(3)) < TOLERANCE[torch.float64]
    assert relative(after, last) < TOLERANCE[torch.float64]


@OF
def test_strong_decays_lose_no_digits_of_weak_ones(variant):
    """After a decay of e⁻⁶⁰ a step, sums from a chunk's start have no digits left."""
    given = operands(variant)
    given["log_a"][:, ::7] = -60
    given["log_a"][:, 1::7] = -1e-3
    want = SCAN.definition(**given)
    for x, y in zip(
        chunked_scan(**{k: z.float() if z.is_floating_point() else z for k, z in given.items()}),
        want,
        strict=True,
    ):
        assert relative(x.double(), y) < TOLERANCE[torch.float32]
    leaves = [given["log_a"].requires_grad_()]
    (gradient,) = torch.autograd.grad(chunked_scan(**given)[0].sum(), leaves)
    assert gradient.isfinite().all()


@OF
def test_a_state_before_a_reset_is_not_read(variant):
    given = operands(variant)
    given["reset"][:, 3] = True
    given["lengths"][:] = 40
    want = chunked_scan(**given)
    given["h0"].fill_(float("nan"))
    for x, y in zip(chunked_scan(**given), want, strict=True):
        assert torch.equal(
            x[:, 3:] if x.ndim == y.ndim and x.shape[1] == 40 else x, y[:, 3:] if y.shape[1] == 40 else y
        )
