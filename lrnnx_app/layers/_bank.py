"""Banks of single-input diagonal systems (S4D, Centaurus), where states far outnumber channels.

(B, T, states) must not reach memory for a long T. Evenly sampled rows go through matmuls over chunks of time
(`_chunks`), or are convolved by FFT: powers a^l are split in two factors, a^(c·q)·a^r with c ≈ √T, so that
nothing of size states × T ever exists. The scan path, for all others, runs in chunks of time that are
recomputed in the backward pass.
"""

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lrnnx_app.layers import _chunks
from lrnnx_app.layers._base import DiagonalLayer, DiagonalState
from lrnnx_app.ops import planar
from lrnnx_app.ops.discretize import RULES
from lrnnx_app.ops.fft_conv import fft_conv
from lrnnx_app.ops.linear_scan import state_dtype
from lrnnx_app.ops.step import diagonal_step

FFT_FROM = 32  # steps from which a convolution pays
PATHS = ("auto", "scan", "fft", "chunk")
STEPS = 128  # of a chunk of matmuls
CHUNK = 2**21  # state elements of a chunk of the scan
Powers = tuple[Tensor, Tensor]  # of `factors`


class BankLayer(DiagonalLayer):
    """`groups` systems of `modes` complex states each; state (2, groups·modes).

    A subclass supplies `system`, and `inputs` and `outputs` around the bank; coefficients, readout and all
    paths follow. Evenly sampled rows without `reset` need not be scanned.
    """

    groups: int
    modes: int
    path: str = "auto"  # auto | scan | fft | chunk

    @property
    def state_shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]
        return (2, self.groups * self.modes)

    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues λ (2, S), steps Δ (S,) and weights c (2, S) of the readout, S = groups·modes."""
        raise NotImplementedError

    def inputs(self, x: Tensor) -> Tensor:
        """What drives each group: (B, T, d_model) to (B, T, groups)."""
        return x

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Output (B, T, d_model) from w = Re Σ c·h + direct∘inputs (B, T, groups) and the input."""
        return w.contiguous()

    def direct(self) -> Tensor | None:
        """What of its own input each group adds to its output, (groups,)."""
        return None

    def coefficients(self, x: Tensor, dt: Tensor | None) -> tuple[Tensor, Tensor]:
        if dt is None:
            a, gain = self.constant("even", lambda: RULES[self.rule_name](*self.system()[:2], None))
        else:
            a, gain = RULES[self.rule_name](*self.constant("system", self.system)[:2], dt)
        driven = self.inputs(x).repeat_interleave(self.modes, -1)
        return a, gain * driven.unsqueeze(-2)

    def readout(self, h: Tensor, x: Tensor) -> Tensor:
        w, direct = self.collect(h).to(x.dtype), self.direct()
        w = w if direct is None else torch.addcmul(w, direct.to(x.dtype), self.inputs(x))
        return self.outputs(w, x)

    def collect(self, h: Tensor) -> Tensor:
        """w = Re Σ c·h of each group: (B, T, 2, S) to (B, T, groups)."""
        c = self.constant("system", self.system)[2]
        return (h[..., 0, :] * c[0] - h[..., 1, :] * c[1]).unflatten(-1, (self.groups, self.modes)).sum(-1)

    def step(self, x: Tensor, state: DiagonalState, dt: Tensor | None = None) -> tuple[Tensor, DiagonalState]:
        self.check_dt(dt)
        x = x[:, None]
        made_by: dict[str, Any] = {}
        if dt is None:
            a, gain = self.constant("even", lambda: RULES[self.rule_name](*self.system()[:2], None))
        else:
            a, step, _ = self.constant("system", self.system)
            gain, made_by = (
                None,
                {"rule": self.rule_name, "dt": dt, "step": step.unflatten(-1, (self.groups, -1))},
            )
        c = self.constant("system", self.system)[2]
        gain = None if gain is None else self._by_group(gain)
        h, a, c = (self._by_group(z) for z in (state.h, a, c))
        w, h = diagonal_step(self.inputs(x)[:, 0], h, a, gain, c, self.direct(), **made_by)
        after = h.movedim(-2, -3).flatten(-2)
        return self.outputs(w.to(x.dtype)[:, None], x)[:, 0], DiagonalState(after)

    def _by_group(self, z: Tensor) -> Tensor:
        """(…, P, S) as the states of each group, (…, groups, P, modes)."""
        return z.expand(*z.shape[:-1], self.state_shape[-1]).unflatten(-1, (self.groups, -1)).movedim(-3, -2)

    def choose(self, batch: int, time: int) -> str:
        """The cheaper path for rows that can be convolved."""
        return "fft" if time >= FFT_FROM else "scan"

    def choices(self) -> str:
        return f"fft from {FFT_FROM} steps, else scan"

    def forward(
        self,
        x: Tensor,
        state: DiagonalState | None = None,
        *,
        dt: Tensor | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, DiagonalState]:
        self.check_dt(dt)
        path = self.choose(*x.shape[:2]) if self.path == "auto" else self.path
        if path == "scan" or dt is not None or reset is not None:
            return self._scan(x, state, dt, lengths, reset)
        return self._convolve(x, state, lengths, path)

    def _scan(
        self,
        x: Tensor,
        state: DiagonalState | None,
        dt: Tensor | None,
        lengths: Tensor | None,
        reset: Tensor | None,
    ) -> tuple[Tensor, DiagonalState]:
        run, time = super().forward, x.shape[1]
        if torch.compiler.is_exporting():  # of any batch, a short chunk
            return run(x, state, dt=dt, lengths=lengths, reset=reset)
        size = max(1, CHUNK // (2 * x.shape[0] * self.state_shape[1]))
        if time <= size:
            return run(x, state, dt=dt, lengths=lengths, reset=reset)
        ys, state = [], self.init_state(x.shape[0]) if state is None else state
        for start in range(0, time, size):
            part = slice(start, start + size)
            rest = {
                "dt": None if dt is None else dt[:, part],
                "lengths": None if lengths is None else (lengths - start).clamp_min(0),
                "reset": None if reset is None else reset[:, part],
                "preserve_rng_state": False,
            }
            y, state = checkpoint(run, x[:, part], state, use_reentrant=False, **rest)
            ys.append(y)
        return torch.cat(ys, 1), state

    def _convolve(
        self, x: Tensor, state: DiagonalState | None, lengths: Tensor | None, path: str
    ) -> tuple[Tensor, DiagonalState]:
        v = valid(self.inputs(x), lengths)
        with torch.autocast(x.device.type, enabled=False):
            v = v.to(state_dtype(v.dtype))
            run = self._by_chunks if path == "chunk" else self._by_fft
            w, last = run(v, None if state is None else state.h, lengths)
        return self.outputs(w.to(x.dtype), x), DiagonalState(last)

    def _by_chunks(self, v: Tensor, h: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        def make() -> _chunks.Chunks:
            return _chunks.chunks(*self.evenly(), self.direct(), self.groups, STEPS)

        return _chunks.run(self.constant("chunks", make), v, h, lengths)

    def _by_fft(self, v: Tensor, h: Tensor | None, lengths: Tensor | None) -> tuple[Tensor, Tensor]:
        time = v.shape[1]
        log_a, gain, c = self.constant("evenly", self.evenly)
        powers = self.constant(f"powers {time}", lambda: factors(log_a, time))
        w = fft_conv(v, self.constant(f"kernel {time}", lambda: self._kernel(powers, time)))
        last = planar.mul(gain, absorb(v, powers, lengths))
        if h is None:
            return w, last
        onward = planar.mul(planar.mul(c, planar.exp(log_a)), h)
        return w + taps(onward, powers, time, self.groups), last + carried(h, log_a, time, lengths)

    def _kernel(self, powers: Powers, time: int) -> Tensor:
        """Re Σ c·gain·a^l of each group, and what is direct, (groups, time)."""
        _, gain, c = self.constant("evenly", self.evenly)
        kernel, direct = taps(planar.mul(c, gain)[None], powers, time, self.groups)[0].T, self.direct()
        return kernel if direct is None else kernel + nn.functional.pad(direct[:, None], (0, time - 1))

    def evenly(self) -> tuple[Tensor, Tensor, Tensor]:
        """log a, gain and readout weight of evenly sampled input, each planar (2, S)."""
        lam, step, c = self.system()
        a, gain = RULES[self.rule_name](lam, step, None)
        return planar.log(a) if self.rule_name == "bilinear" else lam * step, gain.expand_as(a), c

    def extra_repr(self) -> str:
        chosen = f"auto ({self.choices()})" if self.path == "auto" else self.path
        return f"{super().extra_repr()}, path={chosen}"


def taps(weight: Tensor, powers: Powers, time: int, groups: int) -> Tensor:
    """Re Σ_n weight·a^l for l < time, summed in each group: weight (M, 2, S) to (M, time, groups)."""
    coarse, fine = powers
    left = _modes_last(planar.conj(planar.mul(weight[:, None], coarse)), groups)
    products = left.flatten(1, 2) @ _modes_last(fine[None], groups)[:, 0].mT
    return products.unflatten(1, (-1, coarse.shape[0])).flatten(2)[..., :time].permute(1, 2, 0)


def absorb(v: Tensor, powers: Powers, lengths: Tensor | None) -> Tensor:
    """Σ_s a^s·v[end − 1 − s] for every state of a group: v (B, T, groups) to (B, 2, S)."""
    batch, time, groups = v.shape
    coarse, fine = powers
    q, c = coarse.shape[0], fine.shape[0]
    back = nn.functional.pad(backwards(v, lengths), (0, 0, 0, q * c - time)).unflatten(1, (q, c))
    rows = back.permute(3, 0, 1, 2).flatten(1, 2) @ _modes_last(fine[None], groups)[:, 0]
    inner = rows.view(groups, batch, q, 2, -1).permute(1, 2, 3, 0, 4).flatten(-2)
    return planar.mul(coarse, inner).sum(1)


def _modes_last(z: Tensor, groups: int) -> Tensor:
    """(M, K, 2, groups·modes) to (groups, M, K, 2·modes)."""
    return z.unflatten(-1, (groups, -1)).permute(3, 0, 1, 2, 4).flatten(-2)


def factors(log_a: Tensor, time: int) -> Powers:
    """a^(c·q) (Q, 2, S) and a^r (c, 2, S), whose products are all the powers below `time`."""
    c = max(1, math.isqrt(time))
    count = torch.arange(-(-time // c), device=log_a.device, dtype=log_a.dtype)
    near = torch.arange(c, device=log_a.device, dtype=log_a.dtype)
    return planar.exp(log_a * (c * count)[:, None, None]), planar.exp(log_a * near[:, None, None])


def carried(h: Tensor, log_a: Tensor, time: int, lengths: Tensor | None) -> Tensor:
    """a^length·h: what is left of a state (B, 2, S) after each row."""
    if lengths is None:
        return planar.mul(planar.exp(log_a * time), h)
    return planar.mul(planar.exp(log_a * lengths.to(log_a.dtype)[:, None, None]), h)


def valid(v: Tensor, lengths: Tensor | None) -> Tensor:
    """v (B, T, G) without what lies beyond a row's end, which a transform would spread by its rounding."""
    if lengths is None:
        return v
    return torch.where((torch.arange(v.shape[1], device=v.device) < lengths[:, None])[..., None], v, 0)


def backwards(v: Tensor, lengths: Tensor | None) -> Tensor:
    """Each row (B, T, G) from its last valid step to its first, then zeros."""
    if lengths is None:
        return v.flip(1)
    source = lengths[:, None] - 1 - torch.arange(v.shape[1], device=v.device)
    rows = v.gather(1, source.clamp_min(0)[..., None].expand_as(v))
    return torch.where((source >= 0)[..., None], rows, 0)
