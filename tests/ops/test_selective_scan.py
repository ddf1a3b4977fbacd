import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from lrnnx_app.ops import _extension
from lrnnx_app.ops import _selective as module
from lrnnx_app.ops.discretize import RULES
from lrnnx_app.ops.selective_scan import reference, selective_scan
from tests.helpers import needs_kernels

TOLERANCE = {torch.float64: 1e-11, torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
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
        "z": make(batch, time, channels),
        "bias": make(channels),
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
    masks = {"lengths": LENGTHS[:2].clamp_max(5), "reset": RESET[:2, :5]}

    def scan(*z):
        return selective_scan(**dict(zip(given, z, strict=True)), rule=rule, **masks)

    assert gradcheck(scan, tuple(given.values()), fast_mode=True)


def test_optional_arguments():
    given = case() | dict.fromkeys(("D", "h0", "dt", "z", "bias"))
    for a, b in zip(selective_scan(**given), reference(**given), strict=True):
        torch.testing.assert_close(a, b)


def differentiate(run, given, device="cpu", dtype=None, **options):
    """Outputs and the gradients of a random projection of them, by name, in float64 on the CPU."""
    leaves = {k: x.detach().to(device, dtype).requires_grad_() for k, x in given.items()}
    options = {k: x.to(device) if isinstance(x, torch.Tensor) else x for k, x in options.items()}
    outputs = run(**leaves, **options)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator).to(y) for y in outputs]
    grads = torch.autograd.grad(outputs, list(leaves.values()), weights)
    found = dict(zip(("y", "last", *leaves), (*outputs, *grads), strict=True))
    return {k: x.detach().double().cpu() for k, x in found.items()}


def compare(given, dtype, device, **options):
    """The operator in a precision against the definition in float64, on what that precision can hold."""
    rounded = {k: x.detach().to(dtype) for k, x in given.items()}
    for k in ("A", "D", "bias", "h0", "dt"):
        if k in rounded and dtype != torch.float64:
            rounded[k] = given[k].detach().float()
    got = differentiate(selective_scan, rounded, device, **options)
    wanted = differentiate(reference, rounded, dtype=torch.float64, **options)
    for name, x in wanted.items():
        assert got[name].shape == x.shape
        assert (got[name] - x).norm() <= TOLERANCE[dtype] * x.norm(), name


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("planes", [1, 2])
def test_every_dtype_and_size(device, planes, rule, dtype):
    """Groups, odd sizes, all operands, masks, sequences beyond a chunk of the backward pass."""
    masks = {"lengths": torch.tensor([70, 41]), "reset": torch.rand(2, 70) < 0.1}
    for channels, groups, n in ((70, 2, 5), (3, 3, 16), (32, 1, 1)):
        given = case(planes, 70, 2, channels, groups, n)
        compare(given, dtype, device, rule=rule, softplus=True, **(masks if channels == 70 else {}))


@pytest.mark.parametrize("planes", [1, 2])
def test_constant_projections(device, planes):
    given = case(planes, 40, 2, 6, 2, 4)
    given |= {name: given[name].detach()[:1, :1] for name in ("B", "C")}
    for dtype in (torch.float64, torch.float32):
        compare(given, dtype, device, softplus=True, rule="zoh")
    compare(given | {"C": case(planes, 40, 2, 6, 2, 4)["C"]}, torch.float64, device, softplus=True)


@pytest.mark.parametrize("rule", RULES)
def test_steps_of_every_size_and_zero_rates(device, rule):
    given = case(1, 50, 2, 8, 1, 4)
    with torch.no_grad():
        given["delta"].copy_(10 ** (torch.rand(2, 50, 8) * 5 - 4))
        given["bias"].zero_()
        given["A"][:, 0] = 0
    compare(given, torch.float32, device, rule=rule)


def test_strided_inputs(device):
    """Parts of one projection, as layers hand them over."""
    whole = torch.randn(2, 20, 40, dtype=torch.float64)
    given = case(1, 20, 2, 8, 1, 4) | {
        "u": whole[..., 1:9],
        "z": whole[..., 9:17],
        "delta": whole[..., 20:36:2],
    }
    given |= {"B": whole[..., 30:34].unsqueeze(2), "C": whole[..., 34:38].unsqueeze(2)}
    got = selective_scan(**{k: x.detach().to(device) for k, x in given.items()}, softplus=True)
    for a, b in zip(got, reference(**given, softplus=True), strict=True):
        torch.testing.assert_close(a.cpu(), b)


@pytest.mark.parametrize(
    ("time", "channels", "n"),
    [(1, 9, 16), (2, 40, 1), (3, 72, 3), (31, 6, 64), (33, 64, 16), (127, 66, 17), (500, 8, 4), (40, 4, 256)],
)
@pytest.mark.parametrize("planes", [1, 2])
def test_shapes_around_those_of_blocks(device, planes, time, channels, n):
    masks = {"lengths": torch.tensor([time, time * 2 // 3]), "reset": torch.rand(2, time) < 0.05}
    for groups in (1, 2) if channels % 2 == 0 else (1, 3):
        given = case(planes, time, 2, channels, groups, n)
        compare(given, torch.float32, device, softplus=True, **masks)
        fewer = {k: x for k, x in given.items() if k not in ("dt", "z", "h0")}
        compare(fewer, torch.bfloat16, device, softplus=True)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("planes", [1, 2])
def test_sequences_cut_into_segments(device, planes, rule):
    """Long and few: kernels for GPUs cut time, and put together what was found of each segment."""
    needs_kernels(device)
    masks = {"lengths": torch.tensor([1500, 700]), "reset": torch.rand(2, 1500) < 0.002}
    given = case(planes, 1500, 2, 6, 1, 3)
    with torch.no_grad():
        given["bias"].sub_(4)
    compare(given, torch.float32, device, rule=rule, softplus=True)
    compare(given, torch.float32, device, rule=rule, softplus=True, **masks)


def test_rows_that_are_not_aligned(device):
    """Views that begin anywhere and rows of any length, in a storage type of two bytes."""
    for channels, offset in ((64, 0), (64, 1), (10, 2), (9, 0), (16, 4)):
        given = {k: x.detach() for k, x in case(1, 70, 2, channels, 1, 8).items()}
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
            assert (a.cpu() - b).norm() <= TOLERANCE[torch.float16] * b.norm()


def test_padding_is_not_read(device):
    given = {k: x.detach().float() for k, x in case(2, 40, 2).items()}
    for name in ("u", "delta", "B", "C", "z", "dt"):
        given[name][0, 15:] = float("nan")
    found = differentiate(selective_scan, given, device, lengths=torch.tensor([15, 40]), softplus=True)
    assert all(x.isfinite().all() for x in found.values())


def test_repeats_bit_for_bit(device):
    given = {k: x.detach().float() for k, x in case(1, 300, 4, 70, 2, 16).items()}
    first, second = (differentiate(selective_scan, given, device, softplus=True) for _ in range(2))
    assert all(torch.equal(x, second[name]) for name, x in first.items())


def test_second_derivatives(device):
    given = {k: x.detach().to(device).requires_grad_() for k, x in case(2, 3, 1, 2, 1, 2).items()}

    def scan(*z):
        return selective_scan(**dict(zip(given, z, strict=True)), softplus=True)

    assert gradgradcheck(scan, tuple(given.values()), fast_mode=True)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # raised inside opcheck itself
def test_opcheck(device):
    dtype = torch.float32 if device == "cuda" else None  # the kernels there take no float64
    c = {k: x.detach().to(device, dtype).requires_grad_() for k, x in case(2, 7, 2, 4, 2, 3).items()}
    order = ("u", "delta", "A", "B", "C", "D", "z", "bias", "dt", "h0")
    args = (*(c[k] for k in order), LENGTHS[:2].to(device), None, True, 1)
    torch.library.opcheck(torch.ops.lrnnx.selective_scan.default, args)
    if not _extension.load(device):
        return  # without kernels the gradients come from autograd, which the modes of opcheck hide
    args = tuple(x.detach() if isinstance(x, torch.Tensor) else x for x in args)
    outputs = torch.ops.lrnnx.selective_scan(*args)
    torch.library.opcheck(torch.ops.lrnnx.selective_scan_backward.default, (*outputs, *args))


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
        ("z", (3, 9, 1)),
    ],
)
def test_shapes_that_do_not_fit(name, shape):
    with pytest.raises(ValueError, match=f"^{name} must be"):
        selective_scan(**(case() | {name: torch.zeros(shape)}))
