"""The operators of a written program. What a model needs of them is copied into its model.py."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np


def where(mask, x, y):
    """`jnp.where`; a mask that is known while JAX traces, and true everywhere, costs nothing."""
    if isinstance(mask, np.ndarray) and mask.all():
        return jnp.broadcast_to(x, np.broadcast_shapes(mask.shape, np.shape(x), np.shape(y)))
    return jnp.where(mask, x, y)


def layer_norm(x, weight, bias, eps):
    """(x − mean) / √(variance + eps)·weight + bias over the last axis of x (…, D)."""
    centered = x - x.mean(-1, keepdims=True)
    y = centered * jax.lax.rsqrt((centered**2).mean(-1, keepdims=True) + eps)
    y = y if weight is None else y * weight
    return y if bias is None else y + bias


def rms_norm(x, weight, eps):
    """x / √(mean of x² + eps)·weight over the last axis of x (…, D)."""
    y = x * jax.lax.rsqrt((x**2).mean(-1, keepdims=True) + eps)
    return y if weight is None else y * weight


def attention(q, k, v, mask):
    """softmax(q kᵀ/√d) v where mask is true: q (…, S, d), k and v (…, K, d), mask (…, S, K)."""
    scores = q @ k.swapaxes(-2, -1) / np.sqrt(q.shape[-1])
    return jax.nn.softmax(jnp.where(mask, scores, -jnp.inf), -1) @ v


def linear_scan(a, b, h0=None, lengths=None, reset=None, reverse=False):
    """h[t] = a[t]·h[t−1] + b[t].

    Args:
        a: real (B or 1, T or 1, G), each for N/G neighbouring states; or planar (B or 1, T or 1, 2, N), where
            index 0 is the real and 1 the imaginary part.
        b: (B, T, N), or planar (B, T, 2, N).
        h0: the state before the first step, (B, N) or (B, 2, N); None is 0.
        lengths: (B,) integers; steps at and beyond a row's length keep the state.
        reset: (B, T) bool; true where the state before is dropped.
        reverse: from the last step to the first.

    Returns:
        All states, shaped as b, and the last one, shaped as h0.
    """
    time, wide = b.shape[1], jnp.promote_types(b.dtype, jnp.float32)
    if b.ndim == 4:
        a, drive = (jax.lax.complex(*jnp.moveaxis(z.astype(wide), 2, 0)) for z in (a, b))
        h0 = None if h0 is None else jax.lax.complex(h0[:, 0].astype(wide), h0[:, 1].astype(wide))
    else:
        a, drive = jnp.repeat(a.astype(wide), b.shape[2] // a.shape[2], 2), b.astype(wide)
    a = jnp.broadcast_to(a, (a.shape[0], time, a.shape[2]))
    if reset is not None:
        cut = jnp.pad(reset, ((0, 0), (0, 1)))[:, 1:] if reverse else reset
        a = jnp.where(cut[..., None], 0, a)
    if lengths is not None:
        inside = (np.arange(time) < lengths[:, None])[..., None]
        if not isinstance(inside, np.ndarray) or not inside.all():
            a, drive = jnp.where(inside, a, 1), jnp.where(inside, drive, 0)
    first, final = (-1, 0) if reverse else (0, -1)
    if h0 is not None:
        drive = drive.at[:, first].add(a[:, first] * h0)
    h = states(a, drive, reverse)
    if b.ndim == 4:
        h = jnp.stack((h.real, h.imag), 2)
    return h.astype(b.dtype), h[:, final]


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def states(a, b, reverse):
    """All h[t] = a[t]·h[t−1] + b[t], h[−1] = 0: a (B or 1, T, N), b (B, T, N)."""

    def join(one, two):
        return two[0] * one[0], two[0] * one[1] + two[1]

    return jax.lax.associative_scan(join, (a, b), reverse=reverse, axis=1)[1]


def states_forward(a, b, reverse):
    h = states(a, b, reverse)
    return h, (a, h)


def states_backward(reverse, kept, g):
    """The gradient of b is the same scan the other way round; that of a[t] is its product with h[t−1]."""
    a, h = kept
    zero = jnp.zeros_like
    if reverse:
        after = jnp.concatenate((zero(a[:, :1]), a[:, :-1]), 1)
        before = jnp.concatenate((h[:, 1:], zero(h[:, :1])), 1)
    else:
        after = jnp.concatenate((a[:, 1:], zero(a[:, :1])), 1)
        before = jnp.concatenate((zero(h[:, :1]), h[:, :-1]), 1)
    by_b = states(after, g, not reverse)
    by_a = by_b * before
    return by_a.sum(0, keepdims=True) if a.shape[0] < h.shape[0] else by_a, by_b


states.defvjp(states_forward, states_backward)


def by_step(step, x, state, lengths=None, dt=None):
    """(y, *state) of `step(x, dt, *state)`, one step of x and dt after another, as `jax.lax.scan` takes them.

    x is an array (B, T, …), or several; dt (B, T), or None. Steps beyond a row's length keep the state.
    """
    batch, time = jax.tree.leaves(x)[0].shape[:2]
    ends = np.full(batch, time) if lengths is None else lengths

    def body(state, now):
        t, x, dt = now
        y, *after = step(x, dt, *state)
        inside = [(t < ends).reshape(-1, *[1] * (new.ndim - 1)) for new in after]
        return tuple(map(jnp.where, inside, after, state)), y

    steps = jax.tree.map(lambda z: jnp.moveaxis(z, 1, 0), (x, dt))
    state, y = jax.lax.scan(body, tuple(state), (jnp.arange(time), *steps))
    return jnp.moveaxis(y, 0, 1), *state


def gru_states(inputs, recurrent, h0, dt=None, lengths=None, reset=None):
    """States (B, T, N) of a diagonal GRU with z, r = σ(x + u∘h), c = tanh(x + r∘u∘h), h = k∘h + (1 − k)∘c.

    k is (1 − z)^δ for elapsed time dt (B, T), or 1 − z; inputs x (B, T, 3, N), recurrent u (3, N), h0 (B, N).
    """
    starts = np.zeros(inputs.shape[:2], bool) if reset is None else reset

    def step(x, dt, h):
        x, start = x
        h = jnp.where(start[:, None], 0, h)
        gate = x[:, 0] + recurrent[0] * h
        k = jax.nn.sigmoid(-gate) if dt is None else jnp.exp(jax.nn.softplus(gate) * -dt[:, None])
        r = jax.nn.sigmoid(x[:, 1] + recurrent[1] * h)
        c = jnp.tanh(x[:, 2] + r * recurrent[2] * h)
        h = c + k * (h - c)
        return h, h

    states, last = by_step(step, (inputs, starts), (h0,), lengths, dt)
    if lengths is None:
        return states
    inside = (np.arange(inputs.shape[1]) < lengths[:, None])[..., None]
    return jnp.where(inside, states, last[:, None])


def matrix_scan(q, k, v, log_decay, beta=None, h0=None, erase=None, lengths=None, reset=None):
    """h[t] = h[t−1]·diag(a)·(I − β e kᵀ) + β v kᵀ and y[t] = h[t]·q, or without β h[t−1]·diag(a) + v kᵀ.

    q, k and erase e, None for k, (B, T, H, K); v (B, T, H, V); log a (B, T, H) or (B, T, H, K); β (B, T, H);
    h0 (B, H, V, K), None for 0. Returns y (B, T, H, V), 0 beyond a row's length, and the last state.
    """
    batch, time, heads, width = v.shape
    h0 = jnp.zeros((batch, heads, width, q.shape[-1]), v.dtype) if h0 is None else h0
    starts = np.zeros((batch, time), bool) if reset is None else reset
    log_decay = log_decay[..., None] if log_decay.ndim == 3 else log_decay
    erase = k if erase is None else erase

    def step(x, dt, h):
        q, k, e, v, log_decay, beta, start = x
        h = jnp.where(start[:, None, None, None], 0, h) * jnp.exp(log_decay)[..., None, :]
        if beta is not None:
            v = beta[..., None] * (v - (h * e[..., None, :]).sum(-1))
        h = h + v[..., None] * k[..., None, :]
        return (h * q[..., None, :]).sum(-1), h

    y, h = by_step(step, (q, k, erase, v, log_decay, beta, starts), (h0,), lengths)
    return y if lengths is None else where((np.arange(time) < lengths[:, None])[..., None, None], y, 0), h


def convolve(u, kernel):
    """y[t] = Σ_l kernel[l]·u[t − l]: u (B, T, I), kernel (I, L), or (O, I, L), which mixes channels."""
    time = u.shape[1]
    n = 1 << (time + kernel.shape[-1] - 2).bit_length() if time + kernel.shape[-1] > 2 else 1
    left, right = jnp.fft.rfft(u, n, axis=1), jnp.moveaxis(jnp.fft.rfft(kernel, n), -1, 0)
    product = left * right if kernel.ndim == 2 else jnp.einsum("bfi,foi->bfo", left, right)
    return jnp.fft.irfft(product, n, axis=1)[:, :time]


def rfft(x):
    """The spectrum of x (…, L), planar (…, 2, L // 2 + 1)."""
    z = jnp.fft.rfft(x)
    return jnp.stack((z.real, z.imag), -2)


def irfft(spectrum, length):
    """The inverse of `rfft`: planar (…, 2, length // 2 + 1) to (…, length)."""
    return jnp.fft.irfft(jax.lax.complex(spectrum[..., 0, :], spectrum[..., 1, :]), length)
