"""Gated linear attention: a decay for each channel of the keys (Yang et al. 2023, arXiv 2312.06635)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._definition import affine, matrix_outputs, rms, silu
from lrnnx_app.layers._heads import HeadsState, head_width, normed, of_heads, root
from lrnnx_app.layers._linear import Linear
from lrnnx_app.ops._blocked import cast
from lrnnx_app.ops.linear_scan import state_dtype
from lrnnx_app.ops.matrix_scan import matrix_scan
from lrnnx_app.spec import Rows


class GLA(Layer):
    """q, k, v, z, r = in_proj x; log α = log σ(gate_proj r)/τ, for each channel of k;

    h = h∘α + v kᵀ, y = h q/√K; out_proj(RMS(y)∘norm_weight∘SiLU(z)). Data time multiplies log α. The norm of
    a head is RMS as in the authors' code, where the paper has LayerNorm.
    """

    recurrent = ("gate_proj.bias",)
    paper = "Yang et al. 2023, arXiv 2312.06635"
    varying = True
    cost = "D² + n·D"
    examples = ({"head_dim": 2, "key_dim": 3},)

    @dataclass
    class Config:
        head_dim: int | None = None  # channels V of a head; None: 8 to 64, in four heads
        key_dim: int | None = None  # channels K of q and k in a head; None: half of V
        gate_rank: int = 16  # width of r, from which α is made
        tau: float = 16.0  # temperature τ of α; a larger one forgets less
        norm_eps: float = 1e-5  # added to the mean square in the norm

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        self.config = config
        value_dim = head_width(config.head_dim, d_model)
        self.heads, self.key_dim = d_model // value_dim, config.key_dim or max(1, value_dim // 2)
        keys = self.heads * self.key_dim
        self.sizes = (keys, keys, d_model, d_model, config.gate_rank)  # of q, k, v, z and r
        self.in_proj = Linear(d_model, sum(self.sizes), bias=False)
        self.gate_proj = Linear(config.gate_rank, keys)
        self.norm_weight = nn.Parameter(torch.ones(value_dim))
        self.out_proj = Linear(d_model, d_model, bias=False)

    def init_state(self, batch: int) -> HeadsState:
        return HeadsState(self._zeros(batch, self.heads, len(self.norm_weight), self.key_dim))

    def run(self, x: Tensor, state: HeadsState | None, rows: Rows) -> tuple[Tensor, HeadsState]:
        q, k, v, z, r = self.in_proj(x).split(self.sizes, -1)
        logits = self.gate_proj(r)
        log_decay = -F.softplus(-cast(logits, state_dtype(logits.dtype))) / self.config.tau
        if rows.dt is not None:
            log_decay = log_decay * rows.dt[..., None]
        q, k, v, log_decay = (of_heads(w, self.heads) for w in (q, k, v, log_decay))
        h0, masks = None if state is None else state.h, {"lengths": rows.lengths, "reset": rows.reset}
        y, h = matrix_scan(q * root(self.key_dim), k, v, log_decay, None, h0, **masks)
        y = normed(y, self.norm_weight, self.config.norm_eps, of_heads(z, self.heads))
        return self.out_proj(y.flatten(-2)), HeadsState(h)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, heads={self.heads}"


def definition(layer: GLA, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """S[t] = Diag(α[t]) S[t − 1] + k[t] v[t]ᵀ, o[t] = S[t]ᵀ q[t]: the recurrence of the paper's section 4,
    in its layer. Here h is Sᵀ.
    """
    heads, config = layer.heads, layer.config
    q, k, v, z, r = affine(layer.in_proj, x).split(list(layer.sizes), -1)
    alpha = torch.sigmoid(affine(layer.gate_proj, r)) ** ((1.0 if dt is None else dt[..., None]) / config.tau)
    q, k, v, alpha = (w.unflatten(-1, (heads, -1)) for w in (q, k, v, alpha))
    y = rms(matrix_outputs(q / q.shape[-1] ** 0.5, k, v, alpha), config.norm_eps) * layer.norm_weight
    return affine(layer.out_proj, y.flatten(-2) * silu(z))
