"""Denoising: clean samples from noisy ones, judged by the scale-invariant signal-to-noise ratio.

PESQ and STOI, which estimate what listeners would say, need an extra: pip install 'lrnnx-app[audio-metrics]'.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lrnnx_app.spec import Batch, DataSpec
from lrnnx_app.tasks._base import Task

EXAMPLES = 3  # test clips kept for pictures and sounds
FFT = 512
COMPRESSION = 0.3  # exponent on magnitudes, so that quiet bins count


class Denoise(Task):
    """Loss: −SI-SNR in dB plus `spectral` times the distance of compressed magnitudes.

    Metrics: SI-SNR in dB of the noisy input and of the output, and its improvement; means over clips. A test
    also gives the standard error of the improvement, and PESQ and STOI of input and output, if their packages
    are installed and support the sampling rate.
    """

    monitor = "valid/si_snr_improvement"
    mode = "max"
    targets = ("step",)
    inference = "audio"
    next_words = "lrnnx infer {run} NOISY.wav -o CLEAN.wav"

    window: Tensor

    @dataclass
    class Config(Task.Config):
        spectral: float = 1.0  # weight of the distance of spectra in the loss, beside −SI-SNR in dB

    def __init__(self, config: Config, model_config: Any, spec: DataSpec) -> None:
        super().__init__(config, model_config, spec)
        self.examples: list[tuple[str, Tensor, Tensor, Tensor]] = []
        self.register_buffer("window", torch.hann_window(FFT), persistent=False)

    def meters(self) -> None:
        from torchmetrics import CatMetric

        from lrnnx_app.tasks._perceptual import Perceptual

        self.noisy, self.denoised = CatMetric(), CatMetric()
        self.heard = Perceptual(self.spec.sample_rate)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        estimate, target = self._waves(batch)
        score = si_snr(estimate, target).mean()
        loss = -score + self.config.spectral * self._spectral_distance(estimate, target)
        before = si_snr(batch.x[..., 0], target).mean()
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch.x))
        self.log(
            "train/si_snr_improvement", (score - before).detach(), prog_bar=True, batch_size=len(batch.x)
        )
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._score(batch)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        for row in self._score(batch):
            self.heard.update(*row[1:])
            if len(self.examples) < EXAMPLES:
                self.examples.append(row)

    def on_test_epoch_start(self) -> None:
        self.examples.clear()
        self.heard.reset()

    def on_validation_epoch_end(self) -> None:
        self._log_scores("valid")

    def on_test_epoch_end(self) -> None:
        self._log_scores("test")
        for key, value in self.heard.compute().items():
            self.log(f"test/{key}", value)
        self.heard.reset()

    def details(self) -> dict[str, Any]:
        return {"not_computed": self.heard.absent} if self.heard.absent else {}

    def figures(self) -> Iterator[tuple[str, Any]]:
        from lrnnx_app.plots import spectrograms

        for index, (name, noisy, denoised, clean) in enumerate(self.examples):
            panels = {"noisy": noisy, "denoised": denoised, "clean": clean}
            yield f"spectrogram_{index}_{name}", spectrograms(panels, self.spec.sample_rate)

    def sounds(self) -> Iterator[tuple[str, Tensor]]:
        for index, (name, noisy, denoised, clean) in enumerate(self.examples):
            yield f"{index}_{name}/noisy", noisy
            yield f"{index}_{name}/denoised", denoised
            yield f"{index}_{name}/clean", clean

    def _waves(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Estimate and target (B, T), float32."""
        estimate, _ = self.model(batch.x, **batch.rows._asdict())
        return estimate[..., 0].float(), batch.y[..., 0]

    def _spectral_distance(self, estimate: Tensor, target: Tensor) -> Tensor:
        def magnitudes(wave: Tensor) -> Tensor:
            spectrum = torch.stft(wave, FFT, FFT // 2, window=self.window, return_complex=True)
            return (spectrum.abs() + 1e-8) ** COMPRESSION

        return (magnitudes(estimate) - magnitudes(target)).square().mean()

    def _score(self, batch: Batch) -> list[tuple[str, Tensor, Tensor, Tensor]]:
        """Add each clip, without its padding, to the metrics; returns (name, noisy, denoised, clean) rows."""
        estimate, target = self._waves(batch)
        rows = []
        for index, name in enumerate(batch.names):
            end = None if batch.lengths is None else int(batch.lengths[index])
            noisy, denoised, clean = (w[index, :end] for w in (batch.x[..., 0], estimate, target))
            self.noisy.update(si_snr(noisy, clean))
            self.denoised.update(si_snr(denoised, clean))
            rows.append((name, noisy.cpu(), denoised.cpu(), clean.cpu()))
        return rows

    def _log_scores(self, split: str) -> None:
        noisy, denoised = (
            torch.as_tensor(metric.compute()).reshape(-1) for metric in (self.noisy, self.denoised)
        )
        gain = denoised - noisy
        values = {"si_snr_noisy": noisy.mean(), "si_snr": denoised.mean(), "si_snr_improvement": gain.mean()}
        if split == "test" and len(gain) > 1:
            values["si_snr_improvement_stderr"] = gain.std() / len(gain) ** 0.5
        for key, value in values.items():
            self.log(f"{split}/{key}", value, prog_bar=key == "si_snr_improvement")
        self.noisy.reset()
        self.denoised.reset()


def si_snr(estimate: Tensor, target: Tensor) -> Tensor:
    """The scale-invariant signal-to-noise ratio of each row (…, T), in dB."""
    from torchmetrics.functional.audio import scale_invariant_signal_noise_ratio

    return scale_invariant_signal_noise_ratio(estimate, target)
