"""The convolution operators against their direct definition."""

import pytest
import torch

from lrnnx_app.ops.fft_conv import fft_conv, irfft, reference, rfft

LENGTHS = [1, 2, 3, 31, 33, 127, 500, 1000, 2049]


def _inputs(time: int, taps: int, mixing: bool, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(time + taps)
    u = torch.randn(2, time, 3, generator=generator, dtype=dtype)
    shape = (4, 3, taps) if mixing else (3, taps)
    return u, torch.randn(shape, generator=generator, dtype=dtype)


@pytest.mark.parametrize("mixing", [False, True])
@pytest.mark.parametrize("time", LENGTHS)
def test_agrees_with_the_definition(time, mixing):
    for taps in (1, time, time + 7):
        u, kernel = _inputs(time, min(taps, 40) if time > 500 else taps, mixing, torch.float64)
        expected = reference(u, kernel)
        assert (fft_conv(u, kernel) - expected).norm() <= 1e-12 * expected.norm()


@pytest.mark.parametrize("mixing", [False, True])
def test_gradients_of_both_orders(mixing):
    u, kernel = (x.requires_grad_() for x in _inputs(5, 4, mixing, torch.float64))
    assert torch.autograd.gradcheck(fft_conv, (u, kernel))
    assert torch.autograd.gradgradcheck(fft_conv, (u, kernel))


@pytest.mark.parametrize("mixing", [False, True])
def test_half_precision_is_transformed_in_float32(mixing):
    u, kernel = _inputs(100, 100, mixing, torch.float32)
    y = fft_conv(u.bfloat16(), kernel)
    assert y.dtype == torch.bfloat16
    expected = reference(u.bfloat16().float(), kernel)
    assert (y.float() - expected).norm() <= 4e-3 * expected.norm()


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_transforms_invert_and_differentiate(length):
    x = torch.randn(2, length, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(irfft(rfft(x), length), x)
    assert torch.autograd.gradcheck(rfft, x)
    spectrum = rfft(x).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: irfft(z, length), spectrum)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # opcheck's own
@pytest.mark.parametrize("mixing", [False, True])
def test_operators_are_registered_whole(mixing):
    u, kernel = (x.requires_grad_() for x in _inputs(6, 6, mixing, torch.float64))
    torch.library.opcheck(torch.ops.lrnnx.convolve.default, (u, kernel))
    g = torch.randn(2, 6, kernel.shape[0], dtype=torch.float64, requires_grad=True)
    torch.library.opcheck(torch.ops.lrnnx.correlate.default, (g, u, 6, mixing))
    torch.library.opcheck(torch.ops.lrnnx.rfft.default, (kernel,))
    torch.library.opcheck(torch.ops.lrnnx.irfft.default, (torch.randn(3, 2, 4, requires_grad=True), 6))


def test_shapes_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"\(4, 9\)"):
        fft_conv(torch.zeros(1, 9, 3), torch.zeros(4, 9))
