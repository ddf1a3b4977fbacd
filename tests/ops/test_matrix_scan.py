"""The scan with matrices as states: beside the published recurrences, and in one step."""

import pytest
import torch

from lrnnx_app.ops._compare import relative
from lrnnx_app.ops._examples import Draw, Sizes
from lrnnx_app.ops._table import OPERATORS, TOLERANCE
from lrnnx_app.ops.matrix_scan import matrix_scan, matrix_step

SCAN = OPERATORS["matrix_scan"]
VARIANTS = {variant.words: variant for variant in SCAN.variants}
EACH = pytest.mark.parametrize("variant", SCAN.variants, ids=VARIANTS)
EXACT = TOLERANCE[torch.float64]


def operands(variant, time=40, dtype=torch.float64, batch=2, heads=2):
    return SCAN.typed(SCAN.draw(Draw(), Sizes(batch, time, heads), variant), dtype)


def test_is_the_gated_delta_rule():
    """Equation 10 of arXiv 2412.06464, with matrices: S[t] = S[t−1]·α(I − β k kᵀ) + β v kᵀ."""
    given = SCAN.needed(operands(VARIANTS["delta rule, decays of heads"]))
    y, last = matrix_scan(**given)
    S = torch.zeros(2, 2, 3, 5, dtype=torch.float64)
    for t in range(40):
        q, k, v, log_alpha, beta = (given[name][:, t] for name in ("q", "k", "v", "log_decay", "beta"))
        alpha, beta, k, v = (x.view(2, 2, -1, 1) for x in (log_alpha.exp(), beta, k, v))
        S = S @ (alpha * (torch.eye(5) - beta * k @ k.mT)) + beta * v @ k.mT
        assert relative(y[:, t], (S @ q[..., None]).squeeze(-1)) < EXACT
    assert relative(last, S) < EXACT


def test_two_steps_are_one_of_rwkv_7():
    """S[t] = S[t−1](diag(w) − κ (a∘κ)ᵀ) + v kᵀ (arXiv 2503.14456): take away, then add."""
    draw = Draw(fine=True)
    kappa = draw.direction(1, 20, 2, 5).double()
    q, k, a, log_w = (draw.normal(1, 20, 2, 5).double() for _ in range(4))
    v, a, log_w = draw.normal(1, 20, 2, 3).double(), a.sigmoid(), -log_w.sigmoid()
    nothing = torch.zeros_like(k)

    def both(first, second):
        return torch.stack((first, second), 2).flatten(1, 2)

    y, last = matrix_scan(
        both(nothing, q),
        both(a * kappa, k),
        both(torch.zeros_like(v), v),
        both(log_w, nothing),
        torch.ones(1, 40, 2).double(),
        erase=both(kappa * (-log_w).exp(), nothing),
    )
    S = torch.zeros(1, 2, 3, 5).double()
    for t in range(20):
        w, read, write = log_w[:, t].exp(), kappa[:, t, :, :, None], (a * kappa)[:, t, :, None]
        S = S * w[..., None, :] - S @ read @ write + v[:, t, :, :, None] @ k[:, t, :, None]
        assert relative(y[:, 2 * t + 1], (S @ q[:, t, :, :, None]).squeeze(-1)) < EXACT
    assert relative(last, S) < EXACT


@EACH
def test_steps_are_the_scan(variant):
    given = operands(variant, dtype=torch.float32)
    del given["lengths"], given["reset"]
    y, last = matrix_scan(**given)
    h, rest = given["h0"], {k: x for k, x in given.items() if k != "h0"}
    rest = {"beta": None} | rest
    for t in range(40):
        out, h = matrix_step(h=h, **{k: None if x is None else x[:, t] for k, x in rest.items()})
        assert relative(out, y[:, t]) < 5 * TOLERANCE[torch.float32]
    assert relative(h, last) < 5 * TOLERANCE[torch.float32]


def test_erase_needs_beta():
    given = operands(VARIANTS["erasing, decays of heads"])
    del given["beta"]
    with pytest.raises(ValueError, match=r"^beta must be given where erase is$"):
        matrix_scan(**given)
