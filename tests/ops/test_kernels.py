"""Built kernels against the definition in float64, outputs and gradients, on every device of this machine."""

import itertools

import pytest
import torch

from lrnnx_app.ops import _blocked, linear_scan
from tests.helpers import needs_kernels

LENGTHS = (1, 2, 3, 31, 33, 127, 500, 1000, 2049)
DEVICES = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}
FULL, CONSTANT, OF_ROW, OF_TIME = "full", "constant", "of row", "of time"


@pytest.fixture(scope="module", params=DEVICES)
def device(request):
    """A device whose kernels are loaded; only a machine that cannot compile for it goes without."""
    needs_kernels(request.param)
    return request.param


def make(time, *, batch=2, channels=5, planes=2, kind=FULL, dtype=torch.float32, masked=False, seed=0):
    """Inputs of a scan whose coefficients stay inside the unit circle, on the CPU."""
    generator = torch.Generator().manual_seed(seed)
    state = (channels,) if planes == 1 else (2, channels)
    rows = 1 if kind in (CONSTANT, OF_TIME) else batch
    steps = 1 if kind in (CONSTANT, OF_ROW) else time
    a = torch.rand(rows, steps, *state, generator=generator) * (1 if planes == 1 else 0.7)
    b = torch.randn(batch, time, *state, generator=generator)
    h0 = torch.randn(batch, *state, generator=generator)
    mask = {}
    if masked:
        mask["lengths"] = torch.randint(1, time + 1, (batch,), generator=generator)
        mask["reset"] = torch.rand(batch, time, generator=generator) < 0.1
    wide = linear_scan.state_dtype(dtype)
    return [x.to(dtype) for x in (a, b)] + [h0.to(wide)], mask


def run(scan, inputs, mask, reverse, device="cpu", dtype=None):
    """Outputs and the gradients of a random projection of them, in float64 on the CPU."""
    leaves = [x.detach().to(device, dtype).requires_grad_() for x in inputs]
    outputs = scan(*leaves, **{k: v.to(device) for k, v in mask.items()}, reverse=reverse)
    generator = torch.Generator().manual_seed(1)
    weights = [
        torch.randn(y.shape, generator=generator).to(inputs[1].dtype).to(device, y.dtype) for y in outputs
    ]
    total = sum((w * y).sum(dtype=torch.float64) for w, y in zip(weights, outputs, strict=True))
    return [x.detach().double().cpu() for x in (*outputs, *torch.autograd.grad(total, leaves))]


def blocked(a, b, h0, lengths=None, reset=None, reverse=False):
    return Blocked.apply(a, b, h0, lengths, reset, reverse)


class Blocked(torch.autograd.Function):
    """The torch implementation, whatever is built."""

    @staticmethod
    def forward(ctx, *args):
        out = _blocked.scan(*args)
        ctx.save_for_backward(args[0], out[0], *args[2:5])
        ctx.reverse = args[5]
        return out

    @staticmethod
    def backward(ctx, *grads):
        return *_blocked.adjoint(*grads, *ctx.saved_tensors, ctx.reverse), None, None, None


def error(out, ref):
    return ((out - ref).norm() / ref.norm().clamp_min(1e-30)).item()


def compare(device, inputs, mask, reverse, definition=linear_scan.reference):
    out = run(linear_scan.linear_scan, inputs, mask, reverse, device)
    ref = run(definition, inputs, mask, reverse, dtype=torch.float64)
    for name, got, want in zip(("states", "last", "da", "db", "dh0"), out, ref, strict=True):
        assert got.shape == want.shape, name
        assert error(got, want) <= TOLERANCE[inputs[1].dtype], (name, error(got, want))


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("kind", [FULL, CONSTANT, OF_ROW, OF_TIME])
@pytest.mark.parametrize("planes", [1, 2])
def test_definition(device, planes, kind, reverse, masked):
    for time, dtype in itertools.product((1, 2, 33), (torch.float32, torch.float64)):
        compare(device, *make(time, planes=planes, kind=kind, masked=masked, dtype=dtype), reverse)


@pytest.mark.parametrize("planes", [1, 2])
@pytest.mark.parametrize("time", LENGTHS)
def test_lengths(device, time, planes):
    for kind, reverse in ((FULL, False), (CONSTANT, True)):
        inputs, mask = make(time, planes=planes, kind=kind, channels=48, dtype=torch.float32, masked=reverse)
        compare(device, inputs, mask, reverse, blocked)


@pytest.mark.parametrize("channels", [1, 3, 16, 63, 64, 65, 100, 256, 1000])
def test_widths(device, channels):
    for planes, dtype in itertools.product((1, 2), TOLERANCE):
        compare(device, *make(40, planes=planes, channels=channels, dtype=dtype), False, blocked)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", [FULL, CONSTANT])
def test_wider_coefficients(device, kind, dtype):
    """Under autocast `a` is float32 beside half-precision inputs."""
    (a, b, h0), mask = make(130, kind=kind, dtype=torch.float32)
    compare(device, [a, b.to(dtype), h0], mask, False, blocked)


def test_strides(device):
    """Slices and expanded views, as layers hand them over."""
    (a, b, h0), mask = make(20, batch=4, channels=12)
    compare(device, [a[::2, 1::3], b[1::2, ::3], h0[::2]], mask, False)
    compare(device, [a[..., ::2], b[..., 1::2], h0[..., ::2]], mask, True)


def test_padding_is_not_read(device):
    """What lies beyond a row's length reaches neither states nor gradients, were it NaN."""
    (a, b, h0), _ = make(50)
    lengths = torch.tensor([20, 50])
    a[0, 20:], b[0, 20:] = float("nan"), float("nan")
    out = run(linear_scan.linear_scan, [a, b, h0], {"lengths": lengths}, False, device)
    assert all(x.isfinite().all() for x in out)


def test_repeats_bit_for_bit(device):
    inputs, mask = make(3000, channels=70, kind=CONSTANT)
    first, second = (run(linear_scan.linear_scan, inputs, mask, False, device) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(first, second, strict=True))


def test_second_derivatives(device):
    inputs, mask = make(4, channels=2, dtype=torch.float64, masked=True)
    leaves = [x.to(device).requires_grad_() for x in inputs]
    mask = {key: value.to(device) for key, value in mask.items()}
    assert torch.autograd.gradgradcheck(lambda *x: linear_scan.linear_scan(*x, **mask), leaves)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # raised inside opcheck itself
def test_opcheck(device):
    inputs, mask = make(7, masked=True)
    a, b, h0 = (x.to(device).requires_grad_() for x in inputs)
    args = (a, b, h0, mask["lengths"].to(device), mask["reset"].to(device), False)
    torch.library.opcheck(torch.ops.lrnnx.linear_scan.default, args)
    states, last = (x.detach() for x in torch.ops.lrnnx.linear_scan(*args))
    backward = (states, last, a.detach(), states, h0.detach(), *args[3:])
    torch.library.opcheck(torch.ops.lrnnx.linear_scan_backward.default, backward)
