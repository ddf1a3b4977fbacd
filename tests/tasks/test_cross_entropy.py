"""Cross-entropy a part of the rows at a time: values, gradients, precision, memory."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lrnnx_app.registry import MODELS
from lrnnx_app.spec import Batch, DataSpec
from lrnnx_app.tasks import predict
from lrnnx_app.tasks._cross_entropy import cross_entropy
from lrnnx_app.tasks.predict import Predict
from tests.helpers import relative, small

WORDS, D = 37, 6
SHAPE = (3, 8)


class Capped(nn.Module):
    """A readout with a soft cap."""

    def __init__(self, words: int = WORDS) -> None:
        super().__init__()
        self.head = nn.Linear(D, words)

    def forward(self, x: Tensor) -> Tensor:
        return 3 * torch.tanh(self.head(x) / 3)


def operands(words: int = WORDS, rows: int = 24, dtype: torch.dtype = torch.float64) -> tuple[Any, ...]:
    features = torch.randn(rows, D, dtype=dtype, requires_grad=True)
    return Capped(words).to(dtype), features, torch.randint(words, (rows,)), torch.rand(rows) > 0.3


def plain(readout: Any, x: Tensor, y: Tensor, valid: Tensor | None) -> Tensor:
    """The same errors, of all logits."""
    errors = nn.functional.cross_entropy(readout(x), y, reduction="none")
    return errors if valid is None else torch.where(valid, errors, 0)


def gradients(loss: Tensor, leaves: Sequence[Tensor]) -> list[Tensor]:
    return list(torch.autograd.grad(loss, leaves))


@pytest.mark.parametrize("rows", [1, 7, 24, 100])
@pytest.mark.parametrize("masked", [True, False])
def test_value_and_gradients_are_those_of_all_logits(rows: int, masked: bool) -> None:
    readout, x, y, valid = operands()
    valid, other = valid if masked else None, nn.Parameter(torch.ones(2))
    leaves = [x, *readout.parameters()]
    expected = plain(readout, x, y, valid)
    total, errors = cross_entropy(readout, x, y, valid, [*readout.parameters(), other], rows)
    assert relative(errors, expected) < 1e-14
    assert relative(total, expected.sum()) < 1e-14
    assert not errors.requires_grad
    pairs = zip(gradients(5 * total, leaves), gradients(5 * expected.sum(), leaves), strict=True)
    assert max(relative(a, b) for a, b in pairs) < 1e-13


def test_gradients_are_those_of_differences() -> None:
    readout, x, y, valid = operands(rows=5)
    weight = readout.head.weight

    def loss(x: Tensor, weight: Tensor) -> Tensor:
        def read(part: Tensor) -> Tensor:
            return torch.tanh(part @ weight.T)

        return cross_entropy(read, x, y, valid, [weight], 2)[0].square()

    assert torch.autograd.gradcheck(loss, (x, weight))


@pytest.mark.parametrize("frozen", ["x", "head.weight", "both"])
def test_what_is_frozen_gets_no_gradient(frozen: str) -> None:
    readout, x, y, valid = operands()
    for name, leaf in (("x", x), *readout.named_parameters()):
        leaf.requires_grad_(not (name == frozen or frozen == "both"))
    total, _ = cross_entropy(readout, x, y, valid, list(readout.parameters()), 7)
    leaves = [leaf for leaf in (x, *readout.parameters()) if leaf.requires_grad]
    assert total.requires_grad == bool(leaves) == (frozen != "both")
    pairs = zip(
        gradients(total, leaves) if leaves else [],
        gradients(plain(readout, x, y, valid).sum(), leaves) if leaves else [],
        strict=True,
    )
    assert all(relative(a, b) < 1e-13 for a, b in pairs)


def test_narrow_numbers_are_as_near_as_with_all_logits() -> None:
    """Under autocast, where gradients of parts are added up in float32."""
    readout, x, y, valid = operands(words=500, rows=200)
    leaves = [x, *readout.parameters()]
    exact = gradients(plain(readout, x, y, valid).sum(), leaves)
    narrow, z = Capped(500), x.detach().float().requires_grad_()
    narrow.load_state_dict(readout.state_dict())
    leaves = [z, *narrow.parameters()]
    with torch.autocast("cpu", torch.bfloat16):
        usual = plain(lambda x: narrow(x).float(), z, y, valid).sum()
        total, errors = cross_entropy(narrow, z, y, valid, list(narrow.parameters()), 16)
    assert errors.dtype == total.dtype == torch.float32
    theirs, ours = gradients(usual, leaves), gradients(total, leaves)
    for a, b, c in zip(ours, theirs, exact, strict=True):
        assert a.dtype == torch.float32
        assert relative(a.double(), c) < 1.2 * relative(b.double(), c)


def text_model(name: str, words: int, **options: Any) -> Predict:
    config = MODELS.config(name, d_model=D, depth=1, layer=small("lru"), **options)
    config.name = name
    return Predict(Predict.Config(), config, DataSpec(words, words, tokens=True, target="step"))


FORMS: dict[str, Callable[[int], Predict]] = {
    "backbone": partial(text_model, "backbone", pool="none"),
    "tied and capped": partial(text_model, "language", soft_cap=3.0),
}


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("padded", [True, False])
def test_a_task_has_the_loss_and_gradients_of_its_output(
    form: str, padded: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(predict, "AT_ONCE", 5 * WORDS)
    task = FORMS[form](WORDS).double()
    reset = None if padded else torch.rand(SHAPE) > 0.7
    lengths = torch.tensor([8, 3, 5]) if padded else None
    batch = Batch(torch.randint(WORDS, SHAPE), torch.randint(WORDS, SHAPE), lengths, reset=reset)
    total, errors, output = task.errors_of(batch)
    expected = task.errors_from(task.model(batch.x, **batch.rows._asdict())[0].double(), batch)
    assert output is None
    assert relative(errors, expected) < 1e-6  # which is made in float32
    leaves = list(task.model.parameters())
    pairs = zip(gradients(total, leaves), gradients(expected.sum(), leaves), strict=True)
    assert max(relative(a, b) for a, b in pairs) < 1e-5


class Largest(TorchDispatchMode):
    """The most numbers in any tensor that an operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        sizes = [t.numel() for t in tree_leaves(made) if isinstance(t, Tensor)]
        self.numbers = max(self.numbers, *sizes, 0)
        return made


@pytest.mark.parametrize("form", FORMS)
def test_the_logits_of_all_rows_never_exist(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = 100 * WORDS
    task = FORMS[form](words)
    x, y = torch.randint(words, (2, *SHAPE))
    weights = max(p.numel() for p in task.model.parameters())
    found = {}
    for at_once in (words * 8, words * x.numel()):
        monkeypatch.setattr(predict, "AT_ONCE", at_once)
        with Largest() as largest:
            task.errors_of(Batch(x, y))[0].backward()
        found[at_once] = largest.numbers
        assert largest.numbers <= max(at_once, weights)
    few, many = found.values()
    assert few < many == x.numel() * words
