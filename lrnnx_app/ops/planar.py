"""Arithmetic on planar numbers: shape (..., P, N) with P = 1 plane (real) or 2 (real, imaginary).

No complex dtype is used, so that autocast, DDP, torch.compile, safetensors and ONNX need no special
case, and one formula serves real and complex eigenvalues alike. Operands broadcast; both must have
the same number of planes.
"""

import torch
from torch import Tensor


def planes(z: Tensor) -> tuple[Tensor, Tensor | None]:
    """Real and imaginary part, each (..., N); the imaginary part of a real number is None."""
    return z.select(-2, 0), z.select(-2, 1) if z.shape[-2] == 2 else None


def join(re: Tensor, im: Tensor | None) -> Tensor:
    """The inverse of `planes`."""
    return re.unsqueeze(-2) if im is None else torch.stack((re, im), -2)


def real(z: Tensor) -> Tensor:
    """Real part as a planar number with as many planes as z: the imaginary plane is zero."""
    re, im = planes(z)
    return join(re, None if im is None else torch.zeros_like(re))


def one(z: Tensor) -> Tensor:
    """The number 1, shaped (P, 1) with the planes, dtype and device of z."""
    unit = z.new_zeros(z.shape[-2], 1)
    unit[0] = 1
    return unit


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
    """a·h + b, in fewer calls than by `mul`."""
    (ar, ai), (hr, hi), (br, bi) = planes(a), planes(h), planes(b)
    if ai is None or hi is None or bi is None:
        return join(torch.addcmul(br, ar, hr), None)
    re = torch.addcmul(torch.addcmul(br, ar, hr), ai, hi, value=-1)
    return join(re, torch.addcmul(torch.addcmul(bi, ar, hi), ai, hr))


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
    """(exp(z) - 1) / z, continued by 1 at z = 0, accurate with its gradient for every z."""
    re, im = planes(z)
    size = re.abs() if im is None else torch.maximum(re.abs(), im.abs())
    small = (size < 0.1).unsqueeze(-2)
    unit = one(z)
    near = torch.where(small, z, 0.0)
    series = unit
    terms = 11 if z.dtype == torch.float64 else 6  # the next, 0.1^terms/(terms + 1)!, is below rounding
    for k in range(terms, 1, -1):
        series = unit + mul(near, series) / k
    far = torch.where(small, unit, z)
    return torch.where(small, series, div(expm1(far), far))
