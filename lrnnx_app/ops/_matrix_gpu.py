"""`matrix_scan` in bfloat16 on a GPU: kernels in Triton, which comes with torch and needs no compiler.

States are summed in float32 and read in bfloat16. Nothing but the operands is kept for the backward pass.
Gradients of log decays are differences of sums: right to .7 % of their norm, where decays are e^-5 a step to
4 %. Where `fits` is false, torch code runs.
"""

import functools
import logging
import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lrnnx_app.ops import _matrix_delta, _matrix_kernels
from lrnnx_app.ops._matrix import chunked
from lrnnx_app.ops.linear_scan import leaf, recording

SIZE, SUB = 64, 16  # steps of a chunk, and of its parts where each channel has a decay
LEAST = {False: -30.0, True: -10.0}  # a step decays to e^LEAST at most, by whether each channel has a decay
SHARED = 160 << 10  # bytes of shared memory that the largest kernel needs

# Of keys and of values. With 16 and 32, Triton 3.6 made wrong kernels for an H200.
WIDTHS = (64, 128)

# Channels of keys and of values in a block, warps, stages, and registers of a thread (0: no limit).
Tiles = tuple[int, int, int, int, int]
TILES: dict[bool, dict[str, Tiles]] = {
    False: {
        "states": (64, 128, 8, 3, 0),
        "gradients of states": (64, 64, 8, 3, 0),
        "outputs": (64, 64, 4, 2, 0),
        "gradients of values": (64, 128, 8, 2, 0),
        "gradients": (64, 64, 4, 2, 0),
        "delta: solved": (64, 64, 4, 2, 0),
        "delta: states": (128, 64, 4, 2, 0),
        "delta: gradients of states": (128, 64, 8, 2, 0),
        "delta: gradients of what is solved": (64, 64, 4, 2, 0),
    },
    True: {
        "states": (64, 64, 4, 2, 0),
        "gradients of states": (64, 64, 4, 2, 0),
        "outputs": (32, 128, 8, 2, 0),
        "gradients of values": (32, 128, 8, 2, 0),
        "gradients": (32, 64, 8, 2, 0),
    },
}
FASTER: dict[bool, dict[str, Tiles]] = {  # compared for whole rows with 128 keys and values alone
    False: {"delta: solved": (64, 64, 2, 2, 0), "delta: gradients of what is solved": (64, 64, 4, 2, 168)},
    True: {
        "outputs": (32, 128, 4, 2, 0),
        "gradients of values": (32, 128, 4, 2, 0),
        "gradients": (32, 64, 4, 2, 0),
    },
}
ALLOWED = 0.05  # ‖result − torch code‖ / ‖torch code‖ of a kernel that is right: rounding gives up to .02

log = logging.getLogger("lrnnx")


def fits(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    h0: Tensor | None,
    erase: Tensor | None,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> bool:
    """Whether the kernels take these operands of `matrix_scan`, and are right."""
    wide, delta, n, width = log_decay.ndim == 4, beta is not None, q.shape[3], v.shape[3]
    takes = q.dtype == k.dtype == v.dtype == torch.bfloat16 and n in WIDTHS and width in WIDTHS
    if not takes or erase is not None or (delta and wide) or q.numel() == 0:
        return False
    return right(q.device, wide, delta, n, width, lengths is not None or reset is not None)


@functools.cache
def right(
    device: torch.device,
    wide: bool,
    delta: bool,
    n: int,
    width: int,
    masked: bool,
    dtype: torch.dtype = torch.bfloat16,
) -> bool:
    """Whether the kernels give what torch code gives, forward and backward, in a small case.

    Triton needs a C compiler, and releases of it have made wrong kernels without a word.
    """
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        if found.major < 8 or found.shared_memory_per_block_optin < SHARED:
            return False
    try:
        agrees = all(x < ALLOWED for x in _errors(device, wide, delta, n, width, masked, dtype))
    except torch.OutOfMemoryError:  # says nothing of the kernels
        raise
    except Exception as error:  # Triton and its compilers raise errors of every kind
        log.warning("matrix_scan runs on torch code, several times slower: Triton fails: %s", error)
        return False
    if not agrees:
        log.warning("matrix_scan runs on torch code, several times slower: Triton's kernels are wrong here")
    return agrees


def _errors(
    device: torch.device, wide: bool, delta: bool, n: int, width: int, masked: bool, dtype: torch.dtype
) -> list[float]:
    """Relative errors of results and gradients in a small case."""
    generator = torch.Generator(device).manual_seed(0)
    batch, time, heads = 2, 2 * SIZE + 8, 2

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, device=device)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device=device)

    shape = batch, time, heads, n
    drawn = (normal(*shape), F.normalize(normal(*shape), dim=-1), normal(batch, time, heads, width))
    given: list[Tensor | None] = [x.to(dtype) for x in drawn]
    given += [-uniform(*(shape if wide else shape[:-1])), uniform(*shape[:-1]) if delta else None]
    given += [normal(batch, heads, width, n), None]
    masks = (
        [torch.tensor([time - 9, time], device=device), uniform(batch, time) < 0.03] if masked else [None] * 2
    )
    found = forward(*given, *masks)
    along = [normal(*x.shape).to(x.dtype) for x in found]
    gradients = backward(*along, *given, *masks)
    with recording():
        leaves = [None if x is None else leaf(x.float()) for x in given]
        want = chunked(*leaves, *masks)  # type: ignore[arg-type]  (which are None are known)
        needed = [x for x in leaves if x is not None]
        want += torch.autograd.grad(want, needed, [x.float() for x in along])
    pairs = zip((*found, *(x for x in gradients if x.numel())), want, strict=True)
    return [float((x - y).norm() / y.norm()) for x, y in pairs]


class Call(NamedTuple):
    """Operands of a call as its kernels read them."""

    q: Tensor  # (B, T, H, K)
    k: Tensor
    v: Tensor  # (B, T, H, V)
    beta: Tensor | None
    h0: Tensor | None
    sums: Tensor  # of log2 decays inside chunks, (B, chunks · SIZE, H) or (B, chunks · SIZE, H, K)
    number: Tensor | None  # of the sequence in its chunk, (B, chunks · SIZE)
    lengths: Tensor | None
    log_decay: Tensor
    reset: Tensor | None

    @property
    def wide(self) -> bool:
        """Whether each channel has a decay."""
        return self.log_decay.ndim == 4

    @property
    def sizes(self) -> tuple[int, int, int, int, int]:
        """B, H, chunks, K, V."""
        batch, time, heads, n = self.k.shape
        return batch, heads, -(-time // SIZE), n, self.v.shape[3]

    def options(self, kernel: str, **more: Any) -> dict[str, Any]:
        """T, H and the constants of a kernel by its name in TILES."""
        _, time, heads, n = self.k.shape
        width = self.v.shape[3]
        whole = self.number is None and self.lengths is None and n == width == 128
        tiles = FASTER[self.wide].get(kernel) if whole else None
        keys, values, warps, stages, registers = tiles or TILES[self.wide][kernel]
        named = {"T": time, "H": heads, "K": n, "V": width, "C": SIZE, "num_warps": warps}
        named |= {"BK": min(keys, n), "BV": min(values, width), "num_stages": stages}
        return named | ({"maxnreg": registers} if registers else {}) | more


def prepared(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_decay: Tensor,
    beta: Tensor | None,
    h0: Tensor | None,
    _: None,
    lengths: Tensor | None,
    reset: Tensor | None,
) -> Call:
    """The operands, contiguous, with the sums of decays."""
    q, k, v, log_decay = (x.contiguous() for x in (q, k, v, log_decay))
    time = q.shape[1]
    if lengths is not None:
        lengths = lengths.clamp(0, time).int()
    number = None
    if reset is not None:
        reset = reset if lengths is None else reset & (torch.arange(time, device=q.device) < lengths[:, None])
        starts = F.pad(reset, (0, -time % SIZE)).unflatten(1, (-1, SIZE))
        number = starts.cumsum(2, dtype=torch.int32).flatten(1)
        reset = reset.to(torch.int8)
    sums = _sums(log_decay, lengths)
    beta, h0 = (None if x is None else x.contiguous() for x in (beta, h0))
    return Call(q, k, v, beta, h0, sums, number, lengths, log_decay, reset)


def _sums(log_decay: Tensor, lengths: Tensor | None) -> Tensor:
    """Sums of log2 decays (B, T, …) inside chunks, (B, chunks · SIZE, …) float32."""
    batch, time, *channels = log_decay.shape
    chunks, count = -(-time // SIZE), math.prod(channels)
    sums = log_decay.new_empty(batch, chunks * SIZE, *channels, dtype=torch.float32)
    block = min(64, 1 << (count - 1).bit_length())
    _matrix_kernels.sums[chunks, -(-count // block), batch](
        *(log_decay, sums, lengths, None, time, count),
        **{"C": SIZE, "BD": block, "REVERSE": False, "LEAST": LEAST[log_decay.ndim == 4]},
    )
    return sums


def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    """Results of `matrix_scan` from its arguments by position."""
    call = prepared(*arguments)
    if call.beta is None:
        states, last = _states(call, call.k, call.v, call.h0)
        return _outputs(call, call.v, states), last
    _, w, u = _solved(call)
    states, written, last = _delta_states(call, w, u, call.h0)
    return _outputs(call, written, states), last


def backward(grad: Tensor, grad_last: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """Gradients of the arguments of `matrix_scan` that have one; empty where one is None."""
    call = prepared(*arguments)
    grad, grad_last = grad.to(call.v.dtype).contiguous(), grad_last.float().contiguous()
    none = grad.new_empty(0)
    if call.beta is None:
        states, _ = _states(call, call.k, call.v, call.h0)
        after, dh0 = _states(call, call.q, grad, grad_last, back=True)
        dv = _outputs(call, grad, after, back=True)
        dq, dk, of_sums, _ = _gradients(call, call.v, grad, states, after)
        dbeta = none
    else:
        inverse, w, u = _solved(call)
        states, written, _ = _delta_states(call, w, u, call.h0)
        after, dw, dh0 = _delta_states(call, w, _outputs(call, grad, None, back=True), grad_last, grad)
        dq, dk, of_sums, of_keys = _gradients(call, written, grad, states, after, dw)
        dv, dbeta = _solved_gradients(call, inverse, written, of_keys, dw, dk, of_sums)
    dh0 = none if call.h0 is None else dh0.to(call.h0.dtype)
    return dq, dk, dv, _of_decays(call, of_sums), dbeta, dh0, none


def _states(
    call: Call, k: Tensor, v: Tensor, first: Tensor | None, back: bool = False
) -> tuple[Tensor, Tensor]:
    batch, heads, _, n, width = call.sizes
    states, last = _kept(call), call.sums.new_empty(batch, heads, width, n)
    name = "gradients of states" if back else "states"
    options = call.options(name, WIDE=call.wide, REVERSE=back)
    _matrix_kernels.states[n // options["BK"], width // options["BV"], batch * heads](
        k, v, call.sums, call.number, call.lengths, first, states, last, **options
    )
    return states, last


def _kept(call: Call) -> Tensor:
    batch, heads, chunks, n, width = call.sizes
    return call.k.new_empty(batch, heads, chunks, n, width)


def _outputs(call: Call, v: Tensor, states: Tensor | None, back: bool = False) -> Tensor:
    batch, heads, chunks, _, width = call.sizes
    y = torch.empty_like(v)
    name = "gradients of values" if back else "outputs"
    options = call.options(name, WIDE=call.wide, SUB=SUB, BACK=back)
    _matrix_kernels.outputs[width // options["BV"], chunks, batch * heads](
        call.q, call.k, v, call.sums, call.number, call.lengths, states, y, **options
    )
    return y


def _gradients(
    call: Call, v: Tensor, grad: Tensor, states: Tensor, after: Tensor, dw: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    """dq, dk, and the gradient of the sums of decays in parts; for the delta rule also that of `w`."""
    batch, heads, chunks, n, _ = call.sizes
    options = call.options("gradients", WIDE=call.wide, SUB=SUB)
    parts = n // options["BK"]
    dq, dk = torch.empty_like(call.q), torch.empty_like(call.k)
    of_keys = None if dw is None else torch.empty_like(call.k)
    of_sums = call.sums.new_empty(1 if call.wide else parts + (dw is not None), *call.sums.shape)
    _matrix_kernels.gradients[parts, chunks, batch * heads](
        *(call.q, call.k, v, call.sums, call.number, call.lengths, grad, states, after, dw, of_keys),
        *(dq, dk, of_sums),
        **options,
    )
    return dq, dk, of_sums, of_keys


def _of_decays(call: Call, of_sums: Tensor) -> Tensor:
    """The gradient of log decays from that of their sums, (parts, B, chunks · SIZE, …)."""
    of_sums = of_sums[0] if len(of_sums) == 1 else of_sums.sum(0)
    batch, time, *channels = call.log_decay.shape
    count, found = math.prod(channels), torch.empty_like(call.log_decay)
    block = min(64, 1 << (count - 1).bit_length())
    _matrix_kernels.sums[call.sizes[2], -(-count // block), batch](
        *(of_sums, found, call.lengths, call.reset, time, count),
        **{"C": SIZE, "BD": block, "REVERSE": True, "LEAST": 0.0},
    )
    return found


def _solved(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """(I + A)⁻¹ (B, T, H, SIZE), w and u: see `_matrix_delta`."""
    batch, heads, chunks, *_ = call.sizes
    inverse = call.k.new_empty(*call.k.shape[:3], SIZE)
    w, u = torch.empty_like(call.k), torch.empty_like(call.v)
    _matrix_delta.prepare[chunks, batch * heads](
        *(call.k, call.v, call.sums, call.beta, call.number, call.lengths, inverse, w, u),
        **call.options("delta: solved"),
    )
    return inverse, w, u


def _delta_states(
    call: Call, w: Tensor, u: Tensor, first: Tensor | None, grad: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """States before chunks, what is written, and the last state; given `grad`, the gradients of these."""
    batch, heads, _, n, width = call.sizes
    states, last = _kept(call), call.sums.new_empty(batch, heads, width, n)
    written = torch.empty_like(u)
    name = "states" if grad is None else "gradients of states"
    options = call.options(f"delta: {name}", REVERSE=grad is not None)
    del options["BK"]
    _matrix_delta.delta_states[width // options["BV"], batch * heads](
        *(call.q, call.k, w, u, grad, call.sums, call.number, call.lengths, first, states, written, last),
        **options,
    )
    return states, written, last


def _solved_gradients(
    call: Call, inverse: Tensor, written: Tensor, of_keys: Any, dw: Tensor, dk: Tensor, of_sums: Tensor
) -> tuple[Tensor, Tensor]:
    """dv and dbeta; adds to dk, and writes the last part of `of_sums`."""
    assert call.beta is not None
    batch, heads, chunks, *_ = call.sizes
    dv, dbeta = torch.empty_like(call.v), torch.empty_like(call.beta)
    _matrix_delta.prepared_gradients[chunks, batch * heads](
        *(call.k, call.v, call.sums, call.beta, call.number, call.lengths, inverse, written, of_keys, dw),
        *(dk, dv, of_sums[-1], dbeta),
        **call.options("delta: gradients of what is solved"),
    )
    return dv, dbeta
