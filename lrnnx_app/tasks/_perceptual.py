"""PESQ (ITU-T P.862) and STOI (Taal et al. 2011) of clips, where the optional packages are installed."""

import warnings
from collections.abc import Callable
from importlib.util import find_spec

import torch
from torch import Tensor
from torchmetrics import CatMetric

BANDS = {8000: "nb", 16000: "wb"}  # PESQ's rates in Hz
EXTRA = "pip install 'lrnnx-app[audio-metrics]'"


class Perceptual(torch.nn.Module):
    """Scores of noisy and denoised clips against the clean ones.

    Attributes:
        absent: the scores that are not computed, and why.
    """

    def __init__(self, sample_rate: int) -> None:
        super().__init__()
        self.rate = sample_rate
        self.absent: dict[str, str] = {}
        for name, package in (("pesq", "pesq"), ("stoi", "pystoi")):
            if find_spec(package) is None:
                self.absent[name] = f"needs the package {package}: {EXTRA}"
        if sample_rate not in BANDS:
            self.absent.setdefault("pesq", f"is made for 8 and 16 kHz, not {sample_rate} Hz")
        names = [name for name in ("pesq", "stoi") if name not in self.absent]
        keys = [key for name in names for key in (f"{name}_noisy", name)]
        self.scores = torch.nn.ModuleDict({key: CatMetric() for key in keys})

    def update(self, noisy: Tensor, denoised: Tensor, clean: Tensor) -> None:
        """One clip, each (T,)."""
        for key, metric in self.scores.items():
            name, _, which = key.partition("_")
            score = self._score(name, noisy if which else denoised, clean)
            if score is not None:
                assert isinstance(metric, CatMetric)
                metric.update(torch.tensor(score, device=metric.device))

    def compute(self) -> dict[str, Tensor]:
        """The means over all clips that could be judged."""
        used = [(k, m) for k, m in self.scores.items() if isinstance(m, CatMetric) and m.update_called]
        return {key: torch.as_tensor(metric.compute()).float().mean() for key, metric in used}

    def reset(self) -> None:
        for metric in self.scores.values():
            metric.reset()  # type: ignore[operator]  (a metric, no tensor)

    def _score(self, name: str, heard: Tensor, clean: Tensor) -> float | None:
        """The score of a clip; None if the measure finds no speech in it, or numbers that are not finite."""
        if not heard.isfinite().all():
            return None
        from torchmetrics.functional.audio import (
            perceptual_evaluation_speech_quality,
            short_time_objective_intelligibility,
        )

        measures: dict[str, Callable[[], Tensor]] = {
            "pesq": lambda: perceptual_evaluation_speech_quality(
                heard.float(), clean.float(), self.rate, BANDS[self.rate]
            ),
            "stoi": lambda: short_time_objective_intelligibility(heard.float(), clean.float(), self.rate),
        }
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                score = float(measures[name]())
            except Exception as error:  # pesq has its own tree, for clips too short or silent
                if "pesq" not in type(error).__module__:
                    raise
                return None
        silent = any("Not enough STFT frames" in str(warning.message) for warning in said)
        return None if silent or score != score else score
