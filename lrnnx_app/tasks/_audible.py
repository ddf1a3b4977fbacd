"""How different two voices sound, with gradients: after the perceptual model of PESQ (ITU-T P.862, 10.2).

It leaves out the alignment in time, since a model's output is aligned. The threshold of hearing is by
Terhardt's formula.
"""

import torch
from torch import Tensor, nn

RATE = 16000  # Hz
FRAME = 512  # samples
BANDS = 49  # of equal width in Bark
HEARD = (325, 3250)  # Hz, between which the level of a voice is measured
LEVEL = 69.1 * FRAME**2 / 2 * 0.375  # power of a frame of a voice, so that 1 is the power of a tone of 0 dB
SPEAKS = 0.02  # of LEVEL; weaker frames are pauses
LOUDNESS = 0.187  # factor by which a tone of 1 kHz and 40 dB has a loudness of one
EXPONENT = 0.23  # of power, in loudness (Zwicker)
LARGEST = 45.0  # disturbance of a frame
PART, STEP = 20, 10  # frames of a part, and between the starts of parts
SHORTEST = (PART + 1) * FRAME // 2  # samples; silence is added to shorter waves


class Audible(nn.Module):
    """By how much the opinion of an estimate falls below that of its target, for voices at 16 kHz.

    Levels do not count. Equal waves give 0. Values follow those of PESQ in rank, not in size.
    """

    share: Tensor
    voice: Tensor
    threshold: Tensor
    exponent: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        hertz = torch.arange(FRAME // 2 + 1, dtype=torch.float64) * RATE / FRAME
        bark = 13 * torch.atan(7.6e-4 * hertz) + 3.5 * torch.atan((hertz / 7500).square())
        self.width = float(bark[-1]) / BANDS
        band = (bark / self.width).long().clamp_max(BANDS - 1)
        share = nn.functional.one_hot(band, BANDS) * (hertz.square() / (hertz.square() + 100**2))[:, None]
        centre = (torch.arange(BANDS, dtype=torch.float64) + 0.5) * self.width
        kilohertz = 0.6 * torch.sinh(centre / 6)
        decibels = (
            3.64 * kilohertz**-0.8 - 6.5 * torch.exp(-0.6 * (kilohertz - 3.3).square()) + 1e-3 * kilohertz**4
        )
        tables = {
            "share": share,
            "voice": ((hertz > HEARD[0]) & (hertz < HEARD[1])).double(),
            "threshold": 10 ** (decibels / 10),
            "exponent": EXPONENT * (6 / (centre + 2)).clamp(1, 2) ** 0.15,  # larger where frequencies are low
            "window": torch.hann_window(FRAME, dtype=torch.float64),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float(), persistent=False)

    def forward(self, estimate: Tensor, target: Tensor) -> Tensor:
        """Waves (B, T) to values (B,)."""
        with torch.autocast(estimate.device.type, enabled=False):
            loudness, added, weight = self._compared(self._bands(estimate), self._bands(target))
            total = self.width * BANDS
            even = (loudness.square().sum(-1) * self.width**2 / total + 1e-9).sqrt() * total
            new = (loudness.abs() * added).sum(-1) * self.width
            return 0.1 * _over_time(even * weight) + 0.0309 * _over_time(new * weight)

    def _bands(self, x: Tensor) -> Tensor:
        """Powers (B, frames, BANDS) of waves (B, T), whose voices get the same level."""
        x = nn.functional.pad(x.float(), (0, max(0, SHORTEST - x.shape[1])))
        spectrum = torch.stft(x, FRAME, FRAME // 2, window=self.window, return_complex=True, center=False)
        power = torch.view_as_real(spectrum).square().sum(-1).mT
        level = (power @ self.voice).mean(-1)[:, None, None]
        return power @ self.share * (LEVEL / (level + 1e-7))

    def _compared(self, heard: Tensor, meant: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The difference of loudness (B, frames, BANDS), its weight as added sound, and weights of frames.

        Slow changes of the spectrum and of the level count little: each is taken out of one of the two.
        """
        speaks = (meant * (meant > 100 * self.threshold)).sum(-1, keepdim=True) > SPEAKS * LEVEL
        ours, theirs = ((x * speaks).mean(1, keepdim=True) for x in (heard, meant))
        meant = meant * ((ours + 1000) / (theirs + 1000)).clamp(0.01, 100)
        gain = (meant.sum(-1, keepdim=True) + 5e3) / (heard.sum(-1, keepdim=True) + 5e3)
        gain = 0.8 * gain + 0.2 * nn.functional.pad(gain, (0, 0, 1, 0))[:, :-1]
        heard = heard * gain.clamp(3e-4, 5)
        ours, theirs = self._loudness(heard), self._loudness(meant)
        apart = ours - theirs
        apart = apart.sign() * (apart.abs() - 0.25 * torch.minimum(ours, theirs)).clamp_min(0)
        added = ((heard + 50) / (meant + 50)) ** 1.2
        added = torch.where(added < 3, 0, added.clamp_max(12))
        return apart, added, ((meant.sum(-1) + 1e5) / 1e7) ** -0.04

    def _loudness(self, power: Tensor) -> Tensor:
        factor = LOUDNESS * (2 * self.threshold) ** self.exponent
        return factor * ((0.5 + 0.5 * power / self.threshold).clamp_min(1) ** self.exponent - 1)


def _over_time(x: Tensor) -> Tensor:
    """Disturbances of frames (B, frames) to (B,), the mean square of parts that loud frames rule."""
    parts = (x / LARGEST).clamp_max(1).unfold(1, PART, STEP)
    loudest = LARGEST * (parts.pow(6).mean(-1) + 1e-24) ** (1 / 6)
    return loudest.square().mean(-1).sqrt()
