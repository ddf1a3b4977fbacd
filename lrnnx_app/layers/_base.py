"""The contract of a layer, and `forward`/`step` of every diagonal one derived from two functions.

A layer maps (B, T, d_model) to (B, T, d_model) and carries a state, a NamedTuple of tensors with batch
first. Running a sequence in one go, in chunks, or step by step gives the same output and state.
"""

import math
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from lrnnx_app.layers._coefficients import Coefficients
from lrnnx_app.layers._taken import of_any
from lrnnx_app.layers._taps import TappedState
from lrnnx_app.ops import planar
from lrnnx_app.ops._blocked import cast
from lrnnx_app.ops.linear_scan import state_dtype
from lrnnx_app.ops.row_linear import row_linear
from lrnnx_app.ops.rules import names
from lrnnx_app.spec import Rows, unpadded


class Layer(nn.Module):
    """A causal sequence layer `LAYERS[name](d_model, Config(…))`.

    A subclass has a nested dataclass `Config` and names in `recurrent` its parameters that shape the
    recurrence (dotted where a submodule holds them, left out where an option removes them): they get a
    learning rate of their own and no weight decay. `rule` is the discretization, None where the class has a
    formula of its own; `taps` is how many taps of the input one that is chosen by an option `rule` may have,
    and 0 where there is no choice. A layer to which elapsed time means nothing sets `uses_dt` to False.
    One whose `run` loops over steps in Python sets `loops`: it is exported for a fixed number of them.
    `paper`, `varying` (the recurrence depends on the input) and `cost` (the order of multiplications per
    step) are for the table of `lrnnx layers`.
    """

    recurrent: ClassVar[tuple[str, ...]] = ()
    uses_dt: bool = True
    paper: ClassVar[str] = ""
    varying: ClassVar[bool] = False
    cost: ClassVar[str] = ""
    examples: ClassVar[tuple[Mapping[str, Any], ...]] = ({},)
    causal: bool = True
    rule: Any = None  # a Rule
    taps: ClassVar[int] = 0
    loops: ClassVar[bool] = False
    kept: dict[Any, Any] | None = None  # in a copy made by `frozen`: its constants, see `_constants`

    def __init_subclass__(cls, **options: Any) -> None:
        """Every `step` takes any dtypes and a batch of none, as `forward` does: see `_taken`."""
        super().__init_subclass__(**options)
        if "step" in vars(cls):
            cls.step = of_any(cls.step)

    def __init__(self, d_model: int) -> None:
        super().__init__()
        self.d_model = d_model

    def init_state(self, batch: int) -> Any:
        """The state before the first step: a NamedTuple of (batch, …) tensors, float32 or wider."""
        raise NotImplementedError

    @of_any
    def forward(
        self,
        x: Tensor,
        state: Any = None,
        *,
        dt: Tensor | None = None,
        lengths: Tensor | None = None,
        reset: Tensor | None = None,
    ) -> tuple[Tensor, Any]:
        """Run a sequence.

        Args:
            x: input (B, T, d_model), T ≥ 1.
            state: state before x; `init_state` if None. Differentiable in and out.
            dt: (B, T) time since the previous sample, None when evenly sampled.
            lengths: (B,) valid steps of right-padded rows, as of `linear_scan`; later steps hold the state.
            reset: (B, T) true where a packed sequence starts.

        Returns:
            y (B, T, d_model), and the state after each row's last valid step.

        Raises:
            ValueError: the state is of another batch than x, or a length is not from 0 to T.
        """
        self.check_dt(dt)
        rows = Rows(dt, lengths, reset)
        if lengths is not None:
            x, rows = rows.unpadded(x), rows._replace(dt=unpadded(dt, lengths, 1.0))
        return self.run(x, state, rows)

    def run(self, x: Tensor, state: Any, rows: Rows) -> tuple[Tensor, Any]:
        """`forward`, supplied by a subclass. Padding in x is zero here, and padding in rows.dt is one."""
        raise NotImplementedError

    @of_any
    def step(self, x: Tensor, state: Any, dt: Tensor | None = None) -> tuple[Tensor, Any]:
        """One step: x (B, d_model), dt (B,) or None; returns y (B, d_model) and the next state."""
        y, state = self.forward(x[:, None], state, dt=None if dt is None else dt[:, None])
        return y[:, 0], state

    def recurrent_parameters(self) -> Iterator[nn.Parameter]:
        """The parameters named in `recurrent`."""
        return (p for name, p in self.named_parameters() if name in self.recurrent)

    def _zeros(self, *shape: int) -> Tensor:
        """Zeros in the precision of a state, on the layer's device."""
        like = next(self.parameters())
        return like.new_zeros(shape, dtype=state_dtype(like.dtype))

    def check_dt(self, dt: Tensor | None) -> None:
        """Refuse elapsed time that would be ignored.

        Raises:
            ValueError: dt is given and the layer has no use for it.
        """
        if dt is not None and not self.uses_dt:
            raise ValueError(f"{type(self).__name__} has no notion of elapsed time: leave out dt")

    def extra_repr(self) -> str:
        """The rule, the number of states, and the floats that one stream carries between calls."""
        kept = f"states={self.n_states}, state_size={self.state_size}"
        return f"d_model={self.d_model}, rule={self.rule_name}, {kept}"

    @classmethod
    def rules(cls) -> tuple[str, ...]:
        """The names that an option `rule` may have; none where there is no choice."""
        return names(cls.taps)

    @property
    def two_taps(self) -> bool:
        """Whether the rule reads the input of the step before as well."""
        return self.rule is not None and self.rule.taps > 1

    @property
    def rule_name(self) -> str:
        """The name of the rule, or `none`."""
        return self.rule.name if self.rule else "none"

    @property
    def n_states(self) -> str:
        """The number and the kind of the states, such as `64 complex`."""
        return f"{self.state_size} real"

    @property
    def state_size(self) -> int:
        """Floats in the state of one stream."""
        return sum(tensor[0].numel() for tensor in self.init_state(1))


class DiagonalState(NamedTuple):
    """h: (B, N), or planar complex (B, 2, N)."""

    h: Tensor


Carried = DiagonalState | TappedState


class DiagonalLayer(Layer):
    """A layer around h[t] = a[t]·h[t−1] + b[t].

    A subclass sets `state_shape`, (N,) or (2, N), and supplies `coefficients` and `readout`. Both act on each
    step alone, so `run` and `step` follow from them here. The coefficients say how a state moves: see
    `_coefficients.Coefficients`, of which a layer may bring a kind of its own.
    """

    state_shape: tuple[int, ...]

    def coefficients(self, x: Tensor, dt: Tensor | None) -> tuple[Coefficients, Tensor]:
        """Coefficients of the recurrence, and its driving input b (B, T, *state_shape).

        Args:
            x: (B, T, d_model).
            dt: elapsed time (B, T), or None.
        """
        raise NotImplementedError

    def readout(self, h: Tensor, x: Tensor) -> Tensor:
        """Output (B, T, d_model) from the states (B, T, *state_shape) and the input."""
        raise NotImplementedError

    @property
    def carried_shapes(self) -> list[tuple[int, ...]]:
        """Shapes of the tensors of a state, without the batch."""
        return [self.state_shape, *([self.drive_shape] if self.two_taps else [])]

    @property
    def drive_shape(self) -> tuple[int, ...]:
        """Shape of one step of the driving input b, without the batch."""
        return self.state_shape

    def init_state(self, batch: int) -> Carried:
        return carried(*(self._zeros(batch, *shape) for shape in self.carried_shapes))

    def run(self, x: Tensor, state: Carried | None, rows: Rows) -> tuple[Tensor, Carried]:
        x = autocast(x)
        a, b = self.coefficients(x, rows.dt)
        h, *after = a.scan(b, *(state or (None,)), lengths=rows.lengths, reset=rows.reset)
        return self.readout(h, x), carried(*after)

    def step(self, x: Tensor, state: Carried, dt: Tensor | None = None) -> tuple[Tensor, Carried]:
        self.check_dt(dt)
        if not self.causal:
            self.init_state(1)  # refuses: there is none
        x = autocast(x.unsqueeze(1))
        a, b = self.coefficients(x, None if dt is None else dt[:, None])
        h, *after = a.step(b.squeeze(1), *state)
        return self.readout(cast(h, x.dtype).unsqueeze(1), x).squeeze(1), carried(*after)

    @property
    def n_states(self) -> str:
        return f"{self.state_shape[-1]} {'complex' if len(self.state_shape) == 2 else 'real'}"

    @property
    def state_size(self) -> int:
        return sum(map(math.prod, self.carried_shapes))


def carried(h: Tensor, *before: Tensor) -> Carried:
    """The state of a layer, from what its coefficients return of it."""
    return TappedState(h, *before) if before else DiagonalState(h)


def wide(*parameters: Tensor) -> Iterator[Tensor]:
    """The parameters in the precision of a state, in which all that a recurrence raises to powers is made."""
    return (cast(p, state_dtype(p.dtype)) for p in parameters)


def drive(x: Tensor, weight: Tensor, gain: Tensor | None = None) -> Tensor:
    """gain∘(weight x) as one real matmul; gain None is 1.

    Args:
        x: (B, T, H), real.
        weight: (2, N, H), planar.
        gain: (2, N), which goes into the matrix, or (B, T, 2, N); planar.

    Returns:
        (B, T, 2, N), planar.
    """
    if gain is not None and gain.ndim == 2:
        weight, gain = scaled(weight, gain), None
    b = torch.unflatten(
        row_linear(x, cast(weight.flatten(0, 1), x.dtype), checked=False), -1, weight.shape[:2]
    )
    return b if gain is None else planar.mul(gain, b)


def scaled(weight: Tensor, gain: Tensor) -> Tensor:
    """The rows of weight (2, N, H) times gain (2, N), both planar."""
    return planar.mul(gain, weight.movedim(-1, 0)).movedim(0, -1).contiguous()


def readout_matrix(weight: Tensor) -> Tensor:
    """The real (H, 2N) that takes the planes of h to Re(weight h); weight (2, H, N) planar."""
    return torch.cat((weight[0], -weight[1]), -1)


def real_readout(h: Tensor, matrix: Tensor, skip: Tensor, x: Tensor) -> Tensor:
    """Re(weight h) + skip∘x as one real matmul, in the dtype of x.

    Args:
        h: states (B, T, 2, N), planar.
        matrix: (H, 2N), of `readout_matrix`.
        skip: (H,).
        x: (B, T, H).

    Returns:
        (B, T, H).
    """
    return row_linear(h.flatten(-2), matrix, skip=skip, via=x, checked=False)


def autocast(x: Tensor) -> Tensor:
    """x as autocast will read it, converted once instead of by every matmul; float64 stays as it is."""
    kind = x.device.type
    if x.dtype != torch.float32 or not torch.is_autocast_enabled(kind):
        return x
    return x.to(torch.get_autocast_dtype(kind))
