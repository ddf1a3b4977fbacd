"""Shared helpers of the tests."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def relative(value: torch.Tensor, expected: torch.Tensor) -> float:
    """‖value − expected‖ / ‖expected‖."""
    difference, size = (float(x.detach().norm()) for x in (value - expected, expected))
    return difference / max(size, 1e-300)
