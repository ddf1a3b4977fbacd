"""States of streams that move on, in place, against their definition."""

import pytest
import torch

from lrnnx_app.ops.advance import advance, reference


def states(batch, device):
    """Of several dtypes and sizes: vectors of 16 bytes, single numbers, single bytes, none."""
    shapes = ((3, 64), (2, 5, 7), (), (0,), (1000,), (9, 2000))
    wide = [torch.randn(batch, *shape, device=device) for shape in shapes]
    return [*wide, wide[0].double(), wide[1].bfloat16(), wide[1].long(), wide[1] > 0]


@pytest.mark.parametrize("batch", [1, 6, 70])
def test_equals_the_definition(device, batch):
    active = torch.rand(batch, device=device) < 0.5
    for which in (active, ~active, torch.zeros_like(active), torch.ones_like(active)):
        held, new = states(batch, device), states(batch, device)
        want = [x.clone() for x in held]
        reference(want, new, which)
        advance(held, new, which)
        for x, y in zip(held, want, strict=True):
            assert torch.equal(x, y)


def test_more_tensors_than_a_launch_takes(device):
    held = [torch.zeros(2, k, device=device) for k in range(1, 200)]
    advance(held, [torch.ones_like(x) for x in held], torch.tensor([True, False], device=device))
    for x in held:
        assert (x[0] == 1).all()
        assert (x[1] == 0).all()


def test_larger_tensors_than_a_kernel_counts(device, monkeypatch):
    monkeypatch.setattr("lrnnx_app.ops.advance.LARGEST", 64)
    held, new = (
        [torch.zeros(2, k, device=device) for k in (3, 9)],
        [torch.ones(2, k, device=device) for k in (3, 9)],
    )
    advance(held, new, torch.tensor([False, True], device=device))
    assert [x.sum(1).tolist() for x in held] == [[0, 3], [0, 9]]


def test_new_states_may_lie_otherwise_and_be_of_another_dtype(device):
    held, new = torch.zeros(3, 4, 5, device=device), torch.randn(3, 5, 4, device=device).mT
    advance([held], [new.double()], torch.ones(3, dtype=torch.bool, device=device))
    assert torch.equal(held, new)
