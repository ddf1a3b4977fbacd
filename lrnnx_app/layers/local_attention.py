"""Sliding-window attention of few keys, the companion of recurrences in Griffin (arXiv 2402.19427)."""

import math
from contextlib import nullcontext
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._constants import constant_of
from lrnnx_app.layers._definition import affine
from lrnnx_app.layers._linear import Linear
from lrnnx_app.ops._blocked import cast
from lrnnx_app.ops._transforms import refuse_free, transformed
from lrnnx_app.ops.short_conv import documents, window_at_end
from lrnnx_app.spec import Rows


class WindowState(NamedTuple):
    """The window before a step, oldest first: keys and values (B, window − 1, kv_heads·d_head), keys not yet
    rotated, and valid (B, window − 1, 1), 1 where there is one."""

    k: Tensor
    v: Tensor
    valid: Tensor


class LocalAttention(Layer):
    """Each step attends to the last `window` steps, itself included, by `heads` queries and `kv_heads` keys.

    Rotary positions (arXiv 2104.09864) count from the start of the window in hand: only differences matter,
    so that a stream may run for ever. There is no notion of elapsed time: `dt` must be None. On a CPU, second
    derivatives need torch.nn.attention.sdpa_kernel(SDPBackend.MATH) around the forward pass.
    """

    uses_dt = False
    paper = "De et al. 2024, arXiv 2402.19427"
    varying = True
    cost = "D² + window·D"
    loops = True
    examples = ({"window": 4, "heads": 2}, {"window": 3, "heads": 2, "kv_heads": 2, "rotary": 0.5})

    @dataclass
    class Config:
        window: int = 256  # steps that a step attends to, itself included
        heads: int = 4  # heads of queries, a divisor of d_model; d_model / heads even
        kv_heads: int = 1  # heads of keys and values, a divisor of heads; each serves as many queries
        rotary: float = 1.0  # share of a head's channels that positions rotate
        base: float = 10000.0  # of the rotary frequencies

        def __post_init__(self) -> None:
            if self.window < 1:
                raise RecipeError(f"window: expected at least 1, not {self.window}")
            if self.kv_heads < 1 or self.heads % self.kv_heads:
                raise RecipeError(f"kv_heads: {self.kv_heads} does not divide heads = {self.heads}")
            if self.rotary < 0 or self.rotary > 1:  # check_numbers refuses NaN
                raise RecipeError(f"rotary: expected a share in [0, 1], not {self.rotary}")

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        if d_model % (2 * config.heads):
            raise RecipeError(
                f"heads: d_model = {d_model} must be a multiple of 2 · heads = {2 * config.heads}"
            )
        self.config = config
        self.d_head = d_model // config.heads
        self.rotated = 2 * int(self.d_head * config.rotary / 2)  # channels of a head
        self.q_proj = Linear(d_model, d_model, bias=False)
        self.kv_proj = Linear(d_model, 2 * config.kv_heads * self.d_head, bias=False)
        self.out_proj = Linear(d_model, d_model)

    def init_state(self, batch: int) -> WindowState:
        past = self.config.window - 1
        k, v = (self._zeros(batch, past, self.config.kv_heads * self.d_head) for _ in range(2))
        return WindowState(k, v, self._zeros(batch, past, 1))

    def run(self, x: Tensor, state: WindowState | None, rows: Rows) -> tuple[Tensor, WindowState]:
        refuse_free(x.shape[1], "local_attention")
        reset = rows.reset
        time, past = x.shape[1], self.config.window - 1
        empty = past if state is None else 0  # keys that are known to be none
        state = self.init_state(x.shape[0]) if state is None else state
        x, known, lost = x, state, None
        if (time > 1 or reset is not None) and not seen_finite(x, state.k, state.v):
            x, known, lost = without_lost(x, state)
        q = self.q_proj(x).unflatten(-1, (self.config.heads, self.d_head))
        new = cast(self.kv_proj(x), state.k.dtype).chunk(2, -1)
        k, v = torch.cat((known.k, new[0]), 1), torch.cat((known.v, new[1]), 1)
        valid = F.pad(state.valid, (0, 0, 0, time), value=1.0)
        document = None if reset is None else documents(reset, past)
        handed = (k, v) if lost is None else (torch.where(lost, math.nan, z) for z in (k, v))
        after = (window_at_end(z, past, rows.lengths, document) for z in (*handed, valid))

        outputs = []
        for start in range(0, time, self.config.window):
            stop = min(start + self.config.window, time)
            span = slice(max(start, empty), stop + past)
            mask = self._mask(stop - start, valid[:, span], None if document is None else document[:, span])
            y = self._attend(q[:, start:stop], k[:, span], v[:, span], mask)
            if lost is not None:
                reached = (mask & lost[:, None, span, 0]).any(-1)
                y = y + torch.where(reached, math.nan, 0.0).to(y.dtype)[..., None, None]
            outputs.append(y)
        y = torch.cat(outputs, 1).flatten(2)
        return self.out_proj(y), WindowState(*after)

    def _mask(self, queries: int, valid: Tensor, document: Tensor | None) -> Tensor:
        """(B, queries, keys) bool: the key is there, in the window, not later, and of the same document."""
        keys = torch.arange(valid.shape[1], device=valid.device)
        ages = keys[-queries:, None] - keys
        seen = (valid[:, None, :, 0] > 0.5) & (ages >= 0) & (ages < self.config.window)
        return seen if document is None else seen & (document[:, -queries:, None] == document[:, None])

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor) -> Tensor:
        """q (B, Q, heads, d_head); k, v (B, Q and window − 1 before, kv_heads·d_head); returns q's shape."""
        kv_heads, served = self.config.kv_heads, self.config.heads // self.config.kv_heads
        k, v = (z.unflatten(-1, (kv_heads, self.d_head)).transpose(1, 2) for z in (k, v))
        cos, sin = self._turns(k.shape[2], k.dtype, k.device)
        here = slice(k.shape[2] - q.shape[1], None)
        q_rotated = cast(rotated(cast(q.transpose(1, 2), k.dtype), cos[here], sin[here]), q.dtype)
        k_rotated = cast(rotated(k, cos, sin), q.dtype)
        values = cast(v, q.dtype)
        shared = (z[:, :, None].expand(-1, -1, served, -1, -1).flatten(1, 2) for z in (k_rotated, values))
        plain = sdpa_kernel(SDPBackend.MATH) if transformed() else nullcontext()
        with plain:
            y = F.scaled_dot_product_attention(q_rotated, *shared, attn_mask=mask[:, None])
        return y.transpose(1, 2)

    @constant_of
    def _turns(self, count: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
        """Cosine and sine of position·base^(−2i/rotated) for each of `count` positions and each pair i."""
        positions = torch.arange(count, device=device, dtype=dtype)
        pairs = self.rotated // 2
        powers = torch.arange(pairs, device=device, dtype=dtype) / max(pairs, 1)
        angle = positions[:, None] * self.config.base**-powers
        return torch.cos(angle), torch.sin(angle)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, window={self.config.window}, heads={self.config.heads}"

    @property
    def n_states(self) -> str:
        return "0"


def seen_finite(*tensors: Tensor) -> bool:
    """Whether all numbers are known to be finite; false in traced code and on a GPU."""
    if torch.compiler.is_compiling() or transformed():
        return False
    return all(z.is_cpu and math.isfinite(z.detach().sum()) for z in tensors)


def without_lost(x: Tensor, state: WindowState) -> tuple[Tensor, WindowState, Tensor]:
    """x and state with zeros at the steps that are not finite, and where these are, (B, window − 1 + T, 1).

    A weight of 0 does not keep them from a query that is not to see them; that they reach those that are is
    left to the caller.
    """
    new = ~x.isfinite().all(-1, keepdim=True)
    old = ~(state.k.isfinite() & state.v.isfinite()).all(-1, keepdim=True)
    kept = WindowState(torch.where(old, 0, state.k), torch.where(old, 0, state.v), state.valid)
    return torch.where(new, 0, x), kept, torch.cat((old, new), 1)


def rotated(z: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The pairs (i, i + n) of z (…, S, d_head) turned by angles (S, n); the channels from 2n on stay."""
    n = cos.shape[-1]
    first, second, rest = z.split((n, n, z.shape[-1] - 2 * n), -1)
    return torch.cat((first * cos - second * sin, first * sin + second * cos, rest), -1)


def definition(layer: LocalAttention, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """softmax over the window of ⟨R^t q[t], R^s k[s]⟩/√d times v[s], with all pairs (t, s) at once.

    The rotation R turns pair i by angle_i = base^(−2i/n): section 3.2 of arXiv 2104.09864, for the first n
    channels of a head. As complex numbers ⟨R^t q, R^s k⟩ is Re Σ_i q_i k̄_i exp(i·angle_i·(t − s)) there.
    """
    d, heads, n = layer.d_head, layer.config.heads, layer.rotated
    q = affine(layer.q_proj, x).unflatten(-1, (heads, d))
    k, v = affine(layer.kv_proj, x).unflatten(-1, (2, -1, d)).unbind(2)
    k, v = (z.repeat_interleave(heads // layer.config.kv_heads, 2) for z in (k, v))
    scores = torch.einsum("bthi,bshi->bhts", q[..., n:], k[..., n:])
    q, k = (torch.complex(*z[..., :n].chunk(2, -1)) for z in (q, k))
    age = torch.arange(x.shape[1])[:, None] - torch.arange(x.shape[1])
    angle = layer.config.base ** (-torch.arange(n // 2, dtype=torch.float64) * 2 / max(n, 1))
    turned = torch.exp(1j * age[..., None] * angle)
    scores = (scores + torch.einsum("bthi,bshi,tsi->bhts", q, k.conj(), turned).real) / math.sqrt(d)
    seen = (age >= 0) & (age < layer.config.window)
    y = torch.where(seen, scores, -math.inf).softmax(-1) @ v.transpose(1, 2)
    return affine(layer.out_proj, y.transpose(1, 2).flatten(2))
