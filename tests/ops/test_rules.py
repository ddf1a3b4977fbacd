"""Every rule of discretization: its formula, its order, and each layer that takes it on each of its paths.

A rule is tested because it is registered. `implicit` is that of the docs: registered here alone, no kernel.
"""

import copy
import inspect
import math
import re

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._constants import frozen
from lrnnx_app.layers._examples import examples
from lrnnx_app.layers._properties import PROPERTIES, TIME, close, in_pieces, inputs, trials
from lrnnx_app.ops import planar, rules
from lrnnx_app.ops._examples import Draw
from lrnnx_app.ops._extension import source_root
from lrnnx_app.ops._table import OPERATORS
from lrnnx_app.ops.rules import RULES, Rule, find, kernels
from lrnnx_app.recipe import load
from lrnnx_app.registry import LAYERS
from tests.helpers import example, relative

Z = torch.complex128


def _of_the_docs() -> Rule:
    """The rule that `lrnnx docs extend` adds at the end of rules.py."""
    scope = {**vars(rules), "RULES": {}}
    exec(example("rules.py"), scope)
    (rule,) = scope["RULES"].values()
    return rule


IMPLICIT = _of_the_docs()
each_rule = pytest.mark.parametrize("rule", [*RULES.values(), IMPLICIT], ids=lambda rule: rule.name)


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RULES, IMPLICIT.name, IMPLICIT)


def number(z: Tensor) -> Tensor:
    """Planar (…, 2, N) as complex (…, N)."""
    return torch.complex(*z.unbind(-2))


@pytest.fixture
def system() -> tuple[Tensor, Tensor, Tensor]:
    lam = torch.stack((-torch.rand(6, dtype=torch.float64) - 0.1, 5 * torch.randn(6, dtype=torch.float64)))
    return lam, torch.rand(6, dtype=torch.float64) + 0.1, torch.rand(2, 5, dtype=torch.float64) + 0.1


def _run(rule: Rule, lam: complex, step: float, u: Tensor) -> Tensor:
    """The states (T,) of a recurrence by the rule from samples u (T,), h = 0 and no input before."""
    planes = torch.tensor([[lam.real], [lam.imag]], dtype=torch.float64)
    a, *gains = (number(x)[0] for x in rule(planes, torch.tensor([step], dtype=torch.float64)))
    before, h, states = u.new_zeros(()), torch.zeros((), dtype=Z), []
    for now in u:
        h = a * h + sum(gain * x for gain, x in zip(gains, (now, before), strict=False))
        before = now
        states.append(h)
    return torch.stack(states)


def _error_at_2(rule: Rule, steps: int) -> float:
    """|error| of h(2) for h' = λh + sin(ωs) from rest, against the solution in closed form."""
    lam, omega, end = complex(-0.7, 2.0), 3.0, 2.0
    step = end / steps
    grid = torch.arange(steps + 1, dtype=torch.float64) * step
    integral = (torch.cos(omega * grid[:-1]) - torch.cos(omega * grid[1:])) / omega
    samples = {"end": torch.sin(omega * grid[1:]), "mean": integral / step, "integral": integral}
    grown = omega * torch.exp(torch.tensor(lam * end))
    exact = (grown - omega * math.cos(omega * end) - lam * math.sin(omega * end)) / (lam**2 + omega**2)
    return float((_run(rule, lam, step, samples[rule.sample])[-1] - exact).abs())


@each_rule
def test_order_is_the_one_declared(rule: Rule) -> None:
    """Half the step leaves 2^−p of the error."""
    order = math.log2(_error_at_2(rule, 400) / _error_at_2(rule, 800))
    assert abs(order - rule.order) < 0.05, f"{rule.name} is of order {order:.2f}"


@each_rule
def test_exact_where_declared(rule: Rule) -> None:
    """For an input that is constant between samples, or for impulses at the samples; not elsewhere."""
    lam, step, u = complex(-0.7, 2.0), 0.4, torch.randn(20, dtype=torch.float64)
    a = torch.exp(torch.tensor(lam * step, dtype=Z))
    h, exact = torch.zeros((), dtype=Z), []
    for now in u:
        h = a * h + (now if rule.sample == "integral" else (a - 1) / lam * now)
        exact.append(h)
    assert (relative(_run(rule, lam, step, u), torch.stack(exact)) < 1e-13) == rule.exact


FORMULAS = {  # of w = λΔδ, Δδ, λΔ and λ, as the papers have them
    "zoh": lambda w, span, z, lam: (torch.exp(w), (torch.exp(w) - 1) / lam),
    "bilinear": lambda w, span, z, lam: ((1 + w / 2) / (1 - w / 2), span / (1 - w / 2)),
    "dirac": lambda w, span, z, lam: (torch.exp(w), torch.ones_like(w)),
    "euler": lambda w, span, z, lam: (torch.exp(w), span + 0 * w),
    "asynchronous": lambda w, span, z, lam: (torch.exp(w), (torch.exp(z) - 1) / lam + 0 * w),
    "trapezoid": lambda w, span, z, lam: (torch.exp(w), span / 2 + 0 * w, torch.exp(w) * span / 2),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name: str, system: tuple[Tensor, Tensor, Tensor]) -> None:
    lam, step, dt = system
    span, z = step * dt[..., None], number(lam) * step
    wanted = FORMULAS[name](number(lam) * span, span, z, number(lam))
    for found, one in zip(RULES[name](lam, step, dt), wanted, strict=True):
        assert relative(number(found).expand_as(one), one) < 1e-13


@each_rule
def test_stable_systems_stay_stable(rule: Rule, system: tuple[Tensor, Tensor, Tensor]) -> None:
    lam, step, dt = system
    for gaps in (None, dt, 1e3 * dt):
        assert float(number(rule(lam, step, gaps)[0]).abs().max()) < 1


@each_rule
def test_real_eigenvalues_are_the_real_case(rule: Rule, system: tuple[Tensor, Tensor, Tensor]) -> None:
    lam, step, dt = system
    real = lam[:1]
    padded = torch.cat((real, torch.zeros_like(real)))
    for one_plane, two_planes in zip(rule(real, step, dt), rule(padded, step, dt), strict=True):
        assert relative(one_plane, two_planes[..., :1, :]) < 1e-14


@each_rule
def test_elapsed_time_multiplies_the_timescale(rule: Rule, system: tuple[Tensor, Tensor, Tensor]) -> None:
    """In all, or where `over_time` says so, in that part of the rule alone."""
    lam, step, dt = system
    for found, wanted in zip(rule.scanned(lam, step, dt), _at_each(rule.scanned, lam, step, dt), strict=True):
        assert relative(found.expand_as(wanted), wanted) < 1e-14


def _at_each(rule: Rule, lam: Tensor, step: Tensor, dt: Tensor) -> list[Tensor]:
    each = zip(*(rule(lam, step * gap) for gap in dt.flatten()), strict=True)
    return [torch.stack([x.expand_as(lam) for x in part]).unflatten(0, dt.shape) for part in each]


@pytest.mark.parametrize("name", [name for name, rule in RULES.items() if rule.code is not None])
def test_slopes_are_the_derivatives(name: str, system: tuple[Tensor, Tensor, Tensor]) -> None:
    rule, (z, one, dt) = RULES[name].scanned, system
    given = [x.requires_grad_() for x in (z, dt)]
    a, gain = (x.expand(*dt.shape, 2, 6) for x in rule(z, torch.ones_like(one), dt))
    span = dt[..., None, None]
    by_w, gain_by_z, gain_by_dt = (number(x) for x in rule.slopes(z, span, a))
    for made, by_z, by_dt in (
        (a, by_w * dt[..., None], by_w * number(z)),
        (gain + 0 * a, gain_by_z, gain_by_dt),
    ):
        q = torch.randn_like(made)
        dz, ddt = torch.autograd.grad(made, given, q, materialize_grads=True, retain_graph=True)
        assert relative(number(dz), (by_z.conj() * number(q)).sum((0, 1))) < 1e-10
        assert relative(ddt, (by_dt.conj() * number(q)).real.sum(-1)) < 1e-10


@each_rule
def test_the_part_of_a_gain_without_time(rule: Rule, system: tuple[Tensor, Tensor, Tensor]) -> None:
    """Gains are the constant part times those that `scanned` makes of a unit timescale and the rate λΔ."""
    lam, step, dt = system
    a, *left = rule.scanned(lam * step, step.new_ones(1), dt)
    wanted, *gains = rule(lam, step, dt)
    assert relative(a, wanted) < 1e-13
    constant = rule.constant(lam, step).expand(*dt.shape, 2, 6)
    for rest, gain in zip(left, gains, strict=True):
        assert relative(planar.mul(constant, rest.expand_as(constant)), gain.expand_as(constant)) < 1e-13


@each_rule
def test_what_is_derived_of_a_rule(rule: Rule, system: tuple[Tensor, Tensor, Tensor]) -> None:
    lam, step, _ = system
    assert relative(planar.exp(rule.log_a(lam, step)), rule(lam, step)[0]) < 1e-13
    for found, wanted in zip((rule.evenly or rule)(lam, step), rule(lam, step), strict=True):
        assert relative(found, wanted) < 1e-14
    assert find(rule.name, rule.taps) is find(rule, rule.taps) is copy.deepcopy(rule) is rule
    assert len(rule(lam, step)) == 1 + rule.taps == 1 + len(rule.apart)
    assert rule.taps == 1 or rule.code is None, "no kernel has a second gain"


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(RecipeError, match="rule: unknown 'zho'; did you mean 'zoh'"):
        find("zho")


TAPPED = [rule for rule in RULES.values() if rule.taps > 1]


@pytest.mark.parametrize("rule", TAPPED, ids=lambda rule: rule.name)
@pytest.mark.parametrize(
    "name", [n for n, op in OPERATORS.items() if "rule" in inspect.signature(op.run).parameters]
)
def test_an_operator_of_one_tap_refuses_more(name: str, rule: Rule) -> None:
    operator = OPERATORS[name]
    operands = operator.draw(Draw(0), (2, 3, 4))
    for given in (rule, rule.name):
        with pytest.raises(
            RecipeError, match=f"^rule: '{rule.name}' has 2 taps .*at most 1; choose one of: zoh"
        ):
            operator.run(**operands, rule=given)


@pytest.mark.parametrize("name", [name for name, entry in LAYERS.items() if entry.taps])
def test_a_layer_refuses_more_taps_than_it_takes(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """When the recipe is read, before there is data or a model."""
    taps = LAYERS[name].taps + 1
    many = Rule("many", lambda lam, step, dt: (lam, *[lam] * taps), "end", order=1, taps=taps)
    monkeypatch.setitem(RULES, "many", many)
    with pytest.raises(
        RecipeError, match=f"model.layer.rule: 'many' has {taps} taps .*at most {taps - 1};"
    ) as told:
        load("digits_lru", [f"model.layer={name}", "model.layer.rule=many"])
    assert all(rule.name in str(told.value) for rule in TAPPED)
    assert "many" not in LAYERS[name].rules()


def test_csrc_numbers_the_same_rules() -> None:
    listed = re.findall(r"^RULE\((\d+), (\w+),", (source_root() / "rules.def").read_text(), re.MULTILINE)
    assert ", ".join(f"{code} {name}" for code, name in listed) == kernels()


@pytest.mark.parametrize("size", [0.0, 1e-12, 1e-6, 1e-3, 0.0999, 0.1001])
def test_zoh_gain_near_zero(size: float) -> None:
    """(e^z − 1)/z and its slope stay exact where the formula cancels."""
    z = torch.tensor([[size / math.sqrt(2)], [size / math.sqrt(2)]], dtype=torch.float64, requires_grad=True)
    value = planar.expm1_over(z)
    (slope,) = torch.autograd.grad(value[0].sum(), z)
    w = complex(*z.detach().flatten().tolist())
    series = sum(w**k / math.factorial(k + 1) for k in range(20))
    derivative = sum(k * w ** (k - 1) / math.factorial(k + 1) for k in range(1, 20))
    assert abs(complex(*value.flatten().tolist()) - series) < 1e-14
    assert abs(complex(float(slope[0]), -float(slope[1])) - derivative) < 1e-11


each_layer = pytest.mark.parametrize("name", [name for name, entry in LAYERS.items() if entry.taps])


@each_layer
def test_a_layer_keeps_its_contract_by_a_rule_of_ones_own(name: str) -> None:
    """By lrnnx's own rules it is tested with the layers."""
    by_rule = [trial for trial in trials(name) if trial.case.options.get("rule") == IMPLICIT.name]
    assert {trial.name for trial in by_rule} == PROPERTIES.keys()
    for trial in by_rule:
        trial.run()


@pytest.mark.parametrize("timed", [False, True], ids=["even", "dt"])
@each_layer
def test_steps_and_frozen_copies_are_the_layer(name: str, timed: bool) -> None:
    """Outputs, and gradients of the same numbers through differentiable steps."""
    x, dt = inputs(timed)
    for case in {str(case): case for one in examples(name) for case in one.by_each_rule()}.values():
        layer = case.build()
        if not layer.causal:
            continue
        whole = layer(x, dt=dt)
        with torch.no_grad():
            close(frozen(layer)(x, dt=dt), whole)
            close(in_pieces(frozen(layer), x, dt, [1] * TIME), whole)
        leaves = [x, *([] if dt is None else [dt]), *(s.detach() for s in whole[1])]
        found = []
        for run in (layer, lambda x, state, dt, layer=layer: in_pieces(layer, x, dt, [1] * TIME, state)):
            given = [leaf.clone().requires_grad_() for leaf in leaves]
            start = type(whole[1])(*given[len(leaves) - len(whole[1]) :])
            outputs = tree_leaves(run(given[0], start, dt=given[1] if timed else None))
            total = sum((y.sin() * (1 + torch.arange(y.numel()).view(y.shape) % 3)).sum() for y in outputs)
            found.append(torch.autograd.grad(total, [*given, *layer.parameters()], materialize_grads=True))
        for one, other in zip(*found, strict=True):
            close(one, other, 1e-9)
