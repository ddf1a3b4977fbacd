"""S4: the structured state space in normal-plus-low-rank form (Gu et al. 2022, arXiv 2111.00396)."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrnnx_app.errors import one_of
from lrnnx_app.layers import _nplr
from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._constants import constant, constant_of, costly
from lrnnx_app.layers._definition import number
from lrnnx_app.layers._nplr import S4State
from lrnnx_app.ops._blocked import cast
from lrnnx_app.ops._transforms import recomputed, refuse_free
from lrnnx_app.ops.fft_conv import fft_conv
from lrnnx_app.ops.linear_scan import state_dtype
from lrnnx_app.ops.rules import OWN
from lrnnx_app.spec import Rows

FFT_FROM = 32  # steps from which a convolution by FFT pays
CHUNK = 64  # steps that are recomputed together in the backward pass of the step-by-step path


class S4(Layer):
    """Per channel x' = A x + B u, y = 2 Re(C x) + D·u with A = Λ − PP*, by the bilinear rule.

    One of each conjugate pair of the N states is kept; Λ = −exp(log_A_real) + i·A_imag. `C` is the paper's
    C̃ = C(I − Ā^L) for L = `l_max`, or C itself where l_max is 0. The kernel comes from C̃ by a Cauchy sum;
    for a sequence longer than l_max, C̃ is made anew for its length, so that nothing is cut off.
    Evenly sampled rows are convolved by FFT, or by blocks of dense powers where `reset` packs sequences;
    elapsed time goes step by step in O(N), since it changes Ā at every step.
    """

    recurrent = ("log_A_real", "A_imag", "P", "B", "log_dt")
    rule = OWN["bilinear"]
    paper = "Gu et al. 2022, arXiv 2111.00396"
    cost = "n·D"
    loops = True
    examples = (
        {"d_state": 4, "path": "fft"},
        {"d_state": 4, "path": "scan"},
        {"d_state": 4, "path": "fft", "l_max": 7},
        {"d_state": 4, "path": "scan", "l_max": 16},
    )

    @dataclass
    class Config:
        d_state: int = 64  # N per channel; one of each conjugate pair is kept
        l_max: int = 0  # steps that C̃ is for; 0 learns C itself
        dt_min: float = 1e-3  # Δ starts log-uniform in [dt_min, dt_max]
        dt_max: float = 1e-1  # see dt_min
        path: str = "auto"  # auto | fft | scan: how a whole sequence is computed

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        self.config, n = config, config.d_state // 2
        self.path = one_of("path", config.path, ("auto", "scan", "fft"))
        lam, P, B = (z.float() for z in _nplr.legs(config.d_state))
        self.log_A_real = nn.Parameter(torch.log(-lam[0]).repeat(d_model, 1))
        self.A_imag = nn.Parameter(lam[1].repeat(d_model, 1))
        self.P = nn.Parameter(P[:, None].repeat(1, d_model, 1))
        self.B = nn.Parameter(B[:, None].repeat(1, d_model, 1))
        self.C = nn.Parameter(torch.randn(2, d_model, n) * math.sqrt(0.5))
        low, high = math.log(config.dt_min), math.log(config.dt_max)
        self.log_dt = nn.Parameter(torch.empty(d_model).uniform_(low, high))
        self.D = nn.Parameter(torch.randn(d_model))

    @property
    def n_states(self) -> str:
        return f"{self.C[0].numel()} complex"

    def init_state(self, batch: int) -> S4State:
        _, channels, n = self.C.shape
        return S4State(self.C.new_zeros(batch, channels, 2, n, dtype=state_dtype(self.C.dtype)))

    @constant
    def system(self) -> _nplr.System:
        return self._system(state_dtype(self.C.dtype))

    def _system(self, dtype: torch.dtype) -> _nplr.System:
        log_A_real, A_imag, P, B, log_dt = (
            cast(p, dtype) for p in (self.log_A_real, self.A_imag, self.P, self.B, self.log_dt)
        )
        lam = torch.stack((-torch.exp(log_A_real), A_imag))
        lam, P, B = (z.movedim(0, -2) for z in (lam, P, B))
        return _nplr.System(lam, P, B, torch.exp(log_dt))

    def run(self, x: Tensor, state: S4State | None, rows: Rows) -> tuple[Tensor, S4State]:
        refuse_free(x.shape[1], "S4")
        path = self.path
        if path == "auto":
            path = "fft" if x.shape[1] >= FFT_FROM else "scan"
        with torch.autocast(x.device.type, enabled=False):
            u = cast(x, state_dtype(x.dtype))
            if path == "scan" or rows.dt is not None:
                y, state = self._scan(u, state, rows)
            elif rows.reset is not None:
                y, state = self._blocks(u, state, rows.lengths, rows.reset)
            else:
                y, state = self._convolve(u, state, rows.lengths)
        return cast(y, x.dtype) + cast(self.D * x, x.dtype), state

    def step(self, x: Tensor, state: S4State, dt: Tensor | None = None) -> tuple[Tensor, S4State]:
        with torch.autocast(x.device.type, enabled=False):
            u = cast(x, state_dtype(x.dtype))
            inverse = self.even if dt is None else _nplr.inverse(self.system, dt)
            h = _nplr.advance(self.system, inverse, state.h, u)
            y = _nplr.read(self.readout, h)
        return cast(y, x.dtype) + cast(self.D * x, x.dtype), S4State(h)

    @constant
    def even(self) -> _nplr.Inverse:
        """(1 − ½ΔA)⁻¹ of evenly sampled rows."""
        return _nplr.inverse(self.system, None)

    @constant
    def dense(self) -> _nplr.Dense:
        return _nplr.Dense(self.system)

    def _scan(self, u: Tensor, state: S4State | None, rows: Rows) -> tuple[Tensor, S4State]:
        dt, lengths, reset = rows
        system, even, C, time = self.system, self.even, self.readout, u.shape[1]
        h = self.init_state(u.shape[0]).h if state is None else state.h

        def chunk(h: Tensor, start: int) -> tuple[Tensor, Tensor]:
            ys = []
            for t in range(start, min(start + CHUNK, time)):
                before = h if reset is None else torch.where(reset[:, t, None, None, None], 0, h)
                inverted = even if dt is None else _nplr.inverse(system, dt[:, t])
                new = _nplr.advance(system, inverted, before, u[:, t])
                h = new if lengths is None else torch.where((t < lengths)[:, None, None, None], new, h)
                ys.append(_nplr.read(C, h))
            return h, torch.stack(ys, 1)

        if time <= CHUNK:
            h, y = chunk(h, 0)
            return y, S4State(h)
        ys = []
        for start in range(0, time, CHUNK):
            h, y = recomputed(chunk, h, start)
            ys.append(y)
        return torch.cat(ys, 1), S4State(h)

    def _convolve(self, u: Tensor, state: S4State | None, lengths: Tensor | None) -> tuple[Tensor, S4State]:
        time = u.shape[1]
        dense, kernel = self.convolution(time)
        y = fft_conv(u, kernel)
        last = dense.absorb(u, lengths)
        if state is not None:
            y = y + dense.emit(self.readout, state.h, time)
            last = last + dense.carry(state.h, time, lengths)
        return y, S4State(last)

    @constant_of
    def convolution(self, time: int) -> tuple[_nplr.Dense, Tensor]:
        """Powers of Ā, and the convolution kernel (H, time), for sequences of `time` steps."""
        dense, length = self.dense, max(time, self.config.l_max)
        if length == self.config.l_max:
            C_tilde = self._weights()
        elif self.config.l_max:
            wide, C = self._recovered()
            C_tilde = cast(wide.truncated(C, length), state_dtype(self.C.dtype))
        else:
            C_tilde = dense.truncated(self._weights(), length)
        return dense, _nplr.kernel(self.system, C_tilde, length)[:, :time]

    def _blocks(
        self, u: Tensor, state: S4State | None, lengths: Tensor | None, reset: Tensor
    ) -> tuple[Tensor, S4State]:
        dense, time = self.dense, u.shape[1]
        h = self.init_state(u.shape[0]).h if state is None else state.h
        y = dense.packed(self.readout, u, h, reset)
        u, h = _nplr.last_sequence(u, h, lengths, reset)
        return y, S4State(dense.absorb(u, lengths) + dense.carry(h, time, lengths))

    def _weights(self) -> Tensor:
        """The parameter C, which is C̃ where there is l_max, as (H, 2, n)."""
        return cast(self.C.movedim(0, -2), state_dtype(self.C.dtype))

    @costly("log_A_real", "A_imag", "P", "C", "log_dt")
    def readout(self) -> Tensor:
        """C (H, 2, n), recovered from C̃ where there is l_max."""
        if not self.config.l_max:
            return self._weights()
        return cast(self._recovered()[1], state_dtype(self.C.dtype))

    def _recovered(self) -> tuple[_nplr.Dense, Tensor]:
        """Ā and C in float64: slow modes bring 1 − Ā^L near singular."""
        dense = _nplr.Dense(self._system(torch.float64))
        return dense, dense.untruncated(self.C.movedim(0, -2).double(), self.config.l_max)

    def extra_repr(self) -> str:
        chosen = f"auto (fft from {FFT_FROM} steps, else scan)" if self.path == "auto" else self.path
        return f"{super().extra_repr()}, l_max={self.config.l_max}, path={chosen}"


def definition(layer: S4, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """h[t] = Ā h[t − 1] + B̄ u[t], y[t] = C h[t] + D u[t] with dense matrices for both of each conjugate pair.

    Ā = (I − ΔδA/2)⁻¹(I + ΔδA/2) and B̄ = (I − ΔδA/2)⁻¹ΔδB: equation 3 of the paper; A = Λ − PP*: theorem 1.
    Where the layer holds C̃ = C(I − Ā^L), as appendix C learns it, C is solved for.
    """
    A, B, C = continuous(layer)
    eye = torch.eye(A.shape[-1])

    def discrete(span: Tensor) -> tuple[Tensor, Tensor]:
        """Ā (…, H, N, N) and B̄ (…, H, N) of steps of length (…, H)."""
        half, lower = A * span[..., None, None] / 2, span[..., None] * B
        return torch.linalg.solve(eye - half, eye + half), torch.linalg.solve(eye - half, lower)

    even = discrete(torch.exp(layer.log_dt))
    if layer.config.l_max:
        rest = eye - torch.linalg.matrix_power(even[0], layer.config.l_max)
        C = torch.linalg.solve(rest.mT, C)
    h, ys = torch.zeros_like(B), []
    for t in range(x.shape[1]):
        a, b = even if dt is None else discrete(torch.exp(layer.log_dt) * dt[:, t, None])
        h = (a @ h[..., None])[..., 0] + b * x[:, t, :, None]
        ys.append((C * h).sum(-1).real + layer.D * x[:, t])
    return torch.stack(ys, 1)


def continuous(layer: S4) -> tuple[Tensor, Tensor, Tensor]:
    """A = Λ − PP* (H, N, N), B and C (or C̃) (H, N) over both of each conjugate pair."""
    lam = torch.complex(-torch.exp(layer.log_A_real), layer.A_imag)
    planes = (number(layer.P), number(layer.B), number(layer.C))
    lam, P, B, C = (torch.cat((z, z.conj()), -1) for z in (lam, *planes))
    return torch.diag_embed(lam) - P[..., :, None] * P[..., None, :].conj(), B, C
