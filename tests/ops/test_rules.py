"""Every rule of discretization: its formula, its order, and each layer that takes it on each of its paths.

A rule is tested because it is registered. `implicit` is that of the docs: a plugin's, without a kernel.
"""

import inspect
import math
import re
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch.utils._pytree import tree_leaves

from lrnnx_app import plugins
from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._constants import frozen
from lrnnx_app.layers._examples import examples
from lrnnx_app.layers._properties import PROPERTIES as OF_LAYERS
from lrnnx_app.layers._properties import TIME, close, in_pieces, inputs
from lrnnx_app.layers._rule_properties import PROPERTIES, contract, number, system
from lrnnx_app.ops import planar
from lrnnx_app.ops._build import source_root
from lrnnx_app.ops._examples import Draw
from lrnnx_app.ops._table import OPERATORS
from lrnnx_app.ops.rules import OWN, Rule, find, kernels
from lrnnx_app.recipe import load
from lrnnx_app.registry import LAYERS
from tests.helpers import example, relative

FILE = ModuleType("implicit")  # of `lrnnx docs extend`
exec(example("implicit.py"), vars(FILE))
IMPLICIT: Rule = FILE.IMPLICIT
each_rule = pytest.mark.parametrize("rule", [*OWN.values(), IMPLICIT], ids=lambda rule: rule.name)


@pytest.fixture(autouse=True)
def _plugged_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(plugins._files, IMPLICIT.name, (Path("implicit.py"), FILE))


@pytest.mark.parametrize("name", PROPERTIES)
@each_rule
def test_every_rule(rule: Rule, name: str) -> None:
    PROPERTIES[name](rule)


FORMULAS = {  # of w = λΔδ, Δδ, λΔ and λ, as the papers have them
    "zoh": lambda w, span, z, lam: (torch.exp(w), (torch.exp(w) - 1) / lam),
    "bilinear": lambda w, span, z, lam: ((1 + w / 2) / (1 - w / 2), span / (1 - w / 2)),
    "dirac": lambda w, span, z, lam: (torch.exp(w), torch.ones_like(w)),
    "euler": lambda w, span, z, lam: (torch.exp(w), span + 0 * w),
    "asynchronous": lambda w, span, z, lam: (torch.exp(w), (torch.exp(z) - 1) / lam + 0 * w),
    "trapezoid": lambda w, span, z, lam: (torch.exp(w), span / 2 + 0 * w, torch.exp(w) * span / 2),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_formula(name: str) -> None:
    lam, step, dt = system()
    span, z = step * dt[..., None], number(lam) * step
    wanted = FORMULAS[name](number(lam) * span, span, z, number(lam))
    for found, one in zip(OWN[name](lam, step, dt), wanted, strict=True):
        assert relative(number(found).expand_as(one), one) < 1e-13


@pytest.mark.parametrize("name", [name for name, rule in OWN.items() if rule.code is not None])
def test_slopes_are_the_derivatives(name: str) -> None:
    rule, (z, one, dt) = OWN[name].scanned, system()
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


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(RecipeError, match="rule: unknown 'zho'; did you mean 'zoh'"):
        find("zho")


TAPPED = [rule for rule in OWN.values() if rule.taps > 1]


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
    monkeypatch.setitem(OWN, "many", many)
    with pytest.raises(
        RecipeError, match=f"model.layer.rule: 'many' has {taps} taps .*at most {taps - 1};"
    ) as told:
        load("digits_lru", [f"model.layer={name}", "model.layer.rule=many"])
    assert all(rule.name in str(told.value) for rule in TAPPED)
    assert "many" not in LAYERS[name].rules()


def test_csrc_numbers_the_same_rules() -> None:
    listed = re.findall(r"^ +RULE\((\d+), (\w+),", (source_root() / "rules.h").read_text(), re.MULTILINE)
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
    by_rule = [trial for trial in contract(IMPLICIT) if trial.case.name == name]
    assert {trial.name for trial in by_rule} == OF_LAYERS.keys()
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
