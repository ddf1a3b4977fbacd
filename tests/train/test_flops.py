"""Time steps per second, and the share of a device's peak that a model's own operations reach."""

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lrnnx_app import recipe
from lrnnx_app.registry import MODELS
from lrnnx_app.spec import Batch, DataSpec
from lrnnx_app.train import fit, flops
from lrnnx_app.train.progress import Bar
from tests.helpers import DENOISE, TINY, small, small_model

B, T, D, N, WORDS = 3, 16, 8, 12, 20


def text_model(layer: str, **options: int) -> torch.nn.Module:
    config = MODELS.config("backbone", d_model=D, depth=2, pool="none", layer=small(layer, **options))
    return MODELS["backbone"](DataSpec(WORDS, WORDS, tokens=True), config)


def test_operations_are_those_by_hand() -> None:
    """Of a step: the head, and for each block a gate, and what the layer multiplies, forward and backward."""
    x = torch.randint(WORDS, (B, T))
    model, layer = text_model("lru", d_state=N), 2 * (2 * N * D + 2 * N * D)  # complex B and C
    per_step = 2 * D * WORDS + 2 * (2 * D * D + layer)
    assert flops.of_step(model, Batch(x, x)) == 3 * per_step
    padded = Batch(x, x, lengths=torch.tensor([T // 2, 1, 2]))
    assert flops.of_step(model, padded) == 2 * 3 * per_step  # the padding is computed, and is no step


@pytest.mark.parametrize(("layer", "each"), [("s6", 6), ("gla", 6), ("gated_deltanet", 8)])
def test_fused_scans_count_and_random_numbers_stay(layer: str, each: int) -> None:
    x = torch.randn(B, T, 3)
    model = small_model("backbone", layer, dropout=0.5).train()
    before = torch.get_rng_state()
    counted = flops.of_step(model, Batch(x, x))
    assert torch.equal(torch.get_rng_state(), before)
    scans, flops.SCANS = flops.SCANS, {}
    try:
        without = flops.of_step(model, Batch(x, x))
    finally:
        flops.SCANS = scans
    states = model.blocks[0].layer.init_state(1).h.numel()
    assert states
    assert counted - without == 3 * 2 * each * states


@pytest.mark.parametrize(
    ("name", "precision", "expected"),
    [
        ("NVIDIA H200", "bf16-mixed", 989e12),
        ("NVIDIA H200", "32-true", 67e12),
        ("NVIDIA H100 PCIe", "16-mixed", 756e12),
        ("NVIDIA H100 80GB HBM3", "bf16-true", 989e12),
        ("NVIDIA A100-SXM4-80GB", "bf16-mixed", 312e12),
        ("NVIDIA L40S", "bf16-mixed", 362e12),
        ("NVIDIA L4", "bf16-mixed", 121e12),
        ("NVIDIA A100-SXM4-80GB", "64-true", None),
        ("Another 100", "bf16-mixed", None),
    ],
)
def test_peaks_are_of_known_devices(
    name: str, precision: str, expected: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert flops.peak(torch.device("cuda"), precision) == expected
    assert flops.peak(torch.device("cpu"), precision) is None


def test_a_training_logs_its_rates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flops, "peak", lambda device, precision: 1e9)
    _, summary = fit.train(
        recipe.load("digits_lru", [*TINY, "trainer.max_steps=3", "trainer.log_every=1"]), tmp_path / "digits"
    )
    rates = summary["samples_per_second"], summary["time_steps_per_second"]
    assert rates[1] == pytest.approx(64 * rates[0], rel=1e-3)
    assert summary["model_flop_utilization"] > 0
    heads = (tmp_path / "digits" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"time_steps_per_second", "model_flop_utilization"} <= set(heads)
    monkeypatch.setattr(flops, "peak", lambda device, precision: None)
    _, summary = fit.train(recipe.load(DENOISE[0], DENOISE[1:]), tmp_path / "denoise")
    assert summary["time_steps_per_second"] > 100 * summary["samples_per_second"]
    assert "model_flop_utilization" not in summary


@pytest.mark.parametrize("tokens", [True, False])
def test_the_bar_has_the_rate_of_its_data(tokens: bool) -> None:
    rates = {"samples_per_second": 2.0, "time_steps_per_second": 9.0, "model_flop_utilization": 0.3}
    trainer = SimpleNamespace(progress_bar_metrics={"train/loss": 1.0, "train/accuracy": 2.0, **rates})
    shown = Bar().get_metrics(trainer, SimpleNamespace(spec=DataSpec(2, 2, tokens=tokens)))
    assert shown == {"loss": 1.0, **({"tokens/s": 9.0} if tokens else {"samples/s": 2.0}), "MFU": 0.3}
