import pytest
import torch
from torch.autograd import gradcheck

from lrnnx_app.ops import selective_scan as module
from lrnnx_app.ops.discretize import RULES
from lrnnx_app.ops.selective_scan import reference, selective_scan

LENGTHS = torch.tensor([9, 4, 0])
RESET = torch.rand(3, 9, generator=torch.Generator().manual_seed(2)) < 0.3


def case(planes=1, time=9, batch=3, channels=4, groups=2, n=3):
    def make(*shape):
        return torch.randn(*shape, dtype=torch.float64)

    number = (n,) if planes == 1 else (2, n)
    A = make(channels, *number)
    (A if planes == 1 else A[:, 0]).abs_().neg_()
    tensors = {
        "u": make(batch, time, channels),
        "delta": torch.rand(batch, time, channels, dtype=torch.float64) + 0.1,
        "A": A,
        "B": make(batch, time, groups, *number),
        "C": make(batch, time, groups, *number),
        "D": make(channels),
        "h0": make(batch, channels, *number),
        "dt": torch.rand(batch, time, dtype=torch.float64) + 0.1,
    }
    return {name: z.requires_grad_() for name, z in tensors.items()}


@pytest.fixture(autouse=True)
def short_chunks(monkeypatch):
    monkeypatch.setattr(module, "SHORTEST", 4)
    monkeypatch.setattr(module, "ELEMENTS", {"cpu": 1})


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("masks", [{}, {"lengths": LENGTHS, "reset": RESET}], ids=["plain", "masked"])
def test_equals_the_definition(rule, planes, masks):
    given = case(planes)
    got = selective_scan(**given, rule=rule, **masks)
    wanted = reference(**given, rule=rule, **masks)
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("planes", [1, 2])
def test_gradients(rule, planes):
    given = case(planes, time=5, batch=2, channels=2, n=2)
    masks = {"lengths": LENGTHS[:2], "reset": RESET[:2, :5]}

    def scan(*z):
        return selective_scan(**dict(zip(given, z, strict=True)), rule=rule, **masks)

    assert gradcheck(scan, tuple(given.values()), fast_mode=True)


def test_optional_arguments():
    given = case() | {"D": None, "h0": None, "dt": None}
    for a, b in zip(selective_scan(**given), reference(**given), strict=True):
        torch.testing.assert_close(a, b)


def test_memory_kept_for_the_backward_has_no_states(monkeypatch):
    monkeypatch.setattr(module, "SHORTEST", 64)
    monkeypatch.setattr(module, "KEPT", 0)
    kept = {}

    def pack(z):
        kept[z.untyped_storage().data_ptr()] = z.untyped_storage().nbytes()
        return z

    given = case(time=1024, batch=1, channels=8, groups=1, n=32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda z: z):
        y, _ = selective_scan(**given)
    states = 1024 * 8 * 32 * 8
    assert sum(kept.values()) < states / 2
    y.sum().backward()


def test_half_precision_keeps_a_float32_state():
    given = {name: z.detach().bfloat16() for name, z in case().items()}
    y, last = selective_scan(**given)
    assert (y.dtype, last.dtype) == (torch.bfloat16, torch.float32)
    wanted, _ = reference(**{name: z.double() for name, z in given.items()})
    assert (y - wanted).norm() / wanted.norm() < 4e-3


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("u", (3, 0, 4)),
        ("delta", (3, 9, 1)),
        ("A", (3, 3)),
        ("B", (3, 9, 3, 3)),
        ("C", (3, 9, 2, 2, 3)),
        ("h0", (3, 4)),
        ("dt", (3, 8)),
    ],
)
def test_shapes_that_do_not_fit(name, shape):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        selective_scan(**(case() | {name: torch.zeros(shape)}))
