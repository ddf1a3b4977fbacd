"""A diagonal GRU, non-linear in its state, trained in parallel by Newton iterations of the linear scan.

DEER (Lim et al. 2023, arXiv 2309.12252); with a diagonal cell its Jacobian is diagonal, as quasi-DEER
(Gonzalez et al. 2024, arXiv 2407.19115) assumes for any cell.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from lrnnx_app.layers._base import DiagonalState, Layer
from lrnnx_app.layers._definition import affine
from lrnnx_app.layers._linear import Linear
from lrnnx_app.ops._blocked import cast, state_dtype
from lrnnx_app.ops.gru_scan import gru_cell, gru_scan
from lrnnx_app.spec import Rows


class GRU(Layer):
    """z, r = σ(W x + u∘h); c = tanh(W x + r∘u∘h); h = (1 − z)∘h + z∘c; y = W_out h.

    Gates depend on the input and on the state's own channel. Data time δ makes 1 − z its power (1 − z)^δ.
    After a forward, `iterations` (int64 scalar) says how many scans or single steps the last sequence took.
    """

    recurrent = ("u",)
    paper = "Lim et al. 2023, arXiv 2309.12252"
    varying = True
    cost = "N·D"
    examples = ({"d_state": 4},)

    @dataclass
    class Config:
        d_state: int = 128  # states N
        tolerance: float | None = None  # of a state, to end on; None: ¾ of the digits of its precision
        max_iterations: int = 50  # after these one step at a time, right but slow

    def __init__(self, d_model: int, config: Config) -> None:
        super().__init__(d_model)
        self.config = config
        n = config.d_state
        self.in_proj = Linear(d_model, 3 * n)
        self.u = nn.Parameter(torch.empty(3, n).uniform_(-1, 1) / math.sqrt(2))
        self.out_proj = Linear(n, d_model)
        self.iterations = torch.tensor(0)

    def init_state(self, batch: int) -> DiagonalState:
        return DiagonalState(self._zeros(batch, self.config.d_state))

    def run(self, x: Tensor, state: DiagonalState | None, rows: Rows) -> tuple[Tensor, DiagonalState]:
        h0 = (self.init_state(x.shape[0]) if state is None else state).h
        tolerance = self.config.tolerance or torch.finfo(h0.dtype).eps ** 0.75
        options = {"tolerance": tolerance, "max_iterations": self.config.max_iterations, **rows._asdict()}
        h, last, iterations = gru_scan(self._inputs(x), cast(self.u, h0.dtype), h0, **options)
        if not torch.compiler.is_exporting():
            self.iterations = iterations
        return self.out_proj(cast(h, x.dtype)), DiagonalState(last)

    def step(self, x: Tensor, state: DiagonalState, dt: Tensor | None = None) -> tuple[Tensor, DiagonalState]:
        h = gru_cell(state.h, self._inputs(x), cast(self.u, state.h.dtype), dt)
        return self.out_proj(cast(h, x.dtype)), DiagonalState(h)

    def _inputs(self, x: Tensor) -> Tensor:
        """W x + b for z, r and c: (…, 3, N)."""
        projected = self.in_proj(x).unflatten(-1, (3, -1))
        return cast(projected, state_dtype(projected.dtype))


def definition(layer: GRU, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """h[t] = (1 − z)∘h[t − 1] + z∘c, one step after another: the usual GRU with diagonal recurrent matrices.

    Elapsed time makes 1 − z its power (1 − z)^δ.
    """
    of_z, of_r, of_c = affine(layer.in_proj, x).chunk(3, -1)
    h, states = torch.zeros_like(of_z[:, 0]), []
    for t in range(x.shape[1]):
        z = torch.sigmoid(of_z[:, t] + layer.u[0] * h)
        r = torch.sigmoid(of_r[:, t] + layer.u[1] * h)
        c = torch.tanh(of_c[:, t] + r * layer.u[2] * h)
        keep = (1 - z) ** (1.0 if dt is None else dt[:, t, None])
        h = keep * h + (1 - keep) * c
        states.append(h)
    return affine(layer.out_proj, torch.stack(states, 1))
