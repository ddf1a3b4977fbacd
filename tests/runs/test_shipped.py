"""The trained models that come with lrnnx do what their guide says."""

import pytest
import torch

from lrnnx_app.bench import _peers, denoisers
from lrnnx_app.registry import trained
from lrnnx_app.runs.run import load
from lrnnx_app.streaming.session import StreamingSession

LEAST = {
    "denoise": 5.0,
    "denoise_small": 3.5,
}  # dB that the embedded test clips gain at 5 dB; measured 5.4, 4.7


def test_they_are_small() -> None:
    assert sum(path.stat().st_size for path in trained().values()) < 4e6


@pytest.mark.parametrize("name", trained())
def test_a_denoiser_helps_and_does_no_harm(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoisers, "SNRS", (5, 5))
    monkeypatch.setattr(denoisers, "CHECKED", 2)
    monkeypatch.setattr(denoisers, "LEVELS", (-40, 10))
    clips = denoisers.mixtures(None, 1)
    (row, _), *_ = denoisers.rows([next(_peers.ours(name))], clips)
    assert row["SI-SNR"] > LEAST[name]
    assert row["levels ± dB"] < 0.1
    assert row["clean SI-SNR"] > 30  # of voices like those of the training
    assert abs(row["clean level dB"]) < 1
    assert row["silence dB"] == denoisers.QUIETEST
    assert abs(row["offset dB"]) < 1
    assert row["latency ms"] == 32


@pytest.mark.parametrize("name", trained())
def test_what_is_no_number_is_gone_after_its_hop(name: str) -> None:
    session, hop = StreamingSession(load(name)), 256
    x = 0.1 * torch.randn(1, 6 * hop, 1)
    x[0, 2 * hop + 5] = float("nan")
    heard = torch.cat([session.push(part) for part in x.split(hop, 1)], 1)
    assert heard.isfinite().all()
    assert not heard[0, 2 * hop : 3 * hop].any()
    assert heard[0, 3 * hop :].view(-1, hop).any(1).all()
