"""The scan of a bank: from kept matrices, as it lies in memory, and under transforms."""

import pytest
import torch

from lrnnx_app.ops._compare import relative
from lrnnx_app.ops._examples import Draw, Sizes
from lrnnx_app.ops._table import OPERATORS, TOLERANCE
from lrnnx_app.ops.bank_scan import STEPS, bank_scan, bank_scan_unchecked, by_step, chunks, steps

BANK = OPERATORS["bank_scan"]


def operands(time=40, dtype=torch.float64):
    return BANK.typed(BANK.draw(Draw(), Sizes(2, time, 4)), dtype)


def test_kept_matrices_serve_every_call():
    """As a frozen layer keeps them, whatever the number of steps."""
    given = operands(time=50)
    weights = [given[name] for name in ("log_a", "gain", "c", "direct")]
    made = chunks(*weights, groups=4, size=8)
    for time in (50, 16, 3):
        v = given["v"][:, :time]
        wanted = bank_scan(v, *weights, given["h0"])
        for x, y in zip(bank_scan_unchecked(made, v, given["h0"], None), wanted, strict=True):
            assert relative(x, y) < TOLERANCE[torch.float64]


def test_one_copy_puts_the_steps_of_a_group_side_by_side():
    """An input that lies so is read where it is; the output lies so, and `by_step` turns it."""
    given = BANK.needed(operands(time=64))
    w, _ = bank_scan(**given)
    assert w.stride() == (64, 1, 2 * 64)
    turned = by_step(w)
    assert turned.is_contiguous()
    assert torch.equal(turned, w)
    again, _ = bank_scan(**given | {"v": given["v"].permute(2, 0, 1).contiguous().permute(1, 2, 0)})
    assert torch.equal(again, w)


def test_long_rows_are_cut_into_longer_chunks_on_a_gpu():
    assert [steps(torch.empty(1, n, 1)) for n in (1, 2**20)] == [32, 32]
    meta = [steps(torch.empty(8, n, 1, device="meta")) for n in (1, 2**11, 2**14)]  # any other device
    assert meta == [size for size, _ in STEPS["cuda"]] == [32, 64, 128]


def test_transformed_as_differentiated():
    given = BANK.needed(operands())
    weights = [given[name] for name in ("log_a", "gain", "c")]

    def loss(v, *weights):
        return sum(x.square().sum() for x in bank_scan(v, *weights))

    leaves = [x.requires_grad_() for x in (given["v"], *weights)]
    wanted = torch.autograd.grad(loss(*leaves), leaves)
    found = torch.func.grad(loss, argnums=(0, 1, 2, 3))(*(x.detach() for x in leaves))
    for x, y in zip(found, wanted, strict=True):
        assert relative(x, y) < 10 * TOLERANCE[torch.float64]


@pytest.mark.parametrize(
    ("name", "shape"), [("log_a", (2, 10)), ("log_a", (12,)), ("c", (2, 8)), ("h0", (2, 12))]
)
def test_shapes_that_do_not_fit_are_named(name, shape):
    with pytest.raises(ValueError, match=rf"^{name} must be \("):
        bank_scan(**operands() | {name: torch.ones(shape).double()})
