"""The convolution operators against their direct definition."""

import pytest
import torch

from lrnnx_app.ops._portable import DECOMPOSITIONS
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


@pytest.mark.parametrize("length", [1, 2, 7, 8])
def test_transforms_invert_and_differentiate(length):
    x = torch.randn(2, length, dtype=torch.float64, requires_grad=True)
    assert torch.allclose(irfft(rfft(x), length), x)
    assert torch.autograd.gradcheck(rfft, x)
    spectrum = rfft(x).detach().requires_grad_()
    assert torch.autograd.gradcheck(lambda z: irfft(z, length), spectrum)


@pytest.mark.parametrize("length", [1, 2, 3, 9, 12, 30, 97, 511, 512])
def test_exported_spectra_are_those_of_torch(length):
    x = torch.randn(2, 3, length, dtype=torch.float64)
    z = torch.fft.rfft(x)
    spectrum = torch.stack((z.real, z.imag), -2)
    rfft, irfft = (DECOMPOSITIONS[op] for op in (torch.ops.lrnnx.rfft.default, torch.ops.lrnnx.irfft.default))
    torch.testing.assert_close(rfft(x), spectrum, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(irfft(spectrum, length), x, rtol=1e-12, atol=1e-12)
