"""What is particular to one time-invariant layer: starts, paths, memory, and options that do not fit."""

import math
import subprocess
import sys

import pytest
import torch

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers import _bank, _nplr
from lrnnx_app.layers._build import build_layer
from lrnnx_app.layers.centaurus import Centaurus
from lrnnx_app.layers.s4 import S4, continuous
from lrnnx_app.layers.s4d import S4D, initial_modes
from lrnnx_app.layers.s5 import S5
from lrnnx_app.spec import Rows
from tests.helpers import relative


def test_s4_starts_as_hippo_legs():
    n = 8
    j = torch.arange(n, dtype=torch.float64)
    root = torch.sqrt(2 * j + 1)
    legs = -torch.tril(root[:, None] * root, -1) - torch.diag(j + 1)
    A, B, _ = continuous(S4(1, S4.Config(d_state=n)).double())
    wanted = (torch.linalg.matrix_power(legs, k) @ root for k in range(4))
    for k, moment in enumerate(wanted):  # basis-free: the Gram matrix of a start is kept by unitary V
        found = torch.linalg.matrix_power(A[0], k) @ B[0]
        assert torch.allclose(found.abs().square().sum(), moment.square().sum(), rtol=1e-4)


def test_recovered_readout_follows_its_parameters():
    layer = S4(2, S4.Config(d_state=4, l_max=8, path="scan")).double()
    x = torch.randn(1, 5, 2, dtype=torch.float64)
    with torch.no_grad():
        before = layer(x)[0]
        layer.C.mul_(2)
        assert relative(layer(x)[0] - layer.D * x, 2 * (before - layer.D * x)) <= 1e-12


def test_s5_blocks_are_hippo_in_their_eigenbasis():
    layer = S5(5, S5.Config(d_state=8, blocks=2, conj_sym=False))
    lam = torch.complex(layer.Lambda_re, layer.Lambda_im).detach()
    assert torch.equal(lam[:4], lam[4:])
    assert torch.allclose(lam.real, torch.tensor(-0.5))


def test_banks_take_the_path_that_was_measured_to_be_fastest():
    dws, dense = (Centaurus(64, Centaurus.Config(mode=mode)) for mode in ("dws", "pointwise"))
    for device, chunked in (("cpu", "scan"), ("cuda", "chunk")):
        assert [dws.choose(8, time, device) for time in (1, 2048)] == ["scan", "chunk"]
        assert [dense.choose(8, time, device) for time in (1, 4096)] == ["scan", chunked]
    for mode, expected in (("pointwise", "chunk"), ("full", "mix"), ("neck", "chunk")):
        assert Centaurus(16, Centaurus.Config(mode=mode)).choose(8, 8192, "cuda") == expected


@pytest.mark.parametrize("name", ["s4d", "centaurus"])
def test_a_chunked_scan_is_the_scan(name, monkeypatch):
    layer = build_layer(name, 3).double()
    layer.path = "scan"
    x = torch.randn(2, 37, 3, dtype=torch.float64, requires_grad=True)
    dt, lengths = torch.rand(2, 37, dtype=torch.float64), torch.tensor([37, 12])
    reset = torch.rand(2, 37) < 0.1
    wanted, last = layer(x, dt=dt, lengths=lengths, reset=reset)
    gradient = torch.autograd.grad(wanted.square().sum() + last.h.sum(), x)[0]
    monkeypatch.setattr(_bank, "CHUNK", 8 * 2 * 2 * layer.state_shape[1])
    found, h = layer(x, dt=dt, lengths=lengths, reset=reset)
    assert relative(found, wanted) <= 1e-12
    assert relative(torch.autograd.grad(found.square().sum() + h.h.sum(), x)[0], gradient) <= 1e-12


@pytest.mark.parametrize("continued", [False, True])
def test_s4_packed_in_blocks_is_packed_step_by_step(continued):
    layer = S4(2, S4.Config(d_state=8)).double()
    x = torch.randn(4, 150, 2, dtype=torch.float64, requires_grad=True)
    reset = torch.rand(4, 150) < 0.03
    reset[0], reset[1, 0] = False, True
    lengths = torch.tensor([150, 1, 70, 140])
    inside = torch.arange(150) < lengths[:, None]
    state = _nplr.S4State(torch.randn(4, 2, 2, 4, dtype=torch.float64)) if continued else None
    results = []
    for layer.path in ("fft", "scan"):
        y, last = layer(x, state, lengths=lengths, reset=reset)
        gradient = torch.autograd.grad(y[inside].square().sum() + last.h.sum(), x)[0]
        results.append((y[inside], last.h, gradient))
    assert all(relative(found, expected) <= 1e-11 for found, expected in zip(*results, strict=True))


@pytest.mark.parametrize("name", ["s4", "s4d"])
def test_recomputed_parts_compile_whole(name, monkeypatch):
    torch.compiler.reset()
    layer, x = build_layer(name, 2).double(), torch.randn(2, 40, 2, dtype=torch.float64)
    monkeypatch.setattr(_bank, "CHUNK", 16 * 4 * 64)
    monkeypatch.setattr(_nplr, "FREQUENCIES", 16 * 64)
    reset = torch.rand(2, 40) < 0.1
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    for masks in ({"reset": reset}, {}):
        y, expected = compiled(x, **masks)[0], layer(x, **masks)[0]
        assert relative(y, expected) <= 1e-12
        wanted = torch.autograd.grad(expected.square().sum(), layer.C)[0]
        assert relative(torch.autograd.grad(y.square().sum(), layer.C)[0], wanted) <= 1e-12


def test_chunked_frequencies_and_steps_are_whole_ones(monkeypatch):
    layer = S4(2, S4.Config(d_state=4)).double()
    x = torch.randn(1, 150, 2, dtype=torch.float64)
    wanted = layer(x)[0]
    gradients = torch.autograd.grad(wanted.square().sum(), layer.log_A_real)[0]
    monkeypatch.setattr(_nplr, "FREQUENCIES", 64)
    assert relative(torch.autograd.grad(layer(x)[0].square().sum(), layer.log_A_real)[0], gradients) <= 1e-12
    stepped = layer(x, dt=torch.ones(1, 150, dtype=torch.float64))[0]
    assert relative(torch.autograd.grad(stepped.square().sum(), layer.log_A_real)[0], gradients) <= 1e-9


@pytest.mark.parametrize("path", ["fft", "scan"])
@pytest.mark.parametrize("name", ["s4", "s4d"])
def test_long_sequences_in_single_precision(name, path):
    layer, x = build_layer(name, 2), torch.randn(1, 2049, 2)
    with torch.no_grad():
        layer.path = path
        found = layer(x)[0]
        layer.path = "scan"
        assert relative(found, layer.double()(x.double())[0]) <= 1e-5


def test_nothing_of_states_times_steps_is_kept():
    script = """
import resource, torch
from lrnnx_app.layers._build import build_layer
layer, x = build_layer("s4d", 32), torch.randn(1, 16384, 32)
layer(x[:, :64])[0].sum().backward()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
layer(x)[0].sum().backward()
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""
    grown = int(subprocess.run([sys.executable, "-c", script], capture_output=True, check=True).stdout)
    assert grown * 1024 < 16384 * 32 * 32 * 2 * 4  # one (T, H, N) in float32


@pytest.mark.parametrize(("init", "first"), [("lin", math.pi), ("inv", 16 / math.pi * (16 / 3 - 1))])
def test_s4d_initializations_are_the_formulas(init, first):
    lam = initial_modes(init, 16)
    assert torch.equal(lam[0], torch.full((8,), -0.5, dtype=torch.float64))
    assert float(lam[1, 1]) == pytest.approx(first)


def test_sizes_that_do_not_fit_are_named():
    for layer, options in ((S4, {"d_state": 5}), (S4D, {"d_state": 5}), (S5, {"d_state": 6, "blocks": 2})):
        with pytest.raises(RecipeError, match="d_state"):
            layer(2, layer.Config(**options))


def test_unknown_words_name_the_nearest():
    with pytest.raises(RecipeError, match="bilinear"):
        S5(2, S5.Config(rule="bilinea"))
    with pytest.raises(RecipeError, match="legs"):
        S4D(2, S4D.Config(init="leg"))
    with pytest.raises(RecipeError, match="neck"):
        Centaurus(2, Centaurus.Config(mode="necks"))
    with pytest.raises(RecipeError, match="chunk"):
        Centaurus(2, Centaurus.Config(mode="dws", path="mix"))
    with pytest.raises(RecipeError, match="concat"):
        build_layer("lru", 2, bidirectional=True, join="concatenate")


def test_a_mirror_of_a_mirror_is_the_picture():
    generator = torch.Generator().manual_seed(0)
    reset = torch.rand(8, 23, generator=generator) < 0.2
    lengths = torch.randint(1, 24, (8,), generator=generator)
    mirror = Rows(lengths=lengths, reset=reset).mirror(reset)
    assert torch.equal(mirror.gather(1, mirror), torch.arange(23).expand(8, 23))
    starts = reset.clone()
    starts[:, 0] = True
    sequence = starts.cumsum(1)
    assert torch.equal(sequence.gather(1, mirror), sequence)
