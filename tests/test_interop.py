"""Weights of other implementations: against transformers live, and against formulas written out."""

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import MambaConfig, MambaForCausalLM, RecurrentGemmaConfig
from transformers.models.mamba.modeling_mamba import MambaMixer
from transformers.models.recurrent_gemma.modeling_recurrent_gemma import (
    RecurrentGemmaRecurrentBlock,
    RecurrentGemmaRglru,
)

from lrnnx_app.errors import UserError
from lrnnx_app.interop import SOURCES, convert, load
from lrnnx_app.registry import LAYERS

LIMITS = {torch.float32: (1e-5, 1e-4), torch.float64: (1e-10, 1e-10)}  # outputs, gradients


@pytest.fixture
def dtype(request, monkeypatch):
    """The source in this precision throughout: it casts to float32 inside."""
    if request.param == torch.float64:
        monkeypatch.setattr(torch, "float32", torch.float64)
        monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
        monkeypatch.setattr(RecurrentGemmaRglru._rnn_scan, "__defaults__", (torch.float64,))
    return request.param


in_both = pytest.mark.parametrize("dtype", LIMITS, ids=str, indirect=True)


def error(got, wanted):
    return ((got - wanted).norm() / wanted.norm()).item()


def randomize(module, dtype, seed=0):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in module.parameters():
            noise = torch.randn(p.shape, generator=generator, dtype=torch.float64)
            p.copy_(0.5 * noise if p.ndim == 1 else noise / p.shape[-1] ** 0.5)
    return module.to(dtype).eval()


def draw(*shape, dtype=torch.float64, seed=1):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def compare(theirs, ours, source_of, x, dtype, run):
    """Outputs, and the gradients by the input and by every parameter."""
    one, other = (x.clone().requires_grad_() for _ in range(2))
    wanted, got = run(one), ours(other)[0]
    limit, grad_limit = LIMITS[dtype]
    assert error(got, wanted) <= limit
    weight = draw(*wanted.shape, dtype=dtype, seed=2)
    (wanted * weight).sum().backward()
    (got * weight).sum().backward()
    assert error(other.grad, one.grad) <= grad_limit
    grads = dict(ours.named_parameters())
    for name, p in theirs.named_parameters():
        assert error(grads[source_of(name)].grad, p.grad) <= grad_limit, name


def steps(layer, x, state=None):
    state, outputs = layer.init_state(x.shape[0]) if state is None else state, []
    with torch.no_grad():
        for t in range(x.shape[1]):
            y, state = layer.step(x[:, t], state)
            outputs.append(y)
    return torch.stack(outputs, 1)


# --- transformers, live --------------------------------------------------------------------------------


def mamba_config(**changes):
    return MambaConfig(
        **{"hidden_size": 12, "state_size": 5, "expand": 2, "vocab_size": 30, "num_hidden_layers": 3}
        | changes
    )


@in_both
@pytest.mark.parametrize(
    "changes", [{}, {"use_bias": True, "use_conv_bias": False, "conv_kernel": 3}], ids=str
)
def test_mamba_block(dtype, changes):
    theirs = randomize(MambaMixer(mamba_config(**changes), 0), dtype)
    ours = load("mamba", theirs.state_dict())
    x = draw(2, 150, 12, dtype=dtype)
    compare(theirs, ours, lambda name: name, x, dtype, theirs)
    assert error(steps(ours, x), theirs(x).detach()) <= LIMITS[dtype][0]


class MambaStack(torch.nn.Module):
    """The language model around loaded blocks."""

    def __init__(self, theirs):
        super().__init__()
        self.backbone, self.head = theirs.backbone, theirs.lm_head
        self.mixers = torch.nn.ModuleList(load("mamba", b.mixer.state_dict()) for b in theirs.backbone.layers)

    def _norm(self, module, x):
        return F.rms_norm(x, (x.shape[-1],), module.weight, module.variance_epsilon)

    def forward(self, tokens, states=None):
        x, after = self.backbone.embeddings(tokens), []
        for k, (block, mixer) in enumerate(zip(self.backbone.layers, self.mixers, strict=True)):
            normed = self._norm(block.norm, x)
            if tokens.ndim == 1:
                y, state = mixer.step(normed, states[k])
            else:
                y, state = mixer(normed)
            x = x + y
            after.append(state)
        return self.head(self._norm(self.backbone.norm_f, x)), after


@in_both
def test_mamba_language_model(dtype):
    torch.manual_seed(0)
    theirs = MambaForCausalLM(mamba_config()).to(dtype).eval()
    ours = MambaStack(theirs)
    tokens = torch.randint(30, (2, 40), generator=torch.Generator().manual_seed(3))
    wanted = theirs(tokens, use_cache=False).logits
    got, _ = ours(tokens)
    limit, grad_limit = LIMITS[dtype]
    assert error(got, wanted) <= limit
    names = [n for n, _ in theirs.backbone.layers.named_parameters() if "mixer" in n]
    of_theirs = [dict(theirs.backbone.layers.named_parameters())[n] for n in names]
    of_ours = [dict(ours.mixers.named_parameters())[n.replace(".mixer", "")] for n in names]
    weight = draw(*wanted.shape, dtype=dtype, seed=2)
    expected = torch.autograd.grad((wanted * weight).sum(), of_theirs)
    for name, a, b in zip(names, torch.autograd.grad((got * weight).sum(), of_ours), expected, strict=True):
        assert error(a, b) <= grad_limit, name
    with torch.no_grad():
        prefill = theirs(tokens[:, :30], use_cache=True)
        cache, (_, states) = prefill.cache_params, ours(tokens[:, :30])
        for t in range(30, 40):
            out = theirs(tokens[:, t : t + 1], cache_params=cache, use_cache=True)
            cache = out.cache_params
            logits, states = ours(tokens[:, t], states)
            assert error(logits, out.logits[:, 0]) <= limit


def gemma_block(dtype, hidden=12):
    config = RecurrentGemmaConfig(
        hidden_size=hidden, num_attention_heads=3, lru_width=12, num_hidden_layers=1, vocab_size=8
    )
    block = randomize(RecurrentGemmaRecurrentBlock(config, 0), dtype)
    with torch.no_grad():
        block.rg_lru.recurrent_param -= 4  # else nothing is remembered
    return block


def gemma_name(name):
    return name.removeprefix("rg_lru.").replace("conv_1d", "conv1d")


@in_both
@pytest.mark.parametrize("hidden", [12, 9])
def test_recurrentgemma_block(dtype, hidden):
    theirs = gemma_block(dtype, hidden)
    ours = load("recurrentgemma", theirs.state_dict())
    x, positions = draw(2, 50, hidden, dtype=dtype), torch.arange(50).expand(2, -1)
    compare(theirs, ours, gemma_name, x, dtype, lambda x: theirs(x, positions, None, use_cache=False)[0])


@in_both
def test_recurrentgemma_documents_and_streams_that_are_not_fresh(dtype):
    theirs = gemma_block(dtype)
    ours = load("recurrentgemma", theirs.state_dict())
    plain = load("recurrentgemma", theirs.state_dict(), unit_start=False)
    x = draw(1, 20, 12, dtype=dtype)
    limit = LIMITS[dtype][0]
    with torch.no_grad():
        wanted, _ = theirs(x, torch.arange(5, 25)[None], None, use_cache=False)
        assert error(plain(x)[0], wanted) <= limit
        assert error(ours(x)[0], wanted) > 0.01
        fresh = ours.init_state(1)
        assert error(ours(x, fresh._replace(fresh=torch.zeros(1)))[0], wanted) <= limit
        # The source's convolution sees across the border of a document, its recurrence does not.
        theirs.conv_1d.weight[..., :-1] = 0
        ours = load("recurrentgemma", theirs.state_dict())
        restarted = torch.cat((torch.arange(8), torch.arange(12)))[None]
        wanted, _ = theirs(x, restarted, None, use_cache=False)
        assert error(ours(x, reset=restarted == 0)[0], wanted) <= limit


@in_both
def test_recurrentgemma_decoding(dtype):
    theirs = gemma_block(dtype)
    ours = load("recurrentgemma", theirs.state_dict())
    x = draw(2, 30, 12, dtype=dtype)
    with torch.no_grad():
        wanted, _ = theirs(x[:, :20], torch.arange(20).expand(2, -1), None)
        got, state = ours(x[:, :20])
        assert error(got, wanted) <= LIMITS[dtype][0]
        for t in range(20, 30):
            wanted, _ = theirs(x[:, t : t + 1], torch.full((2, 1), t), None)
            y, state = ours.step(x[:, t], state)
            assert error(y, wanted[:, 0]) <= LIMITS[dtype][0]


# --- formulas of the sources, written out in numpy -----------------------------------------------------

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
        "output_linear.weight": r((2 * h, h)) / h**0.5,
        "output_linear.bias": r(2 * h),
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


def attenuate_params(s=6, h=3):
    r = RNG.standard_normal
    return {"log_dt": r(s) - 3, "A": 2 * r((s, 2)), "B": r((s, h)), "C": r((h, s))}


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


def run_s4(p, u, mode):
    k = {name.removeprefix("layer.kernel."): value for name, value in p.items() if "kernel" in name}
    y = np.zeros_like(u)
    for h in range(u.shape[1]):
        s = h % len(k["A_real"])
        half = -np.exp(k["A_real"][s]) - 1j * k["A_imag"][s]
        B, C, step = number(k["B"][0, s]), number(k["C"][0, h]), np.exp(k["inv_dt"][h, 0])
        if mode == "diag":
            a = np.exp(half * step)
            weight = 2 * B * C * (a - 1) / half
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
    return gelu_glu(y + p["layer.D"] * u, p["output_linear.weight"], p["output_linear.bias"])


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
    "s4-diag": ("s4", {"mode": "diag"}, s4_params("diag"), lambda p, u, dt: run_s4(p, u, "diag"), False),
    "attenuate": ("attenuate", {}, attenuate_params(), lambda p, u, dt: run_attenuate(p, u), False),
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
    assert error(layer(x, **time_given)[0][0], wanted) <= 1e-10
    if layer.causal and not timed:
        assert error(steps(layer, x)[0], wanted) <= 1e-10


def given(source):
    if source in ("mamba", "recurrentgemma"):
        module = MambaMixer(mamba_config(), 0) if source == "mamba" else gemma_block(torch.float32)
        return dict(module.state_dict())
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


@pytest.mark.parametrize("source", SOURCES)
def test_a_parameter_missing_unknown_or_misshapen(source):
    params = given(source)
    first = next(iter(params))
    with pytest.raises(UserError, match=f"{source}: parameter '{first}' is missing"):
        load(source, {name: value for name, value in params.items() if name != first})
    with pytest.raises(UserError, match=f"{source}: no use for parameter 'zeta'"):
        load(source, params | {"zeta": np.zeros(3)})
    with pytest.raises(UserError, match=f"{source}: '{first}' must be"):
        load(source, params | {first: np.zeros((2, 2, 2, 2, 2))})


@pytest.mark.parametrize(
    ("source", "options", "message"),
    [
        ("s6", {}, "unknown source 's6'"),
        ("s5", {"discretisation": "zoh"}, "did you mean 'discretization'"),
        ("mamba", {"rule": "zoh"}, "it has none"),
        ("s5", {"discretization": "zho"}, "did you mean 'zoh'"),
        ("s4", {"mode": "dplr"}, "did you mean 'nplr'"),
    ],
)
def test_what_is_asked_for_must_exist(source, options, message):
    with pytest.raises(UserError, match=message):
        load(source, given(source) if source in SOURCES else {}, **options)


def test_attenuate_must_keep_its_channels():
    params = attenuate_params() | {"C": np.zeros((4, 6))}
    with pytest.raises(UserError, match="B takes 3, C gives 4"):
        load("attenuate", params)
