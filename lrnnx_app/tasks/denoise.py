"""Denoising: clean samples from noisy ones, trained on compressed spectra, judged by SI-SNR.

PESQ and STOI, which estimate what listeners would say, need an extra: pip install 'lrnnx-app[audio-metrics]'.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from lrnnx_app.errors import RecipeError
from lrnnx_app.spec import Batch, DataSpec
from lrnnx_app.tasks._audible import RATE, Audible
from lrnnx_app.tasks._base import Task

EXAMPLES = 3  # test clips kept for pictures and sounds
SIZES = (256, 512, 1024)  # samples of the frames whose spectra are compared
PHASE = 0.3  # share of the distance that depends on phases
COMPRESSION = 0.3  # exponent on magnitudes, so that quiet bins count
TINY = 1e-5  # added to powers, where the mean square of the noisy wave is 1
HIGHEST = 40.0  # dB, of an SNR that counts in the loss


class Denoise(Task):
    """Loss: the distance of compressed spectra from those of the clean wave, −SNR and −SI-SNR in dB.

    Spectra of three lengths count, with and without phases. Both waves are first divided by the level of the
    noisy one, so that loud and quiet examples weigh alike. Examples without speech have no SNR. The SNR grows
    up to 40 dB; unlike the SI-SNR it punishes a wrong level. `audible` adds what PESQ rests on.

    Metrics: SI-SNR in dB of the noisy input and of the output, and its improvement; means over clips. A test
    also gives the standard error of the improvement, and PESQ and STOI of input and output, if their packages
    are installed and support the sampling rate.
    """

    monitor = "valid/si_snr_improvement"
    mode = "max"
    targets = ("step",)
    inference = "audio"
    next_words = "lrnnx infer {run} NOISY.wav -o CLEAN.wav"

    @dataclass
    class Config(Task.Config):
        spectral: float = 100.0  # weight of the distance of compressed spectra in the loss
        snr: float = 0.1  # weight of −SNR in dB in the loss
        si_snr: float = 0.0  # weight of −SI-SNR in dB in the loss
        audible: float = 0.0  # weight of how different the voices sound, at 16 kHz alone

    def __init__(self, config: Config, model_config: Any, spec: DataSpec) -> None:
        super().__init__(config, model_config, spec)
        self.examples: list[tuple[str, Tensor, Tensor, Tensor]] = []
        if config.audible and spec.sample_rate != RATE:
            raise RecipeError(f"task.audible: expected sound at {RATE} Hz, or 0, not {spec.sample_rate} Hz")
        self.audible = Audible() if config.audible else None
        for size in SIZES:
            self.register_buffer(f"window_{size}", torch.hann_window(size), persistent=False)

    def meters(self) -> None:
        from torchmetrics import CatMetric

        from lrnnx_app.tasks._perceptual import Perceptual

        self.noisy, self.denoised = CatMetric(), CatMetric()
        self.heard = Perceptual(self.spec.sample_rate)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        estimate, target = self._waves(batch)
        noisy, spoken = batch.x[..., 0], target.square().sum(-1) > 0
        before, after = (torch.where(spoken, si_snr(wave, target), 0) for wave in (noisy, estimate))
        distance = self._distance(estimate, target, noisy.square().mean(-1, keepdim=True))
        exact = torch.where(spoken, snr(estimate, target), 0)
        loss = self.config.spectral * distance
        loss = loss - self.config.snr * exact.mean() - self.config.si_snr * after.mean()
        if self.audible is not None:
            heard = self.audible(torch.where(spoken[:, None], estimate, target), target)
            loss = loss + self.config.audible * heard.mean()
        self.log("train/loss", loss.detach(), prog_bar=True, batch_size=len(batch.x))
        self.log(
            "train/si_snr_improvement",
            (after - before).detach().mean(),
            prog_bar=True,
            batch_size=len(batch.x),
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
        late, lengths = self.model.delay, batch.lengths
        rows = batch.rows._replace(lengths=None if lengths is None else lengths + late)
        estimate, _ = self.model(pad(batch.x, (0, 0, 0, late)), **rows._asdict())
        return estimate[:, late:, 0].float(), batch.y[..., 0]

    def _distance(self, estimate: Tensor, target: Tensor, power: Tensor) -> Tensor:
        """The mean square distance of compressed spectra of (B, T), over the level √power (B, 1)."""
        waves = torch.cat((estimate, target)) / (torch.cat((power, power)) + 1e-12).sqrt()
        return torch.stack([self._distance_of(waves, size) for size in SIZES]).mean()

    def _distance_of(self, waves: Tensor, size: int) -> Tensor:
        window = getattr(self, f"window_{size}")
        spectra = torch.stft(waves, size, size // 2, window=window, return_complex=True) / size**0.5
        parts = torch.view_as_real(spectra)
        power = parts.square().sum(-1) + TINY
        magnitudes, other = (power ** (COMPRESSION / 2)).chunk(2)
        numbers, others = (parts * power[..., None] ** ((COMPRESSION - 1) / 2)).chunk(2)
        phases = (numbers - others).square().sum(-1).mean()
        return (1 - PHASE) * (magnitudes - other).square().mean() + PHASE * phases

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


def snr(estimate: Tensor, target: Tensor) -> Tensor:
    """The signal-to-noise ratio of each row (…, T) in dB, which is HIGHEST for an exact estimate."""
    power = target.square().sum(-1).clamp_min(1e-20)
    error = (estimate - target).square().sum(-1)
    return 10 * torch.log10(power / (error + 10 ** (-HIGHEST / 10) * power))


def si_snr(estimate: Tensor, target: Tensor) -> Tensor:
    """The scale-invariant signal-to-noise ratio of each row (…, T), in dB."""
    from torchmetrics.functional.audio import scale_invariant_signal_noise_ratio

    return scale_invariant_signal_noise_ratio(estimate, target)
