"""What each operator of an exported graph is in JAX: a line, or where it depends on shapes a function."""

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import fx

from lrnnx_app.export._lines import DEFAULTS, LINES

END = 2**62  # a slice that ends beyond it has no end

Text = Callable[[Any], str]
RULES: dict[str, Callable[[Text, fx.Node, Sequence[Any]], str]] = {}
SAME = "alias clone contiguous lift_fresh_copy lift_fresh _unsafe_view view reshape unflatten flatten"
"""Operators that keep the elements in their order: nothing but a shape may change."""


def rule(*names: str) -> Callable[[Any], Any]:
    def add(make: Any) -> Any:
        for name in names:
            RULES[name] = make
        return make

    return add


def shape(node: fx.Node) -> tuple[Any, ...]:
    return tuple(node.meta["val"].shape)


def index(rank: int, dim: int, inner: str) -> str:
    """The brackets that index one axis of an array."""
    dim %= rank
    if dim == rank - 1 and rank > 2:
        return f"[..., {inner}]"
    return f"[{', '.join([':'] * dim + [inner])}]"


def bounds(text: Text, start: Any, stop: Any) -> str:
    begin = "" if start in (None, 0) else text(start)
    return f"{begin}:{'' if stop is None or (isinstance(stop, int) and stop > END) else text(stop)}"


def dtype(kind: torch.dtype) -> str:
    if kind is torch.bool:
        return "bool"
    if not kind.is_floating_point:
        return "int"
    return "float" if kind is torch.float64 else f"jnp.{str(kind).removeprefix('torch.')}"


@rule(*(f"{name}.default" for name in SAME.split()), "unflatten.int", "flatten.using_ints")
def _reshape(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    sizes = shape(node)
    if same(sizes, shape(args[0])):
        return text(args[0])
    return f"{text(args[0])}.reshape({', '.join(map(text, sizes)) or '()'})"


@rule("expand.default", "broadcast_to.default", "expand_as.default")
def _expand(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    if same(shape(node), shape(args[0])):
        return text(args[0])
    return f"jnp.broadcast_to({text(args[0])}, {text(shape(node))})"


def same(one: Sequence[Any], other: Sequence[Any]) -> bool:
    return len(one) == len(other) and all(str(n) == str(m) for n, m in zip(one, other, strict=True))


@rule("unsqueeze.default")
def _unsqueeze(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    return text(args[0]) + index(len(shape(node)), args[1], "None")


@rule("squeeze.dim", "squeeze.dims")
def _squeeze(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    dims = args[1] if isinstance(args[1], (list, tuple)) else [args[1]]
    x, sizes = args[0], shape(args[0])
    if named(x.target) == "unsqueeze.default" and [x.args[1] % len(sizes)] == [d % len(sizes) for d in dims]:
        return text(x.args[0])
    dims = [d % len(sizes) for d in dims if str(sizes[d]) == "1"]
    return f"{text(args[0])}.squeeze({text(tuple(dims))})" if dims else text(args[0])


@rule("select.int")
def _select(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    return text(args[0]) + index(len(shape(args[0])), args[1], text(args[2]))


@rule("slice.Tensor")
def _slice(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    x, dim, start, stop, step = [*args, *(None, 0, None, None, 1)[len(args) :]]
    if same(shape(node), shape(x)):
        return text(x)
    every = "" if step == 1 else f":{text(step)}"
    return text(x) + index(len(shape(x)), dim, bounds(text, start, stop) + every)


@rule("permute.default")
def _permute(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    rank = len(args[1])
    return f"{text(args[0])}.transpose({', '.join(str(d % rank) for d in args[1])})"


@rule("transpose.int")
def _transpose(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    return f"{text(args[0])}.swapaxes({args[1]}, {args[2]})"


@rule("numpy_T.default", "t.default")
def _t(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    return f"{text(args[0])}.T"


@rule("mT.default", "matrix_H.default")
def _mt(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    return f"{text(args[0])}.swapaxes(-2, -1)"


@rule("movedim.int", "movedim.intlist", "moveaxis.int")
def _movedim(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    return f"jnp.moveaxis({text(args[0])}, {text(args[1])}, {text(args[2])})"


@rule("stack.default")
def _stack(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    return f"jnp.stack({text(tuple(args[0]))}, {args[1] if len(args) > 1 else 0})"


@rule("cat.default")
def _cat(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    if len(args[0]) == 1:
        return text(args[0][0])
    return f"jnp.concatenate({text(tuple(args[0]))}, {args[1] if len(args) > 1 else 0})"


@rule("linear.default")
def _linear(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    product = f"{text(args[0])} @ {text(args[1])}.T"
    return f"{product} + {text(args[2])}" if len(args) > 2 and args[2] is not None else product


@rule("layer_norm.default", "rms_norm.default")
def _norm(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    name = str(node.target).split(".")[1]
    x, sizes, weight, *rest = [*args, *(None,) * (5 - len(args))]
    assert len(sizes) == 1
    if name == "rms_norm":
        eps = torch.finfo(torch.float32).eps if rest[0] is None else rest[0]
        return f"rms_norm({text(x)}, {text(weight)}, {text(eps)})"
    bias, eps = rest[:2]
    return f"layer_norm({', '.join(map(text, (x, weight, bias, 1e-5 if eps is None else eps)))})"


@rule("gelu.default")
def _gelu(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    return f"jax.nn.gelu({text(args[0])}, approximate={node.kwargs.get('approximate') == 'tanh'})"


@rule("clamp.default", "clamp_min.default", "clamp_max.default", "clamp.Tensor", "clamp_min.Tensor")
def _clamp(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    x, low, high = [*args, *(None,) * (3 - len(args))]
    low, high = node.kwargs.get("min", low), node.kwargs.get("max", high)
    if "max" in str(node.target):
        low, high = None, low
    return f"{text(x)}.clip({text(low)}, {text(high)})"


@rule("sum.dim_IntList", "mean.dim", "amax.default", "amin.default", "all.dim", "any.dim", "sum.default")
def _reduce(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    name = {"amax": "max", "amin": "min"}.get(word := str(node.target).split(".")[1], word)
    x, dims, keep = [*args, *(None, None, False)[len(args) :]]
    dims = dims[0] if isinstance(dims, (list, tuple)) and len(dims) == 1 else dims
    axes = "" if dims is None else text(tuple(dims) if isinstance(dims, list) else dims)
    return f"{text(x)}.{name}({axes}{', keepdims=True' if keep else ''})"


@rule("to.dtype", "_to_copy.default", "to.dtype_layout")
def _to(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    kind = node.meta["val"].dtype
    if kind is args[0].meta["val"].dtype:
        return text(args[0])
    return f"{text(args[0])}.astype({dtype(kind)})"


@rule("arange.default", "arange.start", "arange.start_step")
def _arange(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    args = args[1:] if len(args) == 2 and args[0] == 0 else args
    given, kind = ", ".join(map(text, args)), node.meta["val"].dtype
    return (
        f"np.arange({given}, dtype=np.{str(kind)[6:]})" if kind.is_floating_point else f"np.arange({given})"
    )


@rule(
    "full.default",
    "zeros.default",
    "ones.default",
    "new_full.default",
    "new_zeros.default",
    "new_ones.default",
    "full_like.default",
    "zeros_like.default",
    "ones_like.default",
    "scalar_tensor.default",
)
def _full(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    name, kind = str(node.target).split(".")[1], node.meta["val"].dtype
    value = 1 if "ones" in name else 0 if "zeros" in name else args[-1]
    if name == "scalar_tensor":
        value = args[0]
    if not shape(node):
        return text(value)
    sizes = text(shape(node))
    if not kind.is_floating_point:
        return f"np.full({sizes}, {text(value)})"
    if isinstance(value, (int, float)) and value in (0, 1):
        return f"jnp.{'ones' if value else 'zeros'}({sizes})"
    return f"jnp.full({sizes}, {text(value)}, {dtype(kind)})"


@rule("pad.default", "constant_pad_nd.default")
def _pad(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    x, sizes = args[:2]
    value = args[-1] if len(args) > 2 and not isinstance(args[-1], str) else node.kwargs.get("value")
    rank = len(shape(x))
    pairs = [(0, 0)] * (rank - len(sizes) // 2) + [
        (sizes[i], sizes[i + 1]) for i in range(len(sizes) - 2, -1, -2)
    ]
    if any(isinstance(n, int) and n < 0 for pair in pairs for n in pair):
        raise KeyError("pad.default with negative sizes")
    if all(text(n) == "0" for pair in pairs for n in pair):
        return text(x)
    given = f", constant_values={text(value)}" if value else ""
    return f"jnp.pad({text(x)}, {text(tuple(pairs))}{given})"


@rule("gather.default")
def _gather(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    return f"jnp.take_along_axis({text(args[0])}, {text(args[2])}, {args[1]})"


@rule("index_select.default")
def _index_select(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    return f"jnp.take({text(args[0])}, {text(args[2])}, {args[1]})"


@rule("index.Tensor")
def _index(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    places = [":" if place is None else text(place) for place in args[1]]
    if args[1][0] is None and all(place is None for place in args[1][:-1]):
        places = ["...", places[-1]] if len(places) == len(shape(args[0])) else places
    return f"{text(args[0])}[{', '.join(places)}]"


@rule("repeat_interleave.self_int")
def _repeat(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    return (
        f"{text(args[0])}.repeat({text(args[1])}, {args[2] if len(args) > 2 else node.kwargs.get('dim', 0)})"
    )


@rule("repeat.default")
def _tile(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    return f"jnp.tile({text(args[0])}, {text(tuple(args[1]))})"


@rule("cummax.default", "cummin.default")
def _cumulative(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    name = str(node.target).split(".")[1]
    return f"(jax.lax.{name}({text(args[0])}, {args[1] % len(shape(args[0]))}), None)"


@rule("scaled_dot_product_attention.default")
def _attention(text: Text, node: fx.Node, args: Sequence[Any]) -> str:
    q, k, v, mask = [*args, *(None,) * (4 - len(args))][:4]
    return f"attention({text(q)}, {text(k)}, {text(v)}, {text(node.kwargs.get('attn_mask', mask))})"


def pieces(node: fx.Node) -> list[tuple[Any, Any]] | None:
    """Where the parts of a split begin and end along its axis; None if the node is no split."""
    name = str(node.target).removeprefix("aten.")
    if name not in ("split.Tensor", "split_with_sizes.default", "split.sizes", "unbind.int", "chunk.default"):
        return None
    starts, total = [], 0
    for part in node.meta["val"]:
        dim = split_axis(node)
        size = 1 if name == "unbind.int" else part.shape[dim]
        starts.append((total, total + size))
        total = total + size
    return starts


def split_axis(node: fx.Node) -> int:
    name = str(node.target).removeprefix("aten.")
    at = 1 if name == "unbind.int" else 2
    axis = node.args[at] if len(node.args) > at else node.kwargs.get("dim", 0)
    assert isinstance(axis, int)
    return axis


def part(text: Text, node: fx.Node, k: int) -> str:
    """Part k of a split."""
    x: Any = node.args[0]
    spans = pieces(node)
    assert spans is not None
    rank, axis = len(shape(x)), split_axis(node)
    if str(node.target).removeprefix("aten.") == "unbind.int":
        return text(x) + index(rank, axis, str(k))
    start, stop = spans[k]
    return text(x) + index(rank, axis, bounds(text, start, None if k == len(spans) - 1 else stop))


def line(name: str, text: Text, node: fx.Node) -> str:
    """The line of an operator of `LINES` for its operands."""
    args: list[Any] = [*node.args, *DEFAULTS.get(name, ())[len(node.args) :]]
    if (name, args[1:]) in (
        ("sub.Tensor", [0]),
        ("add.Tensor", [0]),
        ("mul.Tensor", [1]),
        ("mul.Tensor", [1.0]),
    ):
        return text(args[0])
    line = LINES[name]
    factor: Any = node.kwargs.get("alpha", node.kwargs.get("value", 1))
    if name.startswith("lrnnx"):
        while args[-1] is None or args[-1] is False:
            args.pop()
        line = re.sub(r", \{(\d+)\}", lambda found: found[0] if int(found[1]) < len(args) else "", line)
    if factor != 1:
        last = max(re.findall(r"\{\d+\}", line))
        line = line.replace(last, f"{number(factor)} * {last}")
    return line.format(*map(text, args))


def known(target: Any) -> bool:
    """Whether there is a line for an operator."""
    name = named(target)
    return name in LINES or name in RULES or name in PARTS


PARTS = ("split.Tensor", "split_with_sizes.default", "split.sizes", "unbind.int", "chunk.default")


def named(target: Any) -> str:
    return str(target).removeprefix("aten.")


def number(value: float) -> str:
    """A number as Python writes it."""
    if isinstance(value, float) and not math.isfinite(value):
        return "jnp.nan" if math.isnan(value) else "-jnp.inf" if value < 0 else "jnp.inf"
    return repr(value)
