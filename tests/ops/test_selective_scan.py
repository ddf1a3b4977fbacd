"""The selective scan at the sizes that its kernels cut it at, and what it keeps in memory."""

from typing import Any

import pytest
import torch

from lrnnx_app.ops import _selective as module
from lrnnx_app.ops._compare import compared
from lrnnx_app.ops._examples import Draw, Sizes
from lrnnx_app.ops._table import OPERATORS, Variant
from lrnnx_app.ops.rules import names
from lrnnx_app.ops.selective_scan import reference, selective_scan
from tests.helpers import needs_kernels

SCAN = OPERATORS["selective_scan"]


def case(planes=1, time=9, batch=3, channels=4, groups=2, n=3) -> dict[str, Any]:
    """All operands but masks."""
    example = {"planes": planes, "groups": groups, "n": n}
    drawn = SCAN.draw(Draw(), Sizes(batch, time, channels), Variant(example=example))
    return {name: x for name, x in drawn.items() if name not in ("lengths", "reset")}


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(module, "SHORTEST", 4)
    monkeypatch.setattr(module, "ELEMENTS", {"cpu": 1})


def compare(given, dtypes, device, masks=None, times=1, **options):
    variant = Variant(options=options)
    for dtype, worst in compared(SCAN, given | (masks or {}), variant, device, dtypes).items():
        assert worst.within(SCAN.allowed(dtype), times), (dtype, worst)


@pytest.mark.parametrize("planes", [1, 2])
def test_constant_projections(device, planes):
    given = case(planes, 40, 2, 6, 2, 4)
    alike = {name: given[name][:1, :1] for name in ("B", "C")}
    compare(given | alike, (torch.float64, torch.float32), device, softplus=True, rule="zoh")
    compare(given | {"B": alike["B"]}, (torch.float64,), device, softplus=True)


@pytest.mark.parametrize("rule", names(1))
def test_steps_of_every_size_and_zero_rates(device, rule):
    given = case(1, 50, 2, 8, 1, 4)
    given["delta"].copy_(10 ** (torch.rand(2, 50, 8) * 5 - 4))
    given["bias"].zero_()
    given["A"][:, 0] = 0
    compare(given, (torch.float32,), device, rule=rule)


@pytest.mark.parametrize(
    ("time", "channels", "n"),
    [(1, 9, 16), (2, 40, 1), (3, 72, 3), (31, 6, 64), (33, 64, 16), (127, 66, 17), (500, 8, 4), (40, 4, 256)],
)
@pytest.mark.parametrize("planes", [1, 2])
def test_shapes_around_those_of_blocks(device, planes, time, channels, n):
    masks = {"lengths": torch.tensor([time, time * 2 // 3]), "reset": torch.rand(2, time) < 0.05}
    for groups in (1, 2) if channels % 2 == 0 else (1, 3):
        given = case(planes, time, 2, channels, groups, n)
        compare(given, (torch.float32,), device, masks, softplus=True)
        fewer = {k: x for k, x in given.items() if k not in ("dt", "z", "h0")}
        compare(fewer, (torch.bfloat16,), device, softplus=True)


@pytest.mark.parametrize("rule", names(1))
@pytest.mark.parametrize("planes", [1, 2])
def test_sequences_cut_into_segments(device, planes, rule):
    """Long and few: kernels for GPUs cut time, and put together what was found of each segment."""
    needs_kernels(device)
    masks = {"lengths": torch.tensor([1500, 700]), "reset": torch.rand(2, 1500) < 0.002}
    given = case(planes, 1500, 2, 6, 1, 3)
    given["bias"].sub_(4)
    for chosen in ({}, masks):  # float32's own rounding of a costs 4 times as much over so long a memory
        compare(given, (torch.float32,), device, chosen, times=4, rule=rule, softplus=True)


def test_rows_that_are_not_aligned(device):
    """Views that begin anywhere and rows of any length, in a storage type of two bytes."""
    for channels, offset in ((64, 0), (64, 1), (10, 2), (9, 0), (16, 4)):
        given = case(1, 70, 2, channels, 1, 8)
        wide = torch.randn(2, 70, offset + 3 * channels + 16).half()
        parts = wide[..., offset:].split((channels,) * 3 + (8, 8), -1)
        given |= dict(zip(("u", "z", "delta"), parts, strict=False))
        given |= {"B": parts[3].unsqueeze(2), "C": parts[4].unsqueeze(2)}
        small = {k: x if x.dtype == torch.half else x.float() for k, x in given.items()}
        moved = {k: x.to(device) for k, x in small.items()}
        moved |= dict(
            zip(
                ("u", "z", "delta"),
                wide.to(device)[..., offset:].split((channels,) * 3 + (16,), -1),
                strict=False,
            )
        )
        y, last = selective_scan(**moved, softplus=True)
        wanted = reference(**{k: x.double() for k, x in small.items()}, softplus=True)
        for a, b in zip((y, last), wanted, strict=True):
            assert (a.cpu() - b).norm() <= SCAN.allowed(torch.float16).output * b.norm()


def test_memory_kept_for_the_backward_has_no_states(monkeypatch):
    monkeypatch.setattr(module, "SHORTEST", 64)
    monkeypatch.setattr(module, "KEPT", 0)
    kept = {}

    def pack(z):
        kept[z.untyped_storage().data_ptr()] = z.untyped_storage().nbytes()
        return z

    drawn = case(time=1024, batch=1, channels=8, groups=1, n=32)
    given = {name: x.double().requires_grad_() for name, x in drawn.items()}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda z: z):
        y, _ = selective_scan(**given)
    states = 1024 * 8 * 32 * 8
    assert sum(kept.values()) < states / 2
    y.sum().backward()
