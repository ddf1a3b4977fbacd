"""Sessions: streamed = offline for every layer, model and chunk; streams of a batch; saved states."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lrnnx_app.errors import StreamError
from lrnnx_app.layers._examples import TWO_TAPS
from lrnnx_app.models._base import Model
from lrnnx_app.models.backbone import Backbone
from lrnnx_app.registry import LAYERS, MODELS
from lrnnx_app.spec import DataSpec
from lrnnx_app.streaming.session import StreamingSession
from tests.helpers import HYBRID, ROOT, TOLERANCE, relative, small, small_model

LIMIT = TOLERANCE[torch.float32]
LONG = 4096
DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]
each_device = pytest.mark.parametrize("device", DEVICES)
each_layer = pytest.mark.parametrize("name", LAYERS)
BY_RULE = [
    (name, rule) for name, entry in LAYERS.items() for rule in ("", *entry.rules()) if rule in ("", *TWO_TAPS)
]
each_rule = pytest.mark.parametrize(("name", "rule"), BY_RULE)


def backbone(name: str, device: str = "cpu", **options: Any) -> Backbone:
    spec = DataSpec(5, 3, tokens=bool(options.pop("tokens", False)))
    rule = options.pop("rule", "")
    chosen = {"rule": rule} if rule else {}
    options = {"d_model": 4, "depth": 2, **options}
    return Backbone(spec, Backbone.Config(layer=small(name, **chosen), **options)).to(device)


def offline(model: Model, x: Tensor, dt: Tensor | None = None) -> Tensor:
    with torch.inference_mode():
        return model.eval()(x, dt=dt)[0]


def streamed(session: StreamingSession, x: Tensor, dt: Tensor | None = None) -> Tensor:
    """Pushes of the session's chunk, the last one shorter, and the end."""
    cuts = [slice(start, start + session.chunk) for start in range(0, x.shape[1], session.chunk)]
    parts = [session.push(x[:, cut], None if dt is None else dt[:, cut]) for cut in cuts]
    last = session.finish()
    return torch.cat([*parts, last], 1) if parts[0].ndim == 3 else parts[-1]


@each_device
@pytest.mark.parametrize("chunk", [1, 7, 32, 100, LONG])
@pytest.mark.parametrize(("layer", "rule"), [*BY_RULE, (HYBRID, "")])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_streams_as_offline(name: str, layer: str, rule: str, chunk: int, device: str) -> None:
    model = small_model(name, layer, rule, **MODELS[name].forms[-1]).to(device)
    x = torch.randn(1 if chunk == LONG else 2, chunk + 5 * model.hop + 20, model.spec.d_input, device=device)
    timed = model.hop == 1 and all(LAYERS[part].uses_dt for part in layer.split("+"))
    session = StreamingSession(model, len(x), chunk)
    for dt in (None, 2 * torch.rand(x.shape[:2], device=device) if timed else None):
        assert (
            relative(streamed(session, x, dt), offline(model, x, dt)) < LIMIT
        )  # `finish` leaves fresh streams


@each_device
@pytest.mark.parametrize("pool", ["mean", "last"])
def test_running_logits(pool: str, device: str) -> None:
    model = backbone("lru", device, pool=pool)
    x = torch.randn(2, 50, 5, device=device)
    session = StreamingSession(model, 2, 7)
    for end in (7, 14, 21, 50):
        start = {7: 0, 50: 21}.get(end, end - 7)
        assert relative(session.push(x[:, start:end]), offline(model, x[:, :end])) < LIMIT


@each_device
def test_tokens_in_logits_out(device: str) -> None:
    model = backbone("s6", device, pool="none", tokens=True)
    x = torch.randint(5, (2, 20), device=device)
    assert relative(streamed(StreamingSession(model, 2), x), offline(model, x)) < LIMIT
    dt = torch.rand(2, 20, device=device)
    timed = streamed(StreamingSession(model, 2, 6), x, dt)
    assert relative(timed, offline(model, x, dt)) < LIMIT


@each_device
@each_layer
def test_streams_of_a_batch_are_their_own(name: str, device: str) -> None:
    model = backbone(name, device, pool="none")
    session, other = StreamingSession(model, 3, 4), StreamingSession(model, 1, 4)
    x, z = torch.randn(3, 16, 5, device=device), torch.randn(1, 8, 5, device=device)
    cuts = [slice(4 * i, 4 * i + 4) for i in range(4)]
    first = session.push(x[:, cuts[0]])
    between = [other.push(z[:, :4])]  # two sessions of one model, in turns
    second = session.push(x[:, cuts[1]].clone().fill_(float("nan")), active=[False, False, False])
    assert second.shape == first.shape
    second = session.push(x[:, cuts[1]], active=[True, False, True])  # stream 1 pauses
    between.append(other.push(z[:, 4:]))
    session.reset([False, False, True])
    third = session.push(x[:, cuts[2]], lengths=[4, 4, 3])
    fourth = session.push(x[:, cuts[3]])
    alone = [
        x[:1],
        torch.cat((x[1:2, :4], x[1:2, 8:]), 1),
        torch.cat((x[2:, 8:11], x[2:, 12:]), 1),
    ]
    seen = [
        torch.cat((first[:1], second[:1], third[:1], fourth[:1]), 1),
        torch.cat((first[1:2], third[1:2], fourth[1:2]), 1),
        torch.cat((third[2:, :3], fourth[2:]), 1),
    ]
    for found, row in zip(seen, alone, strict=True):
        assert relative(found, offline(model, row)) < LIMIT
    assert relative(torch.cat(between, 1), offline(model, z)) < LIMIT


@each_device
@each_layer
def test_a_reset_stream_equals_a_fresh_one_bit_for_bit(name: str, device: str) -> None:
    for model in (small_model(kind, name).to(device) for kind in MODELS):
        x = torch.randn(2, 64, model.spec.d_input, device=device)
        used, fresh = StreamingSession(model, 2, 32), StreamingSession(model, 2, 32)
        used.push(x[:, :32])
        used.reset([False, True])
        assert torch.equal(used.push(x[:, 32:])[1], fresh.push(x[:, 32:])[1])


@each_device
@each_layer
def test_two_sessions_of_a_model_in_turns(name: str, device: str) -> None:
    for model in (small_model(kind, name).to(device) for kind in MODELS):
        signals = torch.randn(2, 1, 96, model.spec.d_input, device=device)
        sessions = [StreamingSession(model, 1, 32) for _ in signals]
        turns = [
            [s.push(x[:, i : i + 32]) for s, x in zip(sessions, signals, strict=True)] for i in (0, 32, 64)
        ]
        for x, parts in zip(signals, zip(*turns, strict=True), strict=True):
            found = torch.cat(parts, 1) if parts[0].ndim == 3 else parts[-1]
            assert relative(found, offline(model, x)) < LIMIT


@each_device
def test_warm_up_leaves_no_trace(device: str) -> None:
    for model in (small_model(name, "rglru").to(device) for name in MODELS):
        model.train()
        session, cold = StreamingSession(model), StreamingSession(model)
        before = session.state()
        session.warm_up()
        assert model.training
        assert all(torch.equal(value, before[name]) for name, value in session.state().items())
        x = torch.randn(1, session.chunk, model.spec.d_input, device=device)
        assert torch.equal(session.push(x), cold.push(x))


def test_a_session_keeps_the_weights_that_it_began_with() -> None:
    model = small_model("unet", "s5")
    x = torch.randn(1, 64, 3)
    session = StreamingSession(model, chunk=32)
    expected = offline(model, x)
    first = session.push(x[:, :32])
    model.to(torch.float64)  # as a move to another device, it gives the old memory back
    assert relative(torch.cat((first, session.push(x[:, 32:])), 1), expected) < LIMIT


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize(("name", "timed"), [(n, t) for n in LAYERS for t in {False, LAYERS[n].uses_dt}])
@pytest.mark.parametrize("chunk", [1, 7, LONG])
def test_a_graph_equals_no_graph_bit_for_bit(name: str, chunk: int, timed: bool) -> None:
    model = backbone(name, "cuda", pool="none")
    with_graph, without = StreamingSession(model, 2, chunk), StreamingSession(model, 2, chunk, graph=False)
    for _ in range(3):
        x, dt = torch.randn(2, chunk, 5), torch.rand(2, chunk) if timed else None
        assert torch.equal(with_graph.push(x, dt), without.push(x, dt))
    assert without.graph_reason == "switched off"
    # until it has converged, which the host has to see
    iterates = hasattr(LAYERS[name].Config, "max_iterations") and chunk > 1
    assert ("synchroniz" in with_graph.graph_reason) if iterates else not with_graph.graph_reason
    torch.rand(3, device="cuda")  # fails after a capture that broke off


def test_saved_streams_go_on_in_another_process(tmp_path: Path) -> None:
    """The other process builds the same models from the same seed and pushes the second half."""
    script = tmp_path / "other.py"
    script.write_text(
        f"import sys, torch\nfrom pathlib import Path\nsys.path.insert(0, {str(ROOT)!r})\n"
        "from tests.streaming.test_session import StreamingSession, saved_models\n"
        "for i, model in enumerate(saved_models()):\n"
        "    session = StreamingSession(model, 2, 20)\n"
        "    session.load(Path(f'{i}.safetensors'))\n"
        "    torch.save(session.push(torch.load(f'x{i}.pt')), f'y{i}.pt')\n"
    )
    expected = []
    for i, model in enumerate(saved_models()):
        x = torch.randn(2, 40, model.spec.d_input)
        session = StreamingSession(model, 2, 20)
        session.push(x[:, :20])
        session.save(tmp_path / f"{i}.safetensors")
        torch.save(x[:, 20:], tmp_path / f"x{i}.pt")
        expected.append(session.push(x[:, 20:]))
    path = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, env=path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for i, y in enumerate(expected):
        assert relative(torch.load(tmp_path / f"y{i}.pt"), y) < 1e-6


def saved_models() -> list[Model]:
    torch.manual_seed(3)
    return [small_model(name, layer) for layer in LAYERS for name in MODELS]


def test_a_stream_moves_to_another_slot() -> None:
    model = backbone("s6", pool="mean")
    x = torch.randn(3, 30, 5)
    here, there = StreamingSession(model, 3, 10), StreamingSession(model, 2, 10)
    here.push(x[:, :10])
    there.push(torch.randn(2, 10, 5))
    there.load_state(here.state([2]), [0])
    expected = here.push(x[:, 10:20])
    assert relative(there.push(x[1:, 10:20].flip(0))[:1], expected[2:]) < 1e-6
    here.load_state(here.state([2, 0, 1]), [2, 0, 1])
    assert relative(here.push(x[:, 20:]), offline(model, x)) < LIMIT


def test_what_does_not_fit_is_said() -> None:
    model = small_model("unet")
    session = StreamingSession(model, 2)
    for mistake, hint in [
        (lambda: StreamingSession(model, chunk=0), "at least 1"),
        (lambda: StreamingSession(backbone("lru", bidirectional=True)), "direction"),
        (lambda: session.push(torch.zeros(1, 32, 3)), r"expected \(2, T ≥ 1, 3\)"),
        (lambda: session.push(torch.zeros(2, 32, 3), torch.ones(2, 32)), "evenly"),
        (lambda: session.push(torch.zeros(2, 32, 3), active=[True]), "one entry"),
        (lambda: session.push(torch.zeros(2, 33, 3), active=[True, False]), "whole hops"),
        (lambda: session.push(torch.zeros(2, 32, 3), lengths=[33, 32]), "expected 0 to 32"),
        (lambda: session.push(torch.zeros(2, 32, 3), lengths=[32, -1]), "expected 0 to 32"),
        (lambda: session.push(torch.zeros(2, 32, 3), lengths=[32]), "an integer for each of 2"),
        (lambda: session.push(torch.zeros(2, 32, 3), lengths=torch.ones(2)), "an integer for each of 2"),
        (lambda: session.load_state(StreamingSession(model, 3).state()), "2 streams"),
        (lambda: session.load(Path("nowhere")), "nowhere"),
    ]:
        with pytest.raises(StreamError, match=hint):
            mistake()
    session.push(torch.zeros(2, 33, 3))
    with pytest.raises(StreamError, match="reset single"):
        session.reset([True, False])
    session.reset()
    session.reset([True, False])
