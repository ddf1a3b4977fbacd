"""Banks of single-input diagonal systems (S4D, Centaurus), where states far outnumber channels.

(B, T, states) must not reach memory for a long T. Evenly sampled rows go through matmuls over chunks of time
(`bank_scan`) unless they are short. All others are scanned, in chunks of time that are recomputed in the
backward pass. Convolution by FFT took up to twice as long as the matmuls, on a CPU and on a GPU.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from lrnnx_app.layers._base import Carried, DiagonalLayer, carried
from lrnnx_app.layers._coefficients import Coefficients
from lrnnx_app.layers._constants import constant, constant_of
from lrnnx_app.layers._taps import earlier, latest
from lrnnx_app.ops import planar
from lrnnx_app.ops._blocked import cast
from lrnnx_app.ops._transforms import free, recomputed
from lrnnx_app.ops.bank_scan import Chunks, bank_scan_unchecked, by_step, chunks, steps
from lrnnx_app.ops.linear_scan import linear_scan, state_dtype
from lrnnx_app.ops.rules import Rule
from lrnnx_app.ops.step import diagonal_step
from lrnnx_app.spec import Rows

PATHS = ("auto", "scan", "chunk")


class Sizes(NamedTuple):
    """Measured limits: the sizes from which on each path of a bank is the fastest on a kind of device."""

    scanned: int  # elements of the states (B, T, S) below which a scan takes less than making the matrices
    dense: int  # the same where every group is one mode, and a chunk's matrices are mostly Toeplitz ones


SIZES = {
    "cpu": Sizes(2**19, 2**62),
    "cuda": Sizes(2**20, 2**21),
}
CHUNK = 2**21  # state elements of a chunk of the scan


class BankLayer(DiagonalLayer):
    """`groups` systems of `modes` complex states each; state (2, groups·modes).

    A subclass supplies `system`, and `inputs` and `outputs` around the bank; coefficients, readout and all
    paths follow. `run` is overridden, for evenly sampled rows without `reset` need not be scanned.
    """

    groups: int
    modes: int
    dense: bool = False  # every group is one state, read with weight 1
    path: str = "auto"  # auto | scan | chunk

    @property
    def state_shape(self) -> tuple[int, ...]:  # pyright: ignore[reportIncompatibleVariableOverride]  (derived here)
        return (2, self.groups * self.modes)

    @constant
    def system(self) -> tuple[Tensor, Tensor, Tensor]:
        """Eigenvalues λ (2, S), timescales Δ (S,) and weights c (2, S) of the readout, S = groups·modes."""
        raise NotImplementedError

    @property
    def drive_shape(self) -> tuple[int, ...]:
        return (self.groups,)

    @constant
    def even(self) -> tuple[Tensor, ...]:
        """a and gain (2, S) of evenly sampled rows, and by a rule of two taps the other gain."""
        lam, delta, _ = self.system
        return self.rule(lam, delta)

    @constant_of
    def chunks(self, size: int) -> Chunks:
        """The matrices of chunks of `size` steps, by a rule of two taps those of `_by_what_follows`."""
        log_a, gain, c = self.evenly()
        if not self.two_taps:
            return chunks(log_a, gain, c, self.direct(), self.groups, size)
        a, _, late = self.even
        return chunks(log_a, planar.mul(a, gain) + late, c, None, self.groups, size)

    def inputs(self, x: Tensor) -> Tensor:
        """The driving input of each group: (B, T, d_model) to (B, T, groups)."""
        return x

    def rows(self, x: Tensor) -> Tensor:
        """`inputs`, best with each group's steps side by side in memory."""
        return self.inputs(x)

    def outputs(self, w: Tensor, x: Tensor) -> Tensor:
        """Output (B, T, d_model) from w = Re Σ c·h + direct∘inputs (B, T, groups) and the input."""
        return by_step(w)

    def direct(self) -> Tensor | None:
        """Weights of the skip from each group's input to its output, (groups,); None if there is none."""
        return None

    def coefficients(self, x: Tensor, dt: Tensor | None) -> tuple[Coefficients, Tensor]:
        return self.bank(dt), self.inputs(x)

    def bank(self, dt: Tensor | None) -> "Bank":
        lam, delta, c = self.system
        even = self.even if dt is None else None
        return Bank(lam, delta, c, self.direct(), even, dt, self.rule, self.groups, self.dense)

    def readout(self, h: Tensor, x: Tensor) -> Tensor:
        return self.outputs(cast(h, x.dtype), x)

    def choose(self, batch: int, time: int, device: str) -> str:
        """The cheaper path for evenly sampled rows."""
        sizes = SIZES.get(device, SIZES["cuda"])
        limit = sizes.dense if self.modes == 1 else sizes.scanned
        return "scan" if batch * time * self.state_shape[1] < limit else "chunk"

    def run(self, x: Tensor, state: Carried | None, rows: Rows) -> tuple[Tensor, Carried]:
        batch, time, path = x.shape[0], x.shape[1], self.path
        if free(batch, time):  # what is chosen by their sizes would hold for no other ones
            path = "scan"
        elif path == "auto":
            path = self.choose(batch, time, x.device.type)
        if path == "scan" or rows.dt is not None or rows.reset is not None:
            return self._scan(x, state, rows)
        return self._convolve(x, state, rows.lengths, path)

    def _scan(self, x: Tensor, state: Carried | None, rows: Rows) -> tuple[Tensor, Carried]:
        run, time = super().run, x.shape[1]
        if torch.compiler.is_exporting():  # the number of parts is not to be fixed
            return run(x, state, rows)
        size = max(1, CHUNK // (2 * x.shape[0] * self.state_shape[1]))
        if time <= size:
            return run(x, state, rows)
        ys: list[Tensor] = []
        after: Any = self.init_state(x.shape[0]) if state is None else state
        for start in range(0, time, size):
            stop = min(start + size, time)
            y, after = recomputed(run, x[:, start:stop], after, rows.part(start, stop))
            ys.append(y)
        return torch.cat(ys, 1), after

    def _convolve(
        self, x: Tensor, state: Carried | None, lengths: Tensor | None, path: str
    ) -> tuple[Tensor, Carried]:
        v = self.rows(x)
        with torch.autocast(x.device.type, enabled=False):
            v = cast(v, state_dtype(v.dtype))
            made = self.chunks(steps(v))
            if self.two_taps:
                w, *last = self._by_what_follows(made, v, state or self.init_state(v.shape[0]), lengths)
            else:
                w, *last = bank_scan_unchecked(made, v, None if state is None else state.h, lengths)
        return self.outputs(cast(w, x.dtype), x), carried(*last)

    def _by_what_follows(
        self, made: Chunks, v: Tensor, state: Any, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """w, h and v after the last step by a rule of two taps, a gain of each.

        What step t + 1 starts from is r[t] = a∘h[t] + late∘v[t]. It has one gain,
        r[t] = a∘r[t−1] + (a∘gain + late)∘v[t], and h[t] = r[t−1] + gain∘v[t].
        """
        (a, gain, late), bank = self.even, self.bank(None)
        counts = Rows(lengths=lengths).counts(v)
        r = planar.mul(a, state.h) + late * bank.spread(state.before)
        w, last = bank_scan_unchecked(made, v, r, (counts - 1).clamp_min(0))
        direct = bank.read(gain.expand_as(a)) + (0 if bank.direct is None else bank.direct)
        before = latest(v, state.before, lengths)
        h = torch.where(counts[:, None, None] > 0, last + gain * bank.spread(before), state.h)
        return earlier(w, bank.read(r)) + direct * v, h, before

    def evenly(self) -> tuple[Tensor, Tensor, Tensor]:
        """log a, gain and readout weight of evenly sampled input, each planar (2, S)."""
        lam, step, c = self.system
        return self.rule.log_a(lam, step), self.even[1].expand_as(lam), c

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, path={self.path}"


class Bank(NamedTuple):
    """Coefficients of groups of states: from one input each, v (B, T, groups), to w = Re Σ c∘h + direct∘v.

    A step contracts the states with c in registers, so that one launch of a kernel does all of it.
    """

    lam: Tensor  # (2, S)
    delta: Tensor  # (S,) timescale Δ
    c: Tensor  # (2, S)
    direct: Tensor | None  # (groups,)
    even: tuple[Tensor, ...] | None  # a and gain (2, S) of evenly sampled rows, with two taps the other gain
    dt: Tensor | None  # (B, T), where they are not
    rule: Rule
    groups: int
    dense: bool  # c is 1, and every group one state

    def scan(
        self,
        b: Tensor,
        h0: Tensor | None,
        before: Tensor | None = None,
        *,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, ...]:
        a, gain, *late = self.even or self.rule(self.lam, self.delta, self.dt)
        a = a if a.ndim == 4 else a[None, None]
        driven = gain * self.spread(b)
        for other in late:
            driven = driven + other * self.spread(earlier(b, before, reset))
        h, last = linear_scan(a, driven, h0, lengths=lengths, reset=reset)
        w = cast(self.read(h), b.dtype)
        w = w if self.direct is None else torch.addcmul(w, cast(self.direct, b.dtype), b)
        return (w, last, latest(b, before, lengths)) if late else (w, last)

    def spread(self, b: Tensor) -> Tensor:
        """The input of each group, repeated for each of its states: (…, groups) to (…, 1, S)."""
        return b[..., None].expand(*b.shape, self.c.shape[-1] // self.groups).flatten(-2).unsqueeze(-2)

    def read(self, h: Tensor) -> Tensor:
        """Re Σ c·h of each group: (…, 2, S) to (…, groups)."""
        if self.dense:
            return h[..., 0, :]
        return (h[..., 0, :] * self.c[0] - h[..., 1, :] * self.c[1]).unflatten(-1, (self.groups, -1)).sum(-1)

    def step(self, b: Tensor, h: Tensor, before: Tensor | None = None) -> tuple[Tensor, ...]:
        if before is not None:
            w, *after = self.scan(b[:, None], h, before)
            return w[:, 0], *after
        made_by: dict[str, Any] = {}
        a, gain = (self.lam, None) if self.even is None else self.even
        if self.dt is not None:
            delta = self.delta.unflatten(-1, (self.groups, -1))
            made_by = {"rule": self.rule, "dt": self.dt[:, 0], "step": delta}
        h, a, c = (self._by_group(z) for z in (h, a, self.c))
        gain = None if gain is None else self._by_group(gain)
        w, h = diagonal_step(b, h, a, gain, c, self.direct, **made_by, checked=False)
        return w, h.movedim(-2, -3).flatten(-2)

    def _by_group(self, z: Tensor) -> Tensor:
        """(…, P, S) as the states of each group, (…, groups, P, modes)."""
        return z.expand(*z.shape[:-1], self.c.shape[-1]).unflatten(-1, (self.groups, -1)).movedim(-3, -2)


def backwards(v: Tensor, lengths: Tensor | None) -> Tensor:
    """Each row (B, T, G) from its last valid step to its first, then zeros."""
    if lengths is None:
        return v.flip(1)
    source = lengths[:, None] - 1 - torch.arange(v.shape[1], device=v.device)
    rows = v.gather(1, source.clamp_min(0)[..., None].expand_as(v))
    return torch.where((source >= 0)[..., None], rows, 0)
