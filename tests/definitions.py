"""Layers whose coefficients depend on the input, one step at a time: `DEFINITIONS[name](layer, x, dt)`."""

import math

import torch
from torch.nn import functional as F


def linear(module, x):
    return x @ module.weight.T + (0 if module.bias is None else module.bias)


def conv_at(module, x, t):
    weight, width = module.weight[:, 0], module.weight.shape[-1]
    y = torch.zeros_like(x[:, 0]) if module.bias is None else module.bias
    for j in range(min(width, t + 1)):
        y = y + weight[:, width - 1 - j] * x[:, t - j]
    return y


def discrete(rule, lam, step, elapsed):
    span = step * elapsed
    grown = torch.exp(lam * span)
    return {
        "zoh": lambda: (grown, (grown - 1) / lam),
        "bilinear": lambda: ((1 + lam * span / 2) / (1 - lam * span / 2), span / (1 - lam * span / 2)),
        "dirac": lambda: (grown, torch.ones_like(grown)),
        "euler": lambda: (grown, span + 0 * lam),
        "asynchronous": lambda: (grown, (torch.exp(lam * step) - 1) / lam),
    }[rule]()


def define_mamba(layer, x, dt, stream):
    batch, time, _ = x.shape
    inner, n = layer.A_log.shape
    is_complex = layer.A_imag is not None
    A = -torch.exp(layer.A_log)
    A = torch.complex(A, layer.A_imag) if is_complex else A
    u, z = linear(layer.in_proj, x).split(inner, -1)
    h, outputs = torch.zeros(batch, inner, n, dtype=A.dtype), []
    for t in range(time):
        v = F.silu(conv_at(layer.conv1d, u, t))
        r, B, C = torch.split(linear(layer.x_proj, v), [layer.dt_rank, *[n * (1 + is_complex)] * 2], -1)
        if is_complex:
            B, C = (torch.complex(w[:, :n], w[:, n:]) for w in (B, C))
        delta = torch.log1p(torch.exp(linear(layer.dt_proj, r)))[..., None]
        elapsed = 1.0 if dt is None else dt[:, t, None, None]
        if stream:
            rate = torch.log1p(torch.exp(layer.b))[None, :, None]
            h = torch.exp(A * elapsed * rate) * h + delta * B[:, None] * v[..., None]
        else:
            a, gain = discrete(layer.config.rule, A, delta, elapsed)
            h = a * h + gain * B[:, None] * v[..., None]
        y = (C[:, None] * h).sum(-1)
        y = (2 * y.real if is_complex else y) + layer.D * v
        outputs.append(linear(layer.out_proj, y * F.silu(z[:, t])))
    return torch.stack(outputs, 1)


def define_rglru(layer, x, dt):
    u = linear(layer.linear_x, x)
    heads, width, _ = layer.input_gate_weight.shape
    h, outputs = torch.zeros_like(u[:, 0]), []
    for t in range(x.shape[1]):
        v = conv_at(layer.conv1d, u, t)
        gates = []
        for weight, bias in (
            (layer.recurrent_gate_weight, layer.recurrent_gate_bias),
            (layer.input_gate_weight, layer.input_gate_bias),
        ):
            blocks = [v[:, k * width : (k + 1) * width] @ weight[k] + bias[k] for k in range(heads)]
            gates.append(torch.sigmoid(torch.cat(blocks, -1)))
        r, i = gates
        a = torch.exp(-8 * r * torch.log1p(torch.exp(layer.recurrent_param)))
        a = a if dt is None else a ** dt[:, t, None]
        unit = t == 0 and layer.config.unit_start
        h = a * h + (1 if unit else torch.sqrt(1 - a * a)) * i * v
        outputs.append(
            linear(layer.linear_out, h * F.gelu(linear(layer.linear_y, x[:, t]), approximate="tanh"))
        )
    return torch.stack(outputs, 1)


def define_s7(layer, x, dt):
    B, C = (torch.complex(*p) for p in (layer.B, layer.C))
    lam = torch.complex(1 - 1 / (layer.w**2 + 0.5) - 1, layer.Lambda_im)

    def pick(name, u):
        return linear(layer.select[name], u) if name in layer.config.selective else 0

    h, outputs = torch.zeros(x.shape[0], len(lam), dtype=lam.dtype), []
    for t in range(x.shape[1]):
        u = x[:, t]
        step = torch.log1p(torch.exp(layer.step_bias + pick("step", u)))
        a, gain = discrete(layer.config.rule, lam, step, 1.0 if dt is None else dt[:, t, None])
        h = a * h + gain * (1 + pick("b", u)) * (u.to(B.dtype) @ B.T)
        y = 2 * (((1 + pick("c", u)) * h) @ C.T).real + layer.D * u
        outputs.append(y * torch.sigmoid(linear(layer.gate, F.gelu(y))))
    return torch.stack(outputs, 1)


def define_gru(layer, x, dt):
    n = layer.config.d_state
    h, outputs = x.new_zeros(x.shape[0], n), []
    for t in range(x.shape[1]):
        x_z, x_r, x_c = linear(layer.in_proj, x[:, t]).split(n, -1)
        z, r = torch.sigmoid(x_z + layer.u[0] * h), torch.sigmoid(x_r + layer.u[1] * h)
        c = torch.tanh(x_c + r * layer.u[2] * h)
        keep = (1 - z) if dt is None else (1 - z) ** dt[:, t, None]
        h = keep * h + (1 - keep) * c
        outputs.append(linear(layer.out_proj, h))
    return torch.stack(outputs, 1)


def define_mingru(layer, x, dt):
    h, outputs = x.new_zeros(x.shape[0], *layer.state_shape), []
    for t in range(x.shape[1]):
        z, value = linear(layer.in_proj, x[:, t]).chunk(2, -1)
        keep = torch.sigmoid(-z) if dt is None else torch.sigmoid(-z) ** dt[:, t, None]
        h = keep * h + (1 - keep) * value
        outputs.append(linear(layer.out_proj, h))
    return torch.stack(outputs, 1)


def define_local_attention(layer, x, dt):
    heads, d = layer.config.heads, layer.d_head

    def turned(z, position):
        number = torch.complex(z[..., : d // 2], z[..., d // 2 :])
        angle = position * layer.config.base ** (-torch.arange(d // 2, dtype=torch.float64) * 2 / d)
        number = number * torch.exp(1j * angle)
        return torch.cat((number.real, number.imag), -1)

    k, v = linear(layer.kv_proj, x).split(d, -1)
    outputs = []
    for t in range(x.shape[1]):
        window = range(max(0, t - layer.config.window + 1), t + 1)
        q = turned(linear(layer.q_proj, x[:, t]).unflatten(-1, (heads, d)), t)
        scores = torch.stack([(q * turned(k[:, s], s)[:, None]).sum(-1) for s in window], -1) / math.sqrt(d)
        mixed = torch.einsum("bhs,bsd->bhd", scores.softmax(-1), v[:, window.start : window.stop])
        outputs.append(linear(layer.out_proj, mixed.flatten(1)))
    return torch.stack(outputs, 1)


DEFINITIONS = {
    "s6": lambda *z: define_mamba(*z, stream=False),
    "stream": lambda *z: define_mamba(*z, stream=True),
    "rglru": define_rglru,
    "s7": define_s7,
    "gru": define_gru,
    "mingru": define_mingru,
    "local_attention": define_local_attention,
}
