"""One single-input system per channel with A = Λ − PP*, bilinear: O(N) step, Cauchy kernel, dense powers.

Planar numbers are (…, 2, n) for one of each conjugate pair, so that a sum over all N = 2n states is twice a
real part. The powers of Ā are dense real matrices on [Re h, Im h]: the eigenvectors of HiPPO-LegS are too
ill-conditioned to diagonalize A.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._bank import backwards
from lrnnx_app.layers._hippo import legs_normal
from lrnnx_app.ops import planar
from lrnnx_app.ops._blocked import cut
from lrnnx_app.ops._transforms import recomputed
from lrnnx_app.ops.fft_conv import irfft

FREQUENCIES = 2**20  # elements (channels × states × frequencies) of one chunk of the Cauchy sum
BLOCK = 64  # steps that one dense product takes in at once
PACKED = 32  # the same where sequences are packed: its square is the work inside a block


class S4State(NamedTuple):
    """h: (B, H, 2, n), planar."""

    h: Tensor


class System(NamedTuple):
    """Λ, P, B (H, 2, n) planar, and the step Δ (H,)."""

    lam: Tensor
    P: Tensor
    B: Tensor
    step: Tensor


def legs(n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Λ, P and B (2, n // 2) of HiPPO-LegS in the eigenbasis of its normal part, planar, in float64.

    Raises:
        RecipeError: n is odd.
    """
    if n % 2:
        raise RecipeError(f"d_state: must be even (conjugate pairs), not {n}")
    lam, vectors = legs_normal(n)
    V = torch.complex(*vectors)[:, n - n // 2 :]
    index = torch.arange(n, dtype=torch.float64)
    P, B = (V.mH @ z.to(V.dtype) for z in (torch.sqrt(index + 0.5), torch.sqrt(2 * index + 1)))
    return lam[:, n - n // 2 :], torch.stack((P.real, P.imag)), torch.stack((B.real, B.imag))


def read(C: Tensor, h: Tensor) -> Tensor:
    """2 Re Σ C h: (…, H, 2, n) to (…, H)."""
    return 2 * (C[..., 0, :] * h[..., 0, :] - C[..., 1, :] * h[..., 1, :]).sum(-1)


class Inverse(NamedTuple):
    """The factors of (1 − ½ΔδA)⁻¹, a diagonal plus a product of rank one (Woodbury); and ½Δδ."""

    half: Tensor  # ½Δδ (…, H, 1, 1)
    diagonal: Tensor  # (1 − ½ΔδΛ)⁻¹ (…, H, 2, n)
    column: Tensor  # ½Δδ (1 − ½ΔδΛ)⁻¹P / (1 + ½Δδ P*(1 − ½ΔδΛ)⁻¹P) (…, H, 2, n)


def inverse(system: System, dt: Tensor | None) -> Inverse:
    """For steps of length Δδ, dt (B,) or None."""
    lam, P, _, step = system
    half = (step if dt is None else step * dt[:, None])[..., None, None] / 2
    unit = planar.one(lam)
    lower = unit - half * lam
    diagonal = planar.div(unit.expand_as(lower), lower)
    w = planar.mul(diagonal, P.expand_as(diagonal))
    return Inverse(half, diagonal, half * w / (1 + half * _along(P, w)))


def advance(system: System, inverse: Inverse, h: Tensor, u: Tensor) -> Tensor:
    """One step of length Δδ: h (B, H, 2, n), u (B, H); (1 − ½ΔδA)⁻¹((1 + ½ΔδA)h + ΔδBu)."""
    lam, P, B, _ = system
    v = h + inverse.half * (planar.mul(lam, h) - P * _along(P, h) + 2 * B * u[..., None, None])
    v = planar.mul(inverse.diagonal, v)
    return v - inverse.column * _along(P, v)


def _along(P: Tensor, h: Tensor) -> Tensor:
    """P*h over all N states, which is real: (…, 1, 1)."""
    return 2 * (P * h).sum((-2, -1), keepdim=True)


def kernel(system: System, C_tilde: Tensor, length: int) -> Tensor:
    """K[l] = C Ā^l B̄ for l < length, (H, length), from C̃ = C(1 − Ā^length).

    At the roots of unity z = (2/Δ)·i·tan θ with θ = πk/length; everything is multiplied by cos θ, which
    leaves nothing singular at z = ∞. The sums over states run a chunk of frequencies at a time.
    """
    lam, P, B, step = system
    pairs = torch.stack([planar.mul(x, y) for y in (B, P) for x in (C_tilde, planar.conj(P))], 1)
    total = length // 2 + 1
    theta = torch.arange(total, device=lam.device, dtype=lam.dtype) * (math.pi / length)
    size = max(1, FREQUENCIES // (lam.shape[0] * lam.shape[-1]))
    if size >= total:
        spectrum = _cauchy(lam, pairs, step, theta)
    else:
        chunks = (theta[start : start + size] for start in range(0, total, size))
        spectrum = torch.cat([recomputed(_cauchy, lam, pairs, step, chunk) for chunk in chunks], -1)
    return irfft(spectrum, length)


def _cauchy(lam: Tensor, pairs: Tensor, step: Tensor, theta: Tensor) -> Tensor:
    """K̂ (H, 2, F) from the products (CB, P*B, CP, P*P), (H, 4, 2, n)."""
    cos, sin = torch.cos(theta), torch.sin(theta)
    w = (2 / step)[:, None] * sin
    size = torch.sqrt((lam * lam).sum(-2))[..., None]
    # v/(iw − λc) and its conjugate partner over one denominator, (c|λ| − w)(c|λ| + w) − 2i·c·w·Re λ.
    re = (cos * size - w[:, None]) * (cos * size + w[:, None])
    im = -2 * cos * lam[:, 0, :, None] * w[:, None]
    norm = re * re + im * im
    inverse = torch.cat((re / norm, -im / norm), -1)
    alpha = 2 * pairs[:, :, 0]
    beta = 2 * planar.mul(pairs, planar.conj(lam)[:, None])[:, :, 0]
    sums = torch.cat((alpha, beta), 1) @ inverse
    (ar, ai), (br, bi) = (s.unflatten(-1, (2, -1)).unbind(-2) for s in sums.split(4, 1))
    c, w = cos[None, None], w[:, None]
    rows = torch.stack((-c * br - w * ai, -c * bi + w * ar), -2)
    CB, PB, CP, PP = rows.unbind(1)
    lower = planar.one(PP) + cos * PP
    rest = CB - cos * planar.div(planar.mul(CP, PB), lower)
    return planar.mul(torch.stack((cos, sin)), rest)


class Dense:
    """Ā (H, 2n, 2n) and B̄ (H, 2n) of each channel, real, and what the powers of Ā are needed for."""

    def __init__(self, system: System) -> None:
        channels, _, n = system.lam.shape
        eye = torch.eye(2 * n, dtype=system.lam.dtype, device=system.lam.device)
        basis = eye.view(2 * n, 1, 2, n).expand(-1, channels, -1, -1)
        nothing, inverted = eye.new_zeros(2 * n, channels), inverse(system, None)
        self.n = n
        self._powers: dict[int, Tensor] = {}
        self.A = advance(system, inverted, basis, nothing).flatten(-2).permute(1, 2, 0)
        rest = basis.new_zeros(1, channels, 2, n)
        self.B = advance(system, inverted, rest, nothing[:1] + 1)[0].flatten(-2)

    def truncated(self, C: Tensor, length: int) -> Tensor:
        """C̃ = C(1 − Ā^length)."""
        row = planar.conj(C).flatten(-2)
        return self._planar(row - (row.unsqueeze(-2) @ self.power(length)).squeeze(-2))

    def untruncated(self, C_tilde: Tensor, length: int) -> Tensor:
        """C = C̃(1 − Ā^length)⁻¹."""
        row, A = planar.conj(C_tilde).flatten(-2), self.power(length)
        solved = torch.linalg.solve(torch.eye(2 * self.n, dtype=A.dtype, device=A.device) - A.mT, row)
        return self._planar(solved)

    def _planar(self, row: Tensor) -> Tensor:
        """A row acting on [Re h, Im h] as the planar number whose real part of a product it is."""
        return planar.conj(row.unflatten(-1, (2, self.n)))

    def power(self, exponent: int) -> Tensor:
        if exponent not in self._powers:
            self._powers[exponent] = torch.linalg.matrix_power(self.A, exponent)
        return self._powers[exponent]

    def absorb(self, u: Tensor, lengths: Tensor | None) -> Tensor:
        """Σ_s Ā^s B̄ u[end − 1 − s]: u (B, T, H) to (B, H, 2, n)."""
        block = min(BLOCK, u.shape[1])
        parts = cut(backwards(u, lengths), block).permute(3, 2, 0, 1)
        parts = (krylov(self.A, self.B[..., None], block) @ parts.flatten(2)).unflatten(-1, parts.shape[2:])
        *newer, h = parts.unbind(-1)
        jump = self.power(block)
        for part in reversed(newer):
            h = jump @ h + part
        return h.permute(2, 0, 1).unflatten(-1, (2, self.n))

    def carry(self, h: Tensor, time: int, lengths: Tensor | None) -> Tensor:
        """Ā^length h for each row, by the bits of its length: (B, H, 2, n)."""
        z = h.flatten(-2).permute(1, 2, 0)
        if lengths is None:
            z = self.power(time) @ z
        else:
            A = self.A
            for bit in range(time.bit_length()):
                z = torch.where((lengths >> bit) % 2 == 1, A @ z, z)
                A = A @ A
        return z.permute(2, 0, 1).unflatten(-1, (2, self.n))

    def emit(self, C: Tensor, h: Tensor, time: int) -> Tensor:
        """2 Re(C Ā^(t+1) h) for t < time: (B, time, H)."""
        z = h.flatten(-2).permute(1, 2, 0)
        block = min(BLOCK, time)
        row = 2 * planar.conj(C).flatten(-2).unsqueeze(-1)
        reach = krylov(self.A.mT, self.A.mT @ row, block).mT
        ys, jump = [], self.power(block)
        for _ in range(-(-time // block)):
            ys.append(reach @ z)
            z = jump @ z
        return torch.cat(ys, 1)[:, :time].permute(2, 1, 0)

    def packed(self, C: Tensor, u: Tensor, h: Tensor, reset: Tensor) -> Tensor:
        """Outputs (B, T, H) from state h (B, H, 2, n) where `reset` (B, T) starts new sequences.

        In blocks of time: inside one, taps between steps of the same sequence; from before it, a state.
        """
        time = u.shape[1]
        block = min(PACKED, time)
        row = 2 * planar.conj(C).flatten(-2).unsqueeze(-1)
        reach = krylov(self.A, self.B[..., None], block)
        lag = torch.arange(block, device=u.device)
        lag = lag[:, None] - lag
        taps = torch.where(lag >= 0, (row.mT @ reach)[:, 0, lag.clamp_min(0)], 0).permute(1, 2, 0)
        emit, jump = krylov(self.A.mT, self.A.mT @ row, block).mT, self.power(block)
        reach = reach.flip(-1)

        def run(u: Tensor, sequence: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
            same = (sequence[:, :, None] == sequence[:, None])[..., None]
            inside = (taps * torch.where(same, u[:, None], 0)).sum(2)
            before = torch.where((sequence == 0)[..., None], (emit @ z).permute(2, 1, 0), 0)
            final = sequence[:, -1:]
            u = torch.where((sequence == final)[..., None], u, 0)
            return inside + before, torch.where(final[:, 0] == 0, jump @ z, 0) + reach @ u.permute(2, 1, 0)

        z, ys = h.flatten(-2).permute(1, 2, 0), []
        parts = (cut(u, block).unbind(1), cut(reset, block).cumsum(-1).unbind(1))
        for part, sequence in zip(*parts, strict=True):
            y, z = recomputed(run, part, sequence, z)
            ys.append(y)
        return torch.cat(ys, 1)[:, :time]


def last_sequence(u: Tensor, h: Tensor, lengths: Tensor | None, reset: Tensor) -> tuple[Tensor, Tensor]:
    """u (B, T, H) and h (B, H, 2, n) without what the last sequence of a row does not see."""
    t = torch.arange(u.shape[1], device=u.device)
    inside = reset if lengths is None else reset & (t < lengths[:, None])
    start = torch.where(inside, t, -1).amax(1)
    seen = (t >= start[:, None])[..., None]
    return torch.where(seen, u, 0), torch.where((start < 0)[:, None, None, None], h, 0)


def krylov(A: Tensor, columns: Tensor, count: int) -> Tensor:
    """A^l b for l < count, by doubling: b (H, 2n, 1) to (H, 2n, count)."""
    while columns.shape[-1] < count:
        columns = torch.cat((columns, A @ columns), -1)
        A = A @ A
    return columns[..., :count]
