"""Operators of torch, and of lrnnx, that are one line of Python whatever the shapes.

`{0}`, `{1}`, … stand for the operands. Integers use Python's operators alone: with a NumPy array, such as
full `lengths`, they are then computed while JAX traces.
"""

from typing import Any

LINES: dict[str, str] = {
    "add.Tensor": "{0} + {1}",
    "sub.Tensor": "{0} - {1}",
    "rsub.Scalar": "{1} - {0}",
    "mul.Tensor": "{0} * {1}",
    "div.Tensor": "{0} / {1}",
    "neg.default": "-{0}",
    "reciprocal.default": "1 / {0}",
    "square.default": "{0} ** 2",
    "pow.Tensor_Scalar": "{0} ** {1}",
    "pow.Tensor_Tensor": "{0} ** {1}",
    "pow.Scalar": "{0} ** {1}",
    "addcmul.default": "{0} + {1} * {2}",
    "lerp.Tensor": "{0} + {2} * ({1} - {0})",
    "remainder.Scalar": "{0} % {1}",
    "remainder.Tensor": "{0} % {1}",
    "floor_divide.default": "{0} // {1}",
    "logical_not.default": "~{0}",
    "bitwise_not.default": "~{0}",
    "abs.default": "jnp.abs({0})",
    "sign.default": "jnp.sign({0})",
    "exp.default": "jnp.exp({0})",
    "expm1.default": "jnp.expm1({0})",
    "log.default": "jnp.log({0})",
    "log1p.default": "jnp.log1p({0})",
    "sin.default": "jnp.sin({0})",
    "cos.default": "jnp.cos({0})",
    "tan.default": "jnp.tan({0})",
    "tanh.default": "jnp.tanh({0})",
    "atan2.default": "jnp.arctan2({0}, {1})",
    "sqrt.default": "jnp.sqrt({0})",
    "rsqrt.default": "1 / jnp.sqrt({0})",
    "sigmoid.default": "jax.nn.sigmoid({0})",
    "softplus.default": "jax.nn.softplus({0})",
    "log_sigmoid.default": "jax.nn.log_sigmoid({0})",
    "silu.default": "jax.nn.silu({0})",
    "relu.default": "jax.nn.relu({0})",
    "glu.default": "jax.nn.glu({0}, {1})",
    "softmax.int": "jax.nn.softmax({0}, {1})",
    "_softmax.default": "jax.nn.softmax({0}, {1})",
    "maximum.default": "jnp.maximum({0}, {1})",
    "minimum.default": "jnp.minimum({0}, {1})",
    "matmul.default": "{0} @ {1}",
    "bmm.default": "{0} @ {1}",
    "mm.default": "{0} @ {1}",
    "baddbmm.default": "{1} @ {2} + {0}",
    "addmm.default": "{1} @ {2} + {0}",
    "where.self": "where({0}, {1}, {2})",
    "where.ScalarOther": "where({0}, {1}, {2})",
    "where.ScalarSelf": "where({0}, {1}, {2})",
    "where.Scalar": "where({0}, {1}, {2})",
    "masked_fill.Scalar": "where({1}, {2}, {0})",
    "embedding.default": "{0}[{1}]",
    "detach.default": "jax.lax.stop_gradient({0})",
    "einsum.default": "jnp.einsum({0}, *{1})",
    "roll.default": "jnp.roll({0}, {1}, {2})",
    "flip.default": "jnp.flip({0}, {1})",
    "tril.default": "jnp.tril({0}, {1})",
    "cumsum.default": "jnp.cumsum({0}, {1})",
    "isfinite.default": "jnp.isfinite({0})",
    "eye.default": "jnp.eye({0})",
    "linalg_solve.default": "jnp.linalg.solve({0}, {1}[..., None])[..., 0]",
    "lrnnx.linear_scan.default": "linear_scan({0}, {1}, {2}, {3}, {4}, {5})",
    "lrnnx.matrix_scan.default": "matrix_scan({0}, {1}, {2}, {3}, {4}, {5}, {6}, {7}, {8})",
    "lrnnx.gru_states.default": "(gru_states({0}, {1}, {2}, {3}, {4}, {5}), None)",
    "lrnnx.convolve.default": "convolve({0}, {1})",
    "lrnnx.rfft.default": "rfft({0})",
    "lrnnx.irfft.default": "irfft({0}, {1})",
}
DEFAULTS: dict[str, tuple[Any, ...]] = {"glu.default": (None, -1), "tril.default": (None, 0)}
for _name in ("lt", "le", "gt", "ge", "eq", "ne"):
    _sign = {"lt": "<", "le": "<=", "gt": ">", "ge": ">=", "eq": "==", "ne": "!="}[_name]
    LINES |= {f"{_name}.{kind}": f"{{0}} {_sign} {{1}}" for kind in ("Scalar", "Tensor")}
for _name, _sign in (("and", "&"), ("or", "|"), ("xor", "^")):
    for _prefix in ("bitwise", "logical"):
        LINES |= {
            f"{_prefix}_{_name}.{kind}": f"{{0}} {_sign} {{1}}" for kind in ("Tensor", "Scalar", "default")
        }
LINES |= {"__and__.Tensor": "{0} & {1}", "__or__.Tensor": "{0} | {1}", "__rshift__.Tensor": "{0} >> {1}"}
