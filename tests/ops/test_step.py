"""One step of a recurrence as one operator, against its definition, and what layers make of it."""

import itertools

import pytest
import torch

from lrnnx_app.ops import planar
from lrnnx_app.ops.step import CODES, diagonal_step, reference

TOLERANCE = {torch.float64: 1e-13, torch.float32: 1e-5, torch.float16: 3e-3, torch.bfloat16: 2e-2}


def operands(planes, groups, n, batch=3, dtype=torch.float64, contracted=True):
    """Operands of one step with a state, an eigenvalue in the left half plane, and everything optional."""
    number = (groups, planes, n)
    lam = torch.randn(number, dtype=torch.float64)
    lam[:, 0].abs_().neg_()
    given = {
        "v": torch.randn(batch, groups) if contracted else torch.randn(batch, *number),
        "h": torch.randn(batch, *number),
        "a": lam,
        "gain": torch.randn(batch, 1, planes, n),
        "c": torch.randn(number) if contracted else None,
        "direct": torch.randn(groups) if contracted else None,
        "step": torch.randn(batch, groups, 1),
        "dt": torch.rand(batch) + 0.1,
        "gate": torch.randn(batch, groups) if contracted else None,
    }
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return {k: x if x is None else x.to(dtype if k in ("v", "gate") else wide) for k, x in given.items()}


def check(given, device, dtype, **options):
    on_device = {k: x if x is None else x.to(device) for k, x in given.items()}
    got = diagonal_step(**on_device, **options)
    precise = [None if given.get(k) is None else given[k].double() for k in ORDER]
    rule = options.get("rule")
    wanted = reference(*precise, -1 if rule is None else CODES[rule], options.get("softplus", False))
    for a, b in zip(got, wanted, strict=True):
        assert a.shape == b.shape
        assert (a.double().cpu() - b).norm() <= TOLERANCE[dtype] * b.norm()


ORDER = ("v", "h", "a", "gain", "c", "direct", "step", "dt", "gate")


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("rule", [None, *CODES])
@pytest.mark.parametrize("planes", [1, 2])
def test_equals_the_definition(device, planes, rule, dtype):
    for (groups, n), contracted in itertools.product(((5, 1), (3, 16), (2, 37), (70, 1)), (True, False)):
        given = operands(planes, groups, n, dtype=dtype, contracted=contracted)
        if rule is None:
            given |= {"a": given["a"] / 4, "step": None, "dt": None}
            check(given, device, dtype)
        else:
            check(given, device, dtype, rule=rule, softplus=True)


@pytest.mark.parametrize("planes", [1, 2])
def test_what_is_left_out(device, planes):
    given = operands(planes, 4, 6) | {"gain": None, "direct": None, "dt": None, "gate": None, "step": None}
    check(given, device, torch.float64, rule="zoh")
    check(given | {"c": None}, device, torch.float64, rule="euler")


@pytest.mark.parametrize("n", [16, 5])
@pytest.mark.parametrize("alike", [True, False], ids=["one step", "a step for each state"])
def test_more_than_a_gpu_runs_at_once(device, alike, n):
    """So that lanes have several states each, the last of which may be missing."""
    given = operands(1, 512, n, batch=64)
    given["step"] = given["step"] if alike else torch.randn(64, 512, n, dtype=torch.float64)
    check(given, device, torch.float64, rule="zoh", softplus=True)


def test_states_in_another_order(device):
    """Planes outside of groups, as banks keep them: read where they lie, and returned alike."""
    given = operands(2, 5, 6)
    state = given["h"].movedim(1, 2).contiguous()
    given["h"] = state.movedim(1, 2)
    check(given, device, torch.float64, rule="zoh")
    moved = {k: x.to(device) for k, x in given.items()} | {"h": state.to(device).movedim(1, 2)}
    assert diagonal_step(**moved, rule="zoh")[1].movedim(1, 2).is_contiguous()


def test_gradients():
    given = {k: x.requires_grad_() for k, x in operands(2, 2, 3).items()}

    def run(*z):
        return diagonal_step(**dict(zip(given, z, strict=True)), rule="bilinear", softplus=True)

    assert torch.autograd.gradcheck(run, tuple(given.values()))


def test_one_step_from_rest_without_input_is_the_coefficient(device):
    given = operands(2, 3, 4)
    a = given["a"].to(device)
    h = planar.one(a).expand(1, 3, 2, 4).contiguous()
    _, after = diagonal_step(torch.zeros(1, 3, dtype=a.dtype, device=device), h, a, rule="zoh")
    torch.testing.assert_close(after[0], planar.exp(a))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # raised inside opcheck itself
def test_opcheck(device):
    given = [x.to(device) for x in operands(2, 3, 5).values()]
    torch.library.opcheck(torch.ops.lrnnx.diagonal_step.default, (*given, CODES["zoh"], True))
