"""Causal convolution by real FFT, channels last: y[t] = Σ_l k[l]·u[t − l], for any length.

A kernel is either (H, L), one filter for each channel, or (O, I, L), which mixes channels. Values in half
precision are transformed in float32. Complex dtypes occur only inside the operators. `convolve` and
`correlate` are each other's adjoints, and so are `rfft` and `irfft`; autograd uses that.
"""

import torch
from torch import Tensor

from lrnnx_app.ops._operands import check, principal
from lrnnx_app.ops._operator import operator
from lrnnx_app.ops._transforms import transformed
from lrnnx_app.ops.linear_scan import state_dtype


def fft_conv(u: Tensor, kernel: Tensor) -> Tensor:
    """Convolve causally; differentiable any number of times.

    Args:
        u: (B, T, I), T ≥ 1.
        kernel: (I, L), a filter for each channel, or (O, I, L), which mixes channels; L ≥ 1. Taps beyond T
            are not used.

    Returns:
        (B, T, I) or (B, T, O), typed like u.

    Raises:
        ValueError: a shape, dtype or device does not fit; names it.
    """
    inputs = principal("u", u, "BTI")[2]
    sizes = kernel.shape
    if len(sizes) not in (2, 3) or sizes[-2] != inputs or 0 in sizes:
        wanted = f"({inputs}, L) or (O, {inputs}, L) with O, L ≥ 1"
        raise ValueError(f"kernel must be {wanted}, not {tuple(sizes)}")
    check("kernel", kernel, sizes, u)
    run = _convolved if transformed() else torch.ops.lrnnx.convolve
    return run(u, kernel[..., : u.shape[1]])


def reference(u: Tensor, kernel: Tensor) -> Tensor:
    """The definition, one tap at a time; arguments and result as in `fft_conv`."""
    dtype, time = state_dtype(u.dtype), u.shape[1]
    full = kernel.to(dtype) if kernel.ndim == 3 else torch.diag_embed(kernel.to(dtype).T).movedim(0, -1)
    y = u.new_zeros(*u.shape[:2], full.shape[0], dtype=dtype)
    for lag in range(min(time, kernel.shape[-1])):
        y[:, lag:] += u[:, : time - lag].to(dtype) @ full[..., lag].T
    return y.to(u.dtype)


def rfft(x: Tensor) -> Tensor:
    """Spectrum of (…, L) real: planar (…, 2, L // 2 + 1)."""
    return (_planes_of_spectrum if transformed() else torch.ops.lrnnx.rfft)(x)


def irfft(spectrum: Tensor, length: int) -> Tensor:
    """The inverse of `rfft`: planar (…, 2, length // 2 + 1) to (…, length)."""
    return (_from_planes if transformed() else torch.ops.lrnnx.irfft)(spectrum, length)


def _fast_length(n: int) -> int:
    """The smallest number ≥ n of the form 2^i·{1, 3, 5, 9, 15}, for which transforms are fast."""
    return min(m << max(0, (-(-n // m) - 1).bit_length()) for m in (1, 3, 5, 9, 15))


def _spectrum(x: Tensor, n: int) -> Tensor:
    return torch.fft.rfft(x.to(state_dtype(x.dtype)), n, dim=1)


def _convolved(u: Tensor, kernel: Tensor) -> Tensor:
    time = u.shape[1]
    if u.shape[0] == 0:  # some transforms refuse an empty batch
        return _empty_result(u, kernel)
    n = _fast_length(time + kernel.shape[-1] - 1)
    left, right = _spectrum(u, n), _spectrum(kernel.movedim(-1, 0)[None], n)[0]
    product = left * right if kernel.ndim == 2 else torch.einsum("bfi,foi->bfo", left, right)
    return torch.fft.irfft(product, n, dim=1)[:, :time].to(u.dtype).contiguous()


def _empty_result(u: Tensor, kernel: Tensor) -> Tensor:
    return u.new_empty(*u.shape[:2], kernel.shape[0])


def _correlated(g: Tensor, u: Tensor, length: int, mixing: bool) -> Tensor:
    """k[l] = Σ_b Σ_t g[t]·u[t − l] for l < length: (I, L), or (O, I, L) when mixing."""
    if u.shape[0] == 0:
        return _empty_kernel(g, u, length, mixing).zero_()
    n = _fast_length(u.shape[1] + length - 1)
    left, right = _spectrum(g, n), _spectrum(u, n).conj()
    product = torch.einsum("bfo,bfi->foi" if mixing else "bfi,bfi->fi", left, right)
    return torch.fft.irfft(product, n, dim=0)[:length].movedim(0, -1).contiguous()


def _empty_kernel(g: Tensor, u: Tensor, length: int, mixing: bool) -> Tensor:
    shape = (g.shape[-1], u.shape[-1], length) if mixing else (u.shape[-1], length)
    return u.new_empty(shape, dtype=state_dtype(u.dtype))


def _anticausal(g: Tensor, kernel: Tensor) -> Tensor:
    """The adjoint of convolving with `kernel`."""
    back = kernel.transpose(0, 1) if kernel.ndim == 3 else kernel
    return torch.ops.lrnnx.convolve(g.flip(1), back).flip(1)


def _convolve_backward(ctx, g):
    u, kernel = ctx.saved_tensors
    grad_u = _anticausal(g, kernel) if ctx.needs_input_grad[0] else None
    if not ctx.needs_input_grad[1]:
        return grad_u, None
    grad_kernel = torch.ops.lrnnx.correlate(g, u, kernel.shape[-1], kernel.ndim == 3)
    return grad_u, grad_kernel.to(kernel.dtype)


def _correlate_backward(ctx, grad_kernel):
    g, u = ctx.saved_tensors
    grad_g = torch.ops.lrnnx.convolve(u, grad_kernel).to(g.dtype)
    return grad_g, _anticausal(g, grad_kernel).to(u.dtype), None, None


def _save_two(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], inputs[1])


operator(
    "convolve(Tensor u, Tensor kernel) -> Tensor", _convolved, _empty_result, _convolve_backward, _save_two
)
operator(
    "correlate(Tensor g, Tensor u, int length, bool mixing) -> Tensor",
    *(_correlated, _empty_kernel, _correlate_backward, _save_two),
)


def _empty_planes(x: Tensor) -> Tensor:
    return x.new_empty(*x.shape[:-1], 2, x.shape[-1] // 2 + 1, dtype=state_dtype(x.dtype))


def _planes_of_spectrum(x: Tensor) -> Tensor:
    if x.numel() == 0:  # some transforms refuse an empty batch
        return _empty_planes(x)
    z = torch.fft.rfft(x.to(state_dtype(x.dtype)))
    return torch.stack((z.real, z.imag), -2)


def _empty_waves(spectrum: Tensor, length: int) -> Tensor:
    return spectrum.new_empty(*spectrum.shape[:-2], length, dtype=state_dtype(spectrum.dtype))


def _from_planes(spectrum: Tensor, length: int) -> Tensor:
    if spectrum.numel() == 0:
        return _empty_waves(spectrum, length)
    z = spectrum.to(state_dtype(spectrum.dtype))
    return torch.fft.irfft(torch.complex(*z.unbind(-2)), length)


def multiplicity(length: int, like: Tensor) -> Tensor:
    """How many bins of the full transform each bin of the half one stands for."""
    bins = torch.arange(length // 2 + 1, device=like.device)
    return 1 + ((bins > 0) & (2 * bins < length)).to(like.dtype)


def _setup_rfft(ctx, inputs, output):
    ctx.length, ctx.dtype = inputs[0].shape[-1], inputs[0].dtype


def _rfft_backward(ctx, g):
    return irfft(g / multiplicity(ctx.length, g), ctx.length).to(ctx.dtype) * ctx.length


def _setup_irfft(ctx, inputs, output):
    ctx.length, ctx.dtype = inputs[1], inputs[0].dtype


def _irfft_backward(ctx, g):
    return (rfft(g) * multiplicity(ctx.length, g) / ctx.length).to(ctx.dtype), None


operator("rfft(Tensor x) -> Tensor", _planes_of_spectrum, _empty_planes, _rfft_backward, _setup_rfft)
operator(
    "irfft(Tensor spectrum, int length) -> Tensor",
    *(_from_planes, _empty_waves, _irfft_backward, _setup_irfft),
)
