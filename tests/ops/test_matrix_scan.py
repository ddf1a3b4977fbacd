"""The scan with matrices as states: beside the published recurrences, and in one step."""

import pytest
import torch
from torch.export import Dim, export

from lrnnx_app.ops import _matrix
from lrnnx_app.ops._compare import compared, errors, relative, results
from lrnnx_app.ops._examples import Draw, Sizes
from lrnnx_app.ops._portable import DECOMPOSITIONS
from lrnnx_app.ops._table import OPERATORS, TOLERANCE
from lrnnx_app.ops.matrix_scan import matrix_scan, matrix_step

SCAN = OPERATORS["matrix_scan"]
VARIANTS = {variant.words: variant for variant in SCAN.variants}
EACH = pytest.mark.parametrize("variant", SCAN.variants, ids=VARIANTS)
EXACT = TOLERANCE[torch.float64]
BOTH = (torch.float64, torch.float32)


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


@pytest.mark.parametrize("time", [1, 15, 63, 64, 65, 500, 2049])
@EACH
def test_every_length(variant, time):
    """With sequences in a row, from a state before, and the gradient of the state after."""
    given = SCAN.draw(Draw(), Sizes(1, time, 2), variant)
    for dtype, worst in compared(SCAN, given, variant, dtypes=BOTH).items():
        assert worst.within(SCAN.allowed(dtype)), (dtype, worst)


@EACH
def test_weak_and_strong_decays(variant):
    """From 1 to e⁻¹⁰⁰⁰ in one chunk, where sums of logarithms from its start would have no digits left."""
    for weak, strong in ((0.0, -100.0), (-1e-7, -1000.0), (0.0, 0.0), (-100.0, -100.0)):
        given = SCAN.draw(Draw(), Sizes(1, 200, 2), variant)
        given["log_decay"][:] = weak
        given["log_decay"][:, ::7] = strong
        for dtype, worst in compared(SCAN, given, variant, dtypes=BOTH).items():
            assert worst.within(SCAN.allowed(dtype)), (weak, strong, dtype, worst)


@pytest.mark.parametrize("share", [0.0, 1.0, 2.0])
def test_a_reflection_keeps_what_is_stored(share):
    """With β = 2 and no decay nothing fades in a thousand steps, with β = 0 nothing changes."""
    given = SCAN.draw(Draw(), Sizes(1, 1000, 2), VARIANTS["delta rule, decays of heads"])
    given["log_decay"].zero_()
    given["beta"].fill_(share)
    given = SCAN.needed(given, ("h0",))
    for dtype, worst in compared(SCAN, given, dtypes=BOTH).items():
        assert worst.within(SCAN.allowed(dtype), 2), (dtype, worst)


@EACH
def test_segments_that_are_computed_again(variant, monkeypatch):
    """Memory of the backward pass is that of a segment of chunks; both orders of derivatives stay right."""
    monkeypatch.setattr(_matrix, "SIZE", 4)
    want = results(SCAN, SCAN.run, operands(variant, 30), variant)
    monkeypatch.setattr(_matrix, "NUMBERS", {"cpu": 160})
    monkeypatch.setattr(_matrix, "KEPT", 0)
    assert max(errors(results(SCAN, SCAN.run, operands(variant, 30), variant), want)) < EXACT
    leaves = SCAN.leaves(operands(variant, 10, batch=1, heads=1))

    def run(*given):
        return matrix_scan(**dict(zip(leaves, given, strict=True)))

    inputs = [x.requires_grad_() for x in leaves.values()]
    assert torch.autograd.gradcheck(run, inputs, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, inputs, fast_mode=True)


@EACH
def test_only_operands_are_kept_for_the_backward_pass(variant):
    given = operands(variant, dtype=torch.float32)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        matrix_scan(**{k: x.requires_grad_() if k in SCAN.leaves(given) else x for k, x in given.items()})
    assert {x.data_ptr() for x in kept} == {x.data_ptr() for x in given.values()}


@EACH
def test_a_state_before_a_reset_is_not_read(variant):
    given = operands(variant)
    given["reset"][:, 3] = True
    given["lengths"][:] = 40
    want, last = matrix_scan(**given)
    given["h0"].fill_(float("nan"))
    y, after = matrix_scan(**given)
    assert torch.equal(y[:, 3:], want[:, 3:])
    assert torch.equal(after, last)


@EACH
def test_heads_may_share_memory(variant):
    """As projections of a group do: by strides of 0, with a gradient summed over the heads."""
    given = operands(variant, heads=3)
    for name in ("q", "k"):
        given[name] = given[name][:, :, :1]
    alike = {name: given[name].expand(-1, -1, 3, -1) for name in ("q", "k")}
    copied = {name: x.contiguous() for name, x in alike.items()}
    want, got = (results(SCAN, SCAN.run, given | each, variant) for each in (copied, alike))
    assert max(errors(got, want)) == 0
    leaf = given["k"].clone().requires_grad_()
    y, last = matrix_scan(**(given | alike | {"k": leaf.expand(-1, -1, 3, -1)}))
    draw = Draw(1)
    along = [draw.normal(*x.shape).double() for x in (y, last)]
    (gradient,) = torch.autograd.grad((y, last), [leaf], along)
    assert relative(gradient, want.gradients["k"].sum(2, keepdim=True)) < EXACT


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


@pytest.mark.parametrize("variant", [SCAN.variants[0], SCAN.variants[-1]], ids=lambda variant: variant.words)
def test_exported_for_any_batch_and_any_time(variant):
    """As the operator for any time too; by torch's own operators for a fixed number of steps."""
    batch, time = Dim("batch", min=1), Dim("time", min=1)
    names = list(SCAN.needed(operands(variant), ("h0",)))

    class Module(torch.nn.Module):
        def forward(self, *given):
            return matrix_scan(**dict(zip(names, given, strict=True)))

    def arguments(batch, time):
        given = operands(variant, time, torch.float32, batch)
        return tuple(given[name] for name in names)

    for own, steps, free in ((True, 1, {}), (True, 40, {}), (False, 40, {1: time})):
        shapes = tuple({0: batch} | ({} if name == "h0" else free) for name in names)
        with torch.no_grad():
            program = export(Module(), arguments(2, steps), dynamic_shapes=(shapes,), strict=False)
            program = program.run_decompositions(DECOMPOSITIONS) if own else program
        assert own == all("lrnnx" not in str(node.target) for node in program.graph.nodes)
        for given in (arguments(5, steps), arguments(1, steps if own else 70)):
            for x, y in zip(program.module()(*given), Module()(*given), strict=True):
                assert relative(x, y) < TOLERANCE[torch.float32]


def test_erase_needs_beta():
    given = operands(VARIANTS["erasing, decays of channels"])
    del given["beta"]
    with pytest.raises(ValueError, match=r"^beta must be given where erase is$"):
        matrix_scan(**given)
