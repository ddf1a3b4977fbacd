"""mLSTM, the matrix memory of xLSTM with exponential gates (Beck et al. 2024, arXiv 2405.04517)."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._constants import constant
from lrnnx_app.layers._definition import affine, matrix_outputs, short_convolution, silu, softplus
from lrnnx_app.layers._heads import head_width, of_heads, root
from lrnnx_app.layers._linear import Linear, convolve
from lrnnx_app.layers._taps import earlier, latest
from lrnnx_app.ops._blocked import cast
from lrnnx_app.ops._transforms import refuse_free
from lrnnx_app.ops.block_linear import BlockLinear
from lrnnx_app.ops.linear_scan import state_dtype
from lrnnx_app.ops.matrix_scan import matrix_scan
from lrnnx_app.ops.short_conv import documents
from lrnnx_app.spec import Rows

BLOCK = 4  # most channels of a block of the matrices for q, k and v


class MLSTMState(NamedTuple):
    """conv: last inputs of the convolution (B, d_conv − 1, D); m: logarithm of a scale (B, H);
    h: memory times exp(−m), the normalizer as its last row, (B, H, V + 1, K).
    """

    conv: Tensor
    h: Tensor
    m: Tensor


class MLSTM(Layer):
    """u, z = in_proj x; c = SiLU(conv1d u); q, k, v of c, c and u by blocks; i, f = gate_proj(q, k, v);

    C = σ(f)·C + exp(i)·v kᵀ, n = σ(f)·n + exp(i)·k, y = C q / max(|n·q|, 1) with k scaled by 1/√K;
    out_proj((LN(y)∘norm_weight + skip∘c)∘SiLU(z)). Data time multiplies log σ(f).

    C and n are kept times exp(−m), where m = max(log σ(f) + m, i, 0). The paper's m lacks the 0. No output
    depends on it.
    """

    recurrent = ("gate_proj.bias",)
    paper = "Beck et al. 2024, arXiv 2405.04517"
    varying = True
    cost = "D² + n·D"
    loops = True
    examples = ({"head_dim": 8, "expand": 4},)

    @dataclass
    class Config:
        expand: int = 2  # channels D = expand · d_model
        head_dim: int | None = None  # channels of a head, V = K; None: 8 to 64, in four heads
        d_conv: int = 4  # width of the convolution, in steps
        norm_eps: float = 1e-5  # added to the variance in the norm

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        self.config = config
        inner = config.expand * d_model
        self.head_dim = head_width(config.head_dim, inner)
        self.heads = heads = inner // self.head_dim
        block = max(n for n in range(1, BLOCK + 1) if inner % n == 0)
        self.in_proj = Linear(d_model, 2 * inner, bias=False)
        self.conv1d = nn.Conv1d(inner, inner, config.d_conv, groups=inner)
        self.qkv_weight = nn.Parameter(torch.randn(3, inner // block, block, block) * root(block))
        self.gate_proj = Linear(3 * inner, 2 * heads)
        nn.init.normal_(self.gate_proj.weight, std=0.01)
        with torch.no_grad():  # i near 1, and memories of 20 to 400 steps
            self.gate_proj.bias[:heads].normal_(0, 0.1)
            self.gate_proj.bias[heads:] = torch.linspace(3, 6, heads)
        self.norm_weight = nn.Parameter(torch.ones(inner))
        self.skip = nn.Parameter(torch.ones(inner))
        self.out_proj = Linear(inner, d_model, bias=False)

    def init_state(self, batch: int) -> MLSTMState:
        conv = self._zeros(batch, self.config.d_conv - 1, len(self.skip))
        h = self._zeros(batch, self.heads, self.head_dim + 1, self.head_dim)
        return MLSTMState(conv, h, self._zeros(batch, self.heads))

    def run(self, x: Tensor, state: MLSTMState | None, rows: Rows) -> tuple[Tensor, MLSTMState]:
        refuse_free(x.shape[1], "mlstm")
        state = self.init_state(x.shape[0]) if state is None else state
        u, z = self.in_proj(x).chunk(2, -1)
        c, conv = convolve(self.conv1d, u, state.conv, rows, silu=True)
        (q, k), (v,) = self._of_c(c), self._of_u(u)
        gates = self.gate_proj(torch.cat((q, k, v), -1))
        gate, forget = cast(gates, state_dtype(gates.dtype)).chunk(2, -1)
        forget = -F.softplus(-forget)  # its logarithm
        forget = forget if rows.dt is None else forget * rows.dt[..., None]
        m = _largest(forget, gate, state.m, rows.reset)
        log_decay = (forget + earlier(m, state.m, rows.reset) - m).clamp_max(0)  # to which it rounds
        q, k, v = (of_heads(w, self.heads) for w in (q, k * root(self.head_dim), v))
        written = F.pad(v, (0, 1), value=1.0) * cast(torch.exp(gate - m), v.dtype)[..., None]
        masks = {"lengths": rows.lengths, "reset": rows.reset}
        y, h = matrix_scan(q, k, written, log_decay, None, state.h, **masks)
        y = cast(y, m.dtype)
        y = y[..., :-1] / torch.maximum(y[..., -1].abs(), torch.exp(-m))[..., None]
        return self._outputs(y, c, z), MLSTMState(conv, h, latest(m, state.m, rows.lengths))

    @constant
    def _of_c(self) -> BlockLinear:
        """q and k, each (B, T, D)."""
        return self._by_blocks(self.qkv_weight[:2])

    @constant
    def _of_u(self) -> BlockLinear:
        """v (B, T, D)."""
        return self._by_blocks(self.qkv_weight[2:])

    @staticmethod
    def _by_blocks(weights: Tensor) -> BlockLinear:
        return BlockLinear(weights.unbind(), weights.new_zeros(weights.shape[:-1]).unbind())

    def _outputs(self, y: Tensor, c: Tensor, z: Tensor) -> Tensor:
        y = F.layer_norm(y, y.shape[-1:], eps=self.config.norm_eps).flatten(-2)
        y = cast(y * cast(self.norm_weight, y.dtype), c.dtype) + cast(self.skip, c.dtype) * c
        return self.out_proj(y * F.silu(z))

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, heads={self.heads}"

    @property
    def n_states(self) -> str:
        return f"{len(self.skip) * (self.head_dim + 1)} real"


def _largest(forget: Tensor, gate: Tensor, m: Tensor, reset: Tensor | None) -> Tensor:
    """m[t] = max(forget[t] + m[t − 1], gate[t], 0) for all steps (B, T, H), by doubling; first m (B, H).

    At a reset, m[t − 1] is 0.
    """
    number = None if reset is None else documents(reset, 0)[..., None]
    m = m if reset is None else torch.where(reset[:, :1], 0, m)
    reached = gate.clamp_min(0)
    reached = torch.cat((torch.maximum(reached[:, :1], (forget[:, 0] + m)[:, None]), reached[:, 1:]), 1)
    distance = 1
    while distance < gate.shape[1]:
        further = forget[:, distance:] + reached[:, :-distance]
        span = forget[:, distance:] + forget[:, :-distance]
        if number is not None:
            same = number[:, distance:] == number[:, :-distance]
            further, span = torch.where(same, further, 0), torch.where(same, span, 0)
        reached = torch.cat((reached[:, :distance], torch.maximum(reached[:, distance:], further)), 1)
        forget = torch.cat((forget[:, :distance], span), 1)
        distance *= 2
    return reached


def definition(layer: MLSTM, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """C[t] = f C[t − 1] + i v kᵀ, n[t] = f n[t − 1] + i k, y[t] = C[t] q / max(|n[t]·q|, 1): equations 19 to
    27 of the paper as they stand, without a scale, in the block of its figure 11. n is a last row of C.
    """
    inner, heads = len(layer.skip), layer.heads
    u, z = affine(layer.in_proj, x).split(inner, -1)
    c = silu(short_convolution(layer.conv1d, u))
    q, k, v = (w @ torch.block_diag(*blocks) for w, blocks in zip((c, c, u), layer.qkv_weight, strict=True))
    gate, forget = affine(layer.gate_proj, torch.cat((q, k, v), -1)).split(heads, -1)
    f = torch.exp(-softplus(-forget) * (1.0 if dt is None else dt[..., None]))
    q, k, v = (w.unflatten(-1, (heads, -1)) for w in (q, k, v))
    written = torch.exp(gate)[..., None] * torch.cat((v, torch.ones_like(v[..., :1])), -1)
    y = matrix_outputs(q, k / k.shape[-1] ** 0.5, written, f)
    y = y[..., :-1] / y[..., -1:].abs().clamp_min(1)
    y = y - y.mean(-1, keepdim=True)
    y = (y / torch.sqrt(y.square().mean(-1, keepdim=True) + layer.config.norm_eps)).flatten(-2)
    return affine(layer.out_proj, (y * layer.norm_weight + layer.skip * c) * silu(z))
