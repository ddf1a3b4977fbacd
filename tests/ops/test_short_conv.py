import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck

from lrnnx_app.ops import _extension
from lrnnx_app.ops.short_conv import blocked, reference, short_conv

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def case(width, time=7, batch=3, channels=2, bias=True):
    def make(*shape):
        return torch.randn(*shape, dtype=torch.float64, requires_grad=True)

    return [
        make(batch, time, channels),
        make(channels, width),
        make(channels) if bias else None,
        make(batch, width - 1, channels),
    ]


MASKS = {
    "plain": {},
    "lengths": {"lengths": torch.tensor([7, 2, 0])},
    "reset": {"reset": torch.rand(3, 7, generator=torch.Generator().manual_seed(1)) < 0.4},
}
MASKS["both"] = MASKS["lengths"] | MASKS["reset"]


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 9])
def test_equals_the_definition(width, masks):
    inputs = case(width, bias=width != 3)
    for silu in (False, True):
        got, wanted = short_conv(*inputs, **masks, silu=silu), reference(*inputs, **masks, silu=silu)
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-13, atol=1e-13)


def test_equals_conv1d():
    x, weight, bias, _ = case(4)
    y, _ = short_conv(x, weight, bias)
    padded = torch.nn.functional.pad(x.mT, (3, 0))
    wanted = torch.nn.functional.conv1d(padded, weight[:, None], bias, groups=2).mT
    torch.testing.assert_close(y, wanted)


@pytest.mark.parametrize("masks", MASKS.values(), ids=MASKS)
def test_gradients(masks):
    assert gradcheck(lambda *z: short_conv(*z, **masks, silu=True), case(3))


@pytest.mark.parametrize("width", [2, 5])
def test_chunks_carry_inputs_not_outputs(width):
    x, weight, bias, state = case(width, time=11)
    whole, last = short_conv(x, weight, bias, state, silu=True)
    parts = []
    for part in x.split([1, 3, 7], 1):
        y, state = short_conv(part, weight, bias, state, silu=True)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), whole)
    torch.testing.assert_close(state, last)
    torch.testing.assert_close(state, x[:, 12 - width :])


def test_half_precision_keeps_a_float32_state():
    x, weight, bias, _ = (z.bfloat16() for z in case(4))
    y, state = short_conv(x, weight, bias)
    assert (y.dtype, state.dtype) == (torch.bfloat16, torch.float32)


def differentiate(run, inputs, masks, silu, device="cpu", dtype=None):
    """Outputs and the gradients of a random projection of them, in float64 on the CPU."""
    leaves = [x.detach().to(device, dtype or x.dtype).requires_grad_() for x in inputs]
    outputs = run(*leaves, **{name: x.to(device) for name, x in masks.items()}, silu=silu)
    generator = torch.Generator().manual_seed(1)
    weights = [torch.randn(y.shape, generator=generator).to(y) for y in outputs]
    grads = torch.autograd.grad(
        outputs, leaves, [w.to(y.dtype) for w, y in zip(weights, outputs, strict=True)]
    )
    return [x.detach().double().cpu() for x in (*outputs, *grads)]


def expanded(x, weight, bias, state, *, lengths=None, reset=None, silu):
    """The torch calls, whatever is built."""
    return blocked(x, weight, bias, state, lengths, reset, silu)


def sized(batch, time, channels, width, dtype):
    shapes = ((batch, time, channels), (channels, width), (channels,), (batch, width - 1, channels))
    return [torch.randn(shape, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5])
def test_every_size_and_dtype(device, width, dtype):
    """Outputs and gradients, with masks, of odd lengths and channels that fill no vector."""
    for time, channels in ((1, 7), (2, 64), (3, 5), (33, 300), (500, 33)):
        inputs = sized(2, time, channels, width, dtype)
        masks = {"lengths": torch.tensor([time, time // 2]), "reset": torch.rand(2, time) < 0.1}
        for chosen in ({}, masks):
            got = differentiate(short_conv, inputs, chosen, True, device)
            wanted = differentiate(expanded, inputs, chosen, True, dtype=torch.float64)
            for name, a, b in zip(("y", "last", "dx", "dw", "db", "ds"), got, wanted, strict=True):
                assert (a - b).norm() <= TOLERANCE[dtype] * b.norm(), (name, time, channels)


def test_strided_inputs(device):
    """A part of a wider projection, and every other step of a longer sequence."""
    x, *rest = sized(2, 20, 48, 4, torch.float64)
    for part in (x[..., 5:29], x[:, ::2, 8:32], x[..., ::2], x.mT.contiguous().mT[..., :24]):
        inputs = [part, *(z[..., :24] if z.ndim != 2 else z[:24] for z in rest)]
        leaves = [z.to(device).requires_grad_() for z in inputs]
        outputs = short_conv(*leaves, silu=True)
        wanted = differentiate(expanded, inputs, {}, True)
        grads = torch.autograd.grad(outputs, leaves, [torch.ones_like(y) for y in outputs])
        for a, b in zip(outputs, wanted[:2], strict=True):
            torch.testing.assert_close(a.cpu(), b)
        leaves = [z.requires_grad_() for z in inputs]
        same = expanded(*leaves, silu=True)
        for a, b in zip(
            grads, torch.autograd.grad(same, leaves, [torch.ones_like(y) for y in same]), strict=True
        ):
            torch.testing.assert_close(a.cpu(), b)


def test_padding_is_not_read(device):
    x, *rest = sized(2, 40, 6, 4, torch.float32)
    x[0, 15:] = float("nan")
    out = differentiate(short_conv, [x, *rest], {"lengths": torch.tensor([15, 40])}, True, device)
    assert all(z.isfinite().all() for z in out)


def test_repeats_bit_for_bit(device):
    inputs = sized(4, 700, 70, 4, torch.float32)
    first, second = (differentiate(short_conv, inputs, {}, True, device) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_second_derivatives(device):
    inputs = [z.to(device).requires_grad_() for z in sized(2, 5, 2, 3, torch.float64)]
    reset = torch.tensor([[False, False, True, False, False]] * 2, device=device)
    assert gradgradcheck(lambda *z: short_conv(*z, reset=reset, silu=True), inputs)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # raised inside opcheck itself
def test_opcheck(device):
    inputs = [z.to(device).requires_grad_() for z in sized(2, 7, 5, 4, torch.float32)]
    lengths, reset = torch.tensor([7, 3], device=device), torch.rand(2, 7, device=device) < 0.3
    for options in ((lengths, reset, True), (None, None, False)):
        torch.library.opcheck(torch.ops.lrnnx.short_conv.default, (*inputs, *options))
        if not _extension.load(device):
            continue  # without kernels the gradients come from autograd, which the modes of opcheck hide
        y, last = (z.detach() for z in torch.ops.lrnnx.short_conv(*inputs, *options))
        back = (y, last, *(z.detach() for z in inputs), *options)
        torch.library.opcheck(torch.ops.lrnnx.short_conv_backward.default, back)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": torch.zeros(3, 0, 2)}, "T ≥ 1"),
        ({"weight": torch.zeros(3, 4)}, "weight must be"),
        ({"bias": torch.zeros(3)}, "bias must be"),
        ({"state": torch.zeros(3, 4, 2)}, "state must be"),
        ({"lengths": torch.zeros(2)}, "lengths must be"),
        ({"reset": torch.zeros(3, 6)}, "reset must be"),
    ],
)
def test_shapes_that_do_not_fit(change, message):
    given = {"x": torch.zeros(3, 7, 2), "weight": torch.zeros(2, 4)} | change
    with pytest.raises(ValueError, match=message):
        short_conv(**given)
