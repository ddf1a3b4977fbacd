"""What each of four processes does for test_sequence: layers on its part of time, beside the whole sequence.

It imports little, since four processes import it.
"""

from copy import deepcopy
from pathlib import Path

import torch
from torch import Tensor, distributed
from torch.utils.checkpoint import checkpoint

from lrnnx_app.layers._base import Layer
from lrnnx_app.layers._bidirectional import carried
from lrnnx_app.layers._build import build_layer
from lrnnx_app.layers._examples import examples
from lrnnx_app.layers._relay import Relay, relayed, twice
from lrnnx_app.registry import LAYERS
from lrnnx_app.spec import Rows

PROCESSES, BATCH, TIME, WIDTH = 4, 3, 43, 8  # parts of 10, 11, 11 and 11 steps
LIMITS = {torch.float64: 1e-12, torch.float32: 1e-6}
CASES = [(case, False) for name in LAYERS for case in examples(name)[:2]]
CASES += [(examples(name)[0], True) for name in LAYERS]


def rows(layer: Layer, kind: str, dtype: torch.dtype) -> Rows:
    """Rows of one sequence each; or that end early, one in the first part; or of several sequences, some of
    which begin and end at borders of parts."""
    generator = torch.Generator().manual_seed(2)
    dt = torch.rand(BATCH, TIME, generator=generator).to(dtype) + 0.1
    try:
        layer.check_dt(dt)
    except ValueError:  # this one takes even samples alone
        dt = None
    if kind == "even":
        return Rows()
    if kind == "padded":
        return Rows(dt, torch.tensor([TIME, 25, 7]))
    reset = torch.zeros(BATCH, TIME, dtype=torch.bool)
    reset[0, [5, 10, 30, 31]] = reset[1, [21, 22]] = reset[2, [9, 32]] = True
    return Rows(dt, torch.tensor([TIME, TIME, 40]), reset)


def results(module, x: Tensor, run) -> list[Tensor]:
    """The loss of a module, and its gradients by x and the parameters."""
    x, weight = x.clone().requires_grad_(), torch.linspace(-1, 1, TIME, dtype=x.dtype)[:, None]
    module.zero_grad()
    loss = run(module, x, weight)
    loss.backward()
    leaves = [x, *module.parameters()]
    return [loss.detach(), *(torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in leaves)]


def layer_whole(layer, rows):
    def run(layer, x, weight):
        return (rows.unpadded(carried(layer, x, None, rows)[0]) * weight).square().sum()

    return run


def layer_part(relay):
    """Twice in the case of packed rows: the second time in the backward pass."""

    def run(layer, x, weight):
        part = layer, relay.of(x), None, relay.own
        with relayed(relay):
            if relay.rows.reset is None:
                y, _ = carried(*part)
            else:
                y, _ = checkpoint(carried, *part, use_reentrant=False, context_fn=twice)
        return (relay.own.unpadded(y) * relay.of(weight[None])).square().sum()

    return run


def joined(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def apart(value: Tensor, exact: Tensor) -> float:
    return float((value - exact).norm() / exact.norm().clamp_min(1e-30))


def checked(rank: int, folder: str) -> None:
    """In one of the processes: the largest difference of every case, relative to its limit."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=PROCESSES)
    ranks = list(range(PROCESSES))
    wrong, bytes_sent = [], {}
    for dtype, limit in LIMITS.items():
        for case, both in CASES:
            for kind in ("padded", "packed") if both else ("even", "padded", "packed"):
                torch.manual_seed(0)
                layer = build_layer(case.name, WIDTH, LAYERS.config(case.name, **case.options), both).to(
                    dtype
                )
                x = torch.randn(BATCH, TIME, WIDTH, dtype=dtype)
                given = rows(layer, kind, dtype)
                wanted = results(layer, x, layer_whole(layer, given))
                relay = Relay(given, BATCH, TIME, ranks, None, x.device)
                found = results(layer, x, layer_part(relay))
                relay.finish()
                names = ["loss", "x", *(name for name, _ in layer.named_parameters())]
                for value in found:
                    distributed.all_reduce(value)
                if dtype == torch.float32:
                    names = ["loss", "gradients"]
                    precise = given._replace(dt=None if given.dt is None else given.dt.double())
                    exact = results(deepcopy(layer).double(), x.double(), layer_whole(layer, precise))
                    found, wanted, exact = ([z[0], joined(z[1:])] for z in (found, wanted, exact))
                else:
                    exact = wanted
                for name, *three in zip(names, found, wanted, exact, strict=True):
                    value, one = apart(three[0], three[2]), apart(three[1], three[2])
                    if not value < max(limit, 2 * one):  # one: how far a single process is
                        wrong.append(f"{case} both={both} {kind} {dtype} {name}: {value:.1e}, not {one:.1e}")
                bytes_sent[f"{case.name} both={both}"] = relay.sent
    if rank == 1:
        Path(folder, "found").write_text("\n".join(wrong))
        Path(folder, "sent").write_text("\n".join(f"{name}: {sent}" for name, sent in bytes_sent.items()))
    distributed.destroy_process_group()
