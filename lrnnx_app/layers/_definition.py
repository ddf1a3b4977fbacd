"""What definitions of layers are written with, and how a layer is compared with its definition.

A layer file ends with `definition(layer, x, dt=None)`: the paper's equations as a loop over time, in float64
and complex128. It reads the layer's parameters and options and uses none of its methods or ops, so that an
error in those cannot be in both; a rule of discretization is taken from `ops.rules`, where it is defined.
"""

import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lrnnx_app.registry import RULES

Definition = Callable[..., Tensor]

MISSING = """{file} has no definition of {name}. Add the paper's own loop after the class:

    def definition(layer: {name}, x: Tensor, dt: Tensor | None = None) -> Tensor:
        \"\"\"Output (B, T, d_model) by equation … of the paper, from parameters alone, step by step.\"\"\"

in float64 and complex128, with none of the layer's methods and no op of lrnnx_app.ops."""


def definition_of(entry: type[nn.Module]) -> Definition:
    """The function `definition` that stands beside a layer's class.

    Raises:
        NotImplementedError: there is none; the message says what to write.
    """
    module = sys.modules[entry.__module__]
    own = vars(module).get("definition")
    if own is None or own.__module__ != entry.__module__:
        raise NotImplementedError(MISSING.format(file=module.__file__, name=entry.__name__))
    return own


def differences(layer: Any, definition: Definition, x: Tensor, dt: Tensor | None = None) -> dict[str, float]:
    """Relative differences between a layer in float64 and a definition.

    Args:
        layer: returns (y, state); its parameters are in float64.
        definition: called as definition(x, dt).
        x: (B, T, d_model) in float64.
        dt: (B, T) in float64, or None.

    Returns:
        ‖found − defined‖ / ‖defined‖ of the output "y" and of the gradients of x, dt and every parameter.
    """
    x = x.detach().requires_grad_()
    dt = None if dt is None else dt.detach().requires_grad_()
    given = {"x": x, **({} if dt is None else {"dt": dt}), **dict(layer.named_parameters())}
    defined = definition(x, dt)
    weight = torch.randn(defined.shape, dtype=defined.dtype, generator=torch.Generator().manual_seed(2))
    expected = _with_gradients(defined, weight, given)
    found = _with_gradients(layer(x, dt=dt)[0], weight, given)
    return {
        name: float((found[name] - value).norm() / value.norm().clamp_min(1e-6))
        for name, value in expected.items()
    }


def _with_gradients(y: Tensor, weight: Tensor, given: dict[str, Tensor]) -> dict[str, Tensor]:
    gradients = torch.autograd.grad((weight * y).sum(), list(given.values()), materialize_grads=True)
    return {"y": y.detach(), **dict(zip(given, gradients, strict=True))}


def number(planes: Tensor, dim: int = 0) -> Tensor:
    """The complex numbers whose real and imaginary parts are two planes along `dim`."""
    return torch.complex(*planes.unbind(dim))


def affine(module: Any, x: Tensor) -> Tensor:
    """W x + b by a dense module's weights."""
    return x @ module.weight.T + (0 if module.bias is None else module.bias)


def short_convolution(module: Any, x: Tensor) -> Tensor:
    """y[t] = Σ_j w[W − 1 − j]∘x[t − j] + b over the last W steps of each channel, x (B, T, D)."""
    weight, width = module.weight[:, 0], module.weight.shape[-1]
    ys = []
    for t in range(x.shape[1]):
        taps = [weight[:, width - 1 - j] * x[:, t - j] for j in range(min(width, t + 1))]
        ys.append(sum(taps) + (0 if module.bias is None else module.bias))
    return torch.stack(ys, 1)


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp x)."""
    return torch.log1p(torch.exp(x))


def silu(x: Tensor) -> Tensor:
    """x·σ(x)."""
    return x * torch.sigmoid(x)


def rms(x: Tensor, eps: float) -> Tensor:
    """x / √(mean x² + ε) along the last axis."""
    return x / torch.sqrt(x.square().mean(-1, keepdim=True) + eps)


def matrix_outputs(q: Tensor, k: Tensor, v: Tensor, decay: Tensor, beta: Tensor | None = None) -> Tensor:
    """y[t] = h[t] q[t] of h[t] = decay∘h[t − 1] + v kᵀ from h = 0; by a β the delta rule, with v − h k for v.

    Args:
        q: what reads, (B, T, H, K).
        k: the place of what is written, (B, T, H, K).
        v: what is written, (B, T, H, V).
        decay: (B, T, H), or (B, T, H, K) for each column of h.
        beta: (B, T, H), the share of v that is written, and of what was there that is taken away.
    """
    h, ys = torch.zeros(*v[:, 0].shape, q.shape[-1], dtype=v.dtype), []
    for t in range(q.shape[1]):
        kept = decay[:, t, :, None] if decay.ndim == 3 else decay[:, t]
        h = h * kept[:, :, None]
        new = v[:, t]
        if beta is not None:
            new = beta[:, t, :, None] * (new - torch.einsum("bhvk,bhk->bhv", h, k[:, t]))
        h = h + torch.einsum("bhv,bhk->bhvk", new, k[:, t])
        ys.append(torch.einsum("bhvk,bhk->bhv", h, q[:, t]))
    return torch.stack(ys, 1)


def discretized(rule: str, lam: Tensor, step: Tensor, dt: Tensor | None) -> tuple[Tensor, ...]:
    """Coefficient a and gains of h = a∘h + gain∘v, of real or complex numbers.

    Args:
        rule: name of the discretization, whose formula has a test of its own.
        lam: eigenvalue λ (…).
        step: timescale Δ, broadcastable to (B, …).
        dt: (B,) time since the previous sample; None is 1.
    """
    planes = torch.stack((lam.real, lam.imag), -2) if lam.is_complex() else lam.unsqueeze(-2)
    dt = None if dt is None else dt.reshape(-1, *[1] * (lam.ndim - 1))
    made = RULES[rule](planes, step, dt)
    return tuple(number(z, -2) if lam.is_complex() else z.squeeze(-2) for z in made)


def diagonal_states(rule: str, lam: Tensor, step: Tensor, driven: Tensor, dt: Tensor | None = None) -> Tensor:
    """h[t] = a[t]∘h[t − 1] + gain[t]∘v[t] from h = 0, for every t; each further gain adds that of an older v.

    Args:
        rule: name of the discretization.
        lam: λ (…).
        step: Δ, broadcastable to (B, T, …).
        driven: v = B u, (B, T, …).
        dt: (B, T) elapsed time, None for 1.
    """
    shape = torch.broadcast_shapes(driven.shape, lam.shape)
    step, driven = step.expand(torch.broadcast_shapes(step.shape, shape)), driven.expand(shape)
    h, states = torch.zeros((), dtype=lam.dtype), []
    for t in range(shape[1]):
        a, *gains = discretized(rule, lam, step[:, t], None if dt is None else dt[:, t])
        h = a * h + sum(gain * driven[:, t - k] for k, gain in enumerate(gains) if k <= t)
        states.append(h)
    return torch.stack(states, 1)
