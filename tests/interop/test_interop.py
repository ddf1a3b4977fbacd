"""Weights of other implementations, against their formulas written out in numpy."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from lrnnx_app.errors import UserError
from lrnnx_app.interop import SOURCES, convert, load
from lrnnx_app.layers._build import build_layer
from lrnnx_app.layers._properties import in_pieces
from lrnnx_app.registry import LAYERS
from tests.helpers import relative
from tests.interop.test_interop_transformers import MambaMixer, falcon_mixer, gemma_block, mamba_config

RNG = np.random.default_rng(0)


def lru_params(n=5, h=3):
    r = RNG.standard_normal
    return {
        "nu_log": r(n) - 2,
        "theta_log": r(n),
        "gamma_log": r(n),
        "B_re": r((n, h)),
        "B_im": r((n, h)),
        "C_re": r((h, n)),
        "C_im": r((h, n)),
        "D": r(h),
    }


def s5_params(p=4, h=3, both=False):
    r = RNG.standard_normal
    names = ("C1", "C2") if both else ("C",)
    return {
        "Lambda_re": -np.abs(r(p)),
        "Lambda_im": 3 * r(p),
        "B": r((p, h, 2)),
        **{name: r((h, p, 2)) for name in names},
        "D": r(h),
        "log_step": r((p, 1)) - 2,
    }


def s4_params(mode, h=6, n=4, n_ssm=2, l_kernel=32):
    r = RNG.standard_normal
    kernel = {
        "inv_dt": r((h, 1)) - 3,
        "C": r((1, h, n, 2)),
        "B": r((1, n_ssm, n, 2)),
        "A_real": r((n_ssm, n)) / 3 - 0.7,
        "A_imag": 3 * r((n_ssm, n)),
    }
    if mode == "nplr":
        kernel |= {"P": r((1, n_ssm, n, 2)) / 2, "l_kernel": np.array(l_kernel)}
    return {
        "layer.D": r((1, h)),
        **{f"layer.kernel.{name}": value for name, value in kernel.items()},
        "output_linear.0.weight": r((2 * h, h)) / h**0.5,
        "output_linear.0.bias": r(2 * h),
    }


def s4d_params(h=3, n=4):
    r = RNG.standard_normal
    return {
        "D": r(h),
        "kernel.C": r((h, n, 2)),
        "kernel.log_dt": r(h) - 3,
        "kernel.log_A_real": r((h, n)) / 3 - 0.7,
        "kernel.A_imag": 3 * r((h, n)),
        "output_linear.0.weight": r((2 * h, h, 1)) / h**0.5,
        "output_linear.0.bias": r(2 * h),
    }


def attenuate_params(s=6, h=3, out=3):
    r = RNG.standard_normal
    return {"log_dt": r(s) - 3, "A": 2 * r((s, 2)), "B": r((s, h)), "C": r((out, s))}


def full_params(h=3, out=4, n=2):
    r = RNG.standard_normal
    return {"log_dt": r((out, n)) - 3, "A": 2 * r((out, h, n, 2)), "E": r((out, h, n))}


def number(z):
    return z[..., 0] + 1j * z[..., 1]


def paired(z):
    return np.concatenate((z, z.conj()))


def run_lru(p, u):
    lam = np.exp(-np.exp(p["nu_log"]) + 1j * np.exp(p["theta_log"]))
    B, C = p["B_re"] + 1j * p["B_im"], p["C_re"] + 1j * p["C_im"]
    h, ys = 0, []
    for x in u:
        h = lam * h + np.exp(p["gamma_log"]) * (B @ x)
        ys.append((C @ h).real + p["D"] * x)
    return np.stack(ys)


def run_s5(p, u, rule="zoh", dt=None, both=False, conj=True):
    lam, step = p["Lambda_re"] + 1j * p["Lambda_im"], np.exp(p["log_step"][:, 0])
    Bu = u @ number(p["B"]).T
    dt = np.ones(len(u)) if dt is None else dt

    def scan(order):
        h, hs = 0, [None] * len(u)
        for t in order:
            span = step * dt[t]
            if rule == "bilinear":
                a, gain = (1 + lam * span / 2) / (1 - lam * span / 2), span / (1 - lam * span / 2)
            else:
                a = np.exp(lam * span)
                over = step if rule == "async" else span
                gain = np.ones_like(a) if rule == "dirac" else (np.exp(lam * over) - 1) / lam
            h = a * h + gain * Bu[t]
            hs[t] = h
        return np.stack(hs)

    y = scan(range(len(u))) @ number(p["C1" if both else "C"]).T
    if both:
        y = y + scan(reversed(range(len(u)))) @ number(p["C2"]).T
    return (2 if conj else 1) * y.real + p["D"] * u


def gelu_glu(y, weight, bias):
    y = torch.from_numpy(y)
    return F.glu(F.gelu(y) @ torch.from_numpy(weight).T + torch.from_numpy(bias)).numpy()


def run_s4(p, u, mode, disc="zoh"):
    k = {name.removeprefix("layer.kernel."): value for name, value in p.items() if "kernel" in name}
    y = np.zeros_like(u)
    for h in range(u.shape[1]):
        s = h % len(k["A_real"])
        half = -np.exp(k["A_real"][s]) - 1j * k["A_imag"][s]
        B, C, step = number(k["B"][0, s]), number(k["C"][0, h]), np.exp(k["inv_dt"][h, 0])
        if mode == "diag":
            if disc == "zoh":
                a, gain = np.exp(half * step), (np.exp(half * step) - 1) / half
            else:
                a, gain = (1 + half * step / 2) / (1 - half * step / 2), step / (1 - half * step / 2)
            weight = 2 * B * C * gain
            kernel = [(weight * a**t).sum().real for t in range(len(u))]
        else:
            P = number(k["P"][0, s])
            A = np.diag(paired(half)) - np.outer(paired(P), paired(P).conj())
            eye = np.eye(len(A))
            inverse = np.linalg.inv(eye - step / 2 * A)
            a, b, c = inverse @ (eye + step / 2 * A), inverse @ paired(B) * step, paired(C)
            if k["l_kernel"]:
                c = c @ np.linalg.inv(eye - np.linalg.matrix_power(a, int(k["l_kernel"])))
            kernel = [(c @ np.linalg.matrix_power(a, t) @ b).real for t in range(len(u))]
        y[:, h] = np.convolve(u[:, h], kernel)[: len(u)]
    return gelu_glu(y + p["layer.D"] * u, p["output_linear.0.weight"], p["output_linear.0.bias"])


def run_s4d(p, u):
    y = np.zeros_like(u)
    for h in range(u.shape[1]):
        A = -np.exp(p["kernel.log_A_real"][h]) + 1j * p["kernel.A_imag"][h]
        a = np.exp(A * np.exp(p["kernel.log_dt"][h]))
        weight = 2 * number(p["kernel.C"][h]) * (a - 1) / A
        kernel = [(weight * a**t).sum().real for t in range(len(u))]
        y[:, h] = np.convolve(u[:, h], kernel)[: len(u)]
    return gelu_glu(y + p["D"] * u, p["output_linear.0.weight"][..., 0], p["output_linear.0.bias"])


def run_attenuate(p, u):
    A, step = -np.log1p(np.exp(p["A"][:, 0])) + 1j * p["A"][:, 1], np.exp(p["log_dt"])
    kernel = np.stack([(np.exp(step * A * t) * step).real for t in range(len(u))])
    y = np.zeros((len(u), len(p["C"])))
    for t in range(len(u)):
        for s in range(t + 1):
            y[t] += p["C"] @ (kernel[t - s] * (p["B"] @ u[s]))
    return y


def run_full(p, u):
    outputs, inputs, n = p["E"].shape
    y = np.zeros((len(u), outputs))
    for o in range(outputs):
        for i in range(inputs):
            for k in range(n):
                step, (re, im) = np.exp(p["log_dt"][o, k]), p["A"][o, i, k]
                a, h = np.exp(step * (-np.log1p(np.exp(re)) + 1j * im)), 0
                for t in range(len(u)):
                    h = a * h + step * u[t, i]
                    y[t, o] += p["E"][o, i, k] * h.real
    return y


CASES = {  # source, options, parameters, formula(params, u, dt), takes data time
    "minimal-lru": ("minimal-lru", {}, lru_params(), lambda p, u, dt: run_lru(p, u), False),
    **{
        f"s5-{rule}": (
            "s5",
            {"discretization": rule},
            s5_params(),
            lambda p, u, dt, rule=rule: run_s5(p, u, rule),
            False,
        )
        for rule in ("zoh", "bilinear", "dirac")
    },
    "s5-both": (
        "s5",
        {"bidirectional": True},
        s5_params(both=True),
        lambda p, u, dt: run_s5(p, u, both=True),
        False,
    ),
    "s5-both-in-one": (
        "s5",
        {"bidirectional": True},
        (one := s5_params(both=True)) | {"C": np.concatenate((one.pop("C1"), one.pop("C2")), 1)},
        lambda p, u, dt: run_s5(p | {"C1": p["C"][:, :4], "C2": p["C"][:, 4:]}, u, both=True),
        False,
    ),
    "s5-unpaired": ("s5", {"conj_sym": False}, s5_params(), lambda p, u, dt: run_s5(p, u, conj=False), False),
    **{
        f"event-ssm-{rule}": (
            "event-ssm",
            {"discretization": rule},
            s5_params(),
            lambda p, u, dt, rule=rule: run_s5(p, u, rule, dt),
            True,
        )
        for rule in ("zoh", "dirac", "async")
    },
    "s4d": ("s4d", {}, s4d_params(), lambda p, u, dt: run_s4d(p, u), False),
    "s4-nplr": ("s4", {"mode": "nplr"}, s4_params("nplr"), lambda p, u, dt: run_s4(p, u, "nplr"), False),
    "s4-nplr-0": (
        "s4",
        {"mode": "nplr"},
        s4_params("nplr", l_kernel=0),
        lambda p, u, dt: run_s4(p, u, "nplr"),
        False,
    ),
    "s4-diag-bilinear": (
        "s4",
        {"disc": "bilinear"},
        s4_params("diag"),
        lambda p, u, dt: run_s4(p, u, "diag", "bilinear"),
        False,
    ),
    "s4-diag": ("s4", {"mode": "diag"}, s4_params("diag"), lambda p, u, dt: run_s4(p, u, "diag"), False),
    **{
        f"attenuate-{out}": (
            "attenuate",
            {},
            attenuate_params(out=out),
            lambda p, u, dt: run_attenuate(p, u),
            False,
        )
        for out in (2, 3, 5)
    },
    **{
        f"centaurus-full-{h}": ("centaurus", {}, full_params(h), lambda p, u, dt: run_full(p, u), False)
        for h in (1, 3)
    },
}


@pytest.mark.parametrize("time", [20, 100])
@pytest.mark.parametrize("case", CASES)
def test_formula_of_the_source(case, time):
    source, options, params, formula, timed = CASES[case]
    layer = load(source, params, **options)
    u, dt = RNG.standard_normal((time, layer.d_model)), RNG.random(time) * 3
    wanted = torch.from_numpy(formula(params, u, dt))
    x = torch.from_numpy(u)[None]
    time_given = {"dt": torch.from_numpy(dt)[None]} if timed else {}
    assert relative(layer(x, **time_given)[0][0], wanted) <= 1e-10
    if layer.causal and not timed:
        assert relative(in_pieces(layer, x, None, [1] * x.shape[1])[0][0], wanted) <= 1e-10


MODULES = {
    "mamba": lambda: MambaMixer(mamba_config(), 0),
    "falcon-mamba": lambda: falcon_mixer(torch.float32),
    "recurrentgemma": lambda: gemma_block(torch.float32),
}


def given(source):
    if source in MODULES:
        return dict(MODULES[source]().state_dict())
    return next(params for name, _, params, _, _ in CASES.values() if name == source)


@pytest.mark.parametrize("source", SOURCES)
def test_conversion_is_pure_and_takes_arrays_and_tensors(source):
    params = given(source)
    as_tensors = {name: torch.as_tensor(value).float() for name, value in params.items()}
    kept = {name: value.clone() for name, value in as_tensors.items()}
    as_arrays = {name: value.numpy() for name, value in as_tensors.items()}
    (name, config, state), (other, other_config, other_state) = (
        convert(source, as_tensors),
        convert(source, as_arrays),
    )
    assert (name, config) == (other, other_config)
    assert isinstance(config, LAYERS[name].Config)
    assert state.keys() == other_state.keys()
    assert all(torch.equal(state[key], other_state[key]) for key in state)
    layer = load(source, as_tensors)
    assert all(p.dtype == torch.float32 for p in layer.parameters())
    with torch.no_grad():
        for p in layer.parameters():
            p.zero_()
    assert all(torch.equal(kept[key], as_tensors[key]) for key in kept)


@pytest.mark.parametrize("path", ["scan", "chunk", "mix"])
@pytest.mark.parametrize("mode", ["pointwise", "full", "neck"])
def test_every_path_changes_channels_alike(mode, path):
    if (mode, path) == ("neck", "mix"):
        with pytest.raises(UserError, match="path"):
            LAYERS["centaurus"](3, LAYERS["centaurus"].Config(mode=mode, path=path))
        return
    layer = LAYERS["centaurus"](3, LAYERS["centaurus"].Config(mode=mode, d_state=4, d_output=5, path=path))
    x = torch.randn(2, 70, 3, dtype=torch.float64)
    y, _ = layer.double()(x)
    assert y.shape == (2, 70, 5)
    assert relative(y, in_pieces(layer, x, None, [1] * x.shape[1])[0]) <= 1e-10


def test_a_model_s_layer_keeps_its_channels():
    with pytest.raises(UserError, match="d_output"):
        build_layer("centaurus", 3, LAYERS["centaurus"].Config(d_output=5))
    with pytest.raises(UserError, match="d_output"):
        LAYERS["centaurus"](3, LAYERS["centaurus"].Config(mode="dws", d_output=5))
