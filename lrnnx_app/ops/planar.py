"""Arithmetic on planar numbers: shape (..., P, N) with P = 1 plane (real) or 2 (real, imaginary).

No complex dtype is used, so autocast, DDP, torch.compile, safetensors and ONNX need no special case. One
formula serves both real and complex eigenvalues. Operands broadcast, but all must have the same number of
planes.
"""

import math

import torch
from torch import Tensor


def planes(z: Tensor) -> tuple[Tensor, Tensor | None]:
    """Real and imaginary part, each (..., N); the imaginary part of a real number is None."""
    if z.shape[-2] == 1:
        return z.squeeze(-2), None
    re, im = z.unbind(-2)  # z[..., 0, :] and z[..., 1, :] would have a slower gradient, with two full tensors
    return re, im


def join(re: Tensor, im: Tensor | None) -> Tensor:
    """The inverse of `planes`."""
    return re.unsqueeze(-2) if im is None else torch.stack((re, im), -2)


def real(z: Tensor) -> Tensor:
    """Real part as a planar number with as many planes as z: the imaginary plane is zero."""
    re, im = planes(z)
    return join(re, None if im is None else torch.zeros_like(re))


def one(z: Tensor) -> Tensor:
    """The number 1, shaped (P, 1) with the planes, dtype and device of z."""
    return torch.nn.functional.pad(z.new_ones(1, 1), (0, 0, 0, z.shape[-2] - 1))


def conj(z: Tensor) -> Tensor:
    re, im = planes(z)
    return join(re, None if im is None else -im)


def mul(x: Tensor, y: Tensor) -> Tensor:
    xr, xi = planes(x)
    yr, yi = planes(y)
    if xi is None or yi is None:
        return join(xr * yr, None)
    return join(xr * yr - xi * yi, xr * yi + xi * yr)


def affine(a: Tensor, h: Tensor, b: Tensor) -> Tensor:
    """a·h + b in few torch calls: i·h swaps the planes of h, with another sign for each."""
    if h.shape[-2] == 1:
        return torch.addcmul(b, a, h)
    re, im = a[..., :1, :], a[..., 1:, :]
    return torch.addcmul(torch.addcmul(b, re, h), torch.cat((-im, im), -2), h.flip(-2))


def div(x: Tensor, y: Tensor) -> Tensor:
    yr, yi = planes(y)
    if yi is None:
        return x / y
    return mul(x, conj(y)) / (yr * yr + yi * yi).unsqueeze(-2)


def exp(z: Tensor) -> Tensor:
    re, im = planes(z)
    size = torch.exp(re)
    return join(size, None) if im is None else join(size * torch.cos(im), size * torch.sin(im))


def log(z: Tensor) -> Tensor:
    """Principal logarithm of a complex number (two planes), z ≠ 0."""
    re, im = z.unbind(-2)
    return torch.stack((torch.log(re * re + im * im) / 2, torch.atan2(im, re)), -2)


def expm1(z: Tensor) -> Tensor:
    """exp(z) - 1 without cancellation for small z."""
    re, im = planes(z)
    if im is None:
        return torch.expm1(z)
    half = torch.sin(im / 2)
    grown = torch.expm1(re)
    return join(grown * torch.cos(im) - 2 * half * half, torch.exp(re) * torch.sin(im))


def expm1_over(z: Tensor) -> Tensor:
    """(exp(z) - 1) / z, and 1 at z = 0. Value and gradient are accurate for every z."""
    re, im = planes(z)
    size = re.abs() if im is None else torch.maximum(re.abs(), im.abs())
    small = (size < 0.1).unsqueeze(-2)
    unit = one(z)
    far = torch.where(small, unit, z)
    return torch.where(small, _expm1_over_series(torch.where(small, z, 0.0)), div(expm1(far), far))


def expm1_over_slope(z: Tensor) -> Tensor:
    """The derivative (exp(z) - expm1_over(z)) / z of `expm1_over`, 1/2 at z = 0, accurate for every z."""
    re, im = planes(z)
    size = re.abs() if im is None else torch.maximum(re.abs(), im.abs())
    small = (size < 0.2).unsqueeze(-2)
    unit = one(z)
    near = torch.where(small, z, 0.0)
    series = unit
    terms = 13 if z.dtype == torch.float64 else 7
    for k in range(terms, 0, -1):
        series = unit + mul(near, series) * ((k + 1) / (k * (k + 2)))
    far = torch.where(small, unit, z)
    return torch.where(small, series / 2, div(exp(far) - expm1_over(far), far))


def _expm1_over_series(z: Tensor) -> Tensor:
    """Σ z^k/(k + 1)! by Horner's rule, for |Re z|, |Im z| < 0.1."""
    last = 10 if z.dtype == torch.float64 else 5  # the next term is below rounding
    coefficients = [z.new_full((), 1 / math.factorial(k + 1)) for k in range(last + 1)]
    re, im = planes(z)
    sr, si = coefficients[last], None
    for k in range(last - 1, -1, -1):
        if im is None:
            sr = torch.addcmul(coefficients[k], re, sr)
        elif si is None:
            sr, si = torch.addcmul(coefficients[k], re, sr), im * sr
        else:
            upper = torch.addcmul(torch.addcmul(coefficients[k], re, sr), im, si, value=-1)
            sr, si = upper, torch.addcmul(im * sr, re, si)
    return join(sr, si)
