"""What `lrnnx bench ops` times: variants of operators and sizes, for each device.

Operators of one step are not among them: `lrnnx bench streaming --steps` times them in a chain of launches,
as they occur.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import product

import torch

from lrnnx_app.ops._examples import Sizes
from lrnnx_app.ops._table import BRAIN, FLOAT, PLAIN, Variant, options, real_and_complex
from lrnnx_app.ops.rules import KERNELS, SCANNED


@dataclass(frozen=True)
class Timed:
    """A row of the benchmark: a variant at a size, with required operands and the optional ones in `keep`."""

    operator: str
    variant: Variant
    sizes: Sizes
    dtype: torch.dtype = FLOAT
    keep: tuple[str, ...] = ()


def _rows(
    operator: str,
    variants: Iterable[Variant],
    *shapes: tuple[int, int, int],
    dtypes: tuple[torch.dtype, ...] = (FLOAT,),
    keep: tuple[str, ...] = (),
) -> tuple[Timed, ...]:
    choices = product(dtypes, variants, shapes)
    return tuple(Timed(operator, variant, Sizes(*shape), dtype, keep) for dtype, variant, shape in choices)


def _selective(planes: int, rule: str, words: str = "") -> Variant:
    """A selective scan of Mamba's sizes: 16 states for each channel, one group."""
    name = f"{('real', 'complex')[planes - 1]} {rule} {words}".strip()
    return Variant(name, {"planes": planes, "n": 16, "groups": 1}, {"rule": rule, "softplus": True})


BOTH = (FLOAT, BRAIN)
OF_STEPS = ("diagonal_step", "row_linear", "advance")  # timed elsewhere
AUDIO, EVENTS, MAMBA, SHORT = (4, 16000, 128), (8, 16384, 256), (2, 4096, 256), (4, 4000, 64)
LONG = ((8, 2048, 2048), (8, 4096, 1536), (1, 16384, 2048), (1, 65536, 1024))
CONV, CONV_KEEPS = (Variant(options={"silu": True}),), ("bias",)
REAL, COMPLEX = (
    real_and_complex((PLAIN, Variant("constant a", {"a": "constant"})))[k : k + 2] for k in (0, 2)
)
DISCRETIZED = real_and_complex(options(rule=tuple(SCANNED)))[len(SCANNED) :]
RULED = [_selective(planes, rule) for planes in (1, 2) for rule in KERNELS]
GATED = (_selective(1, "euler", "gated"),)
BANK = (Variant("32 modes", {"modes": 32}),)  # as of S4D by default
MATRIX = tuple(  # of the sizes of gated delta nets, and of Mamba-2
    Variant(f"{words}, 64 × 64", {"delta": words != "sums", "n": 64, "width": 64})
    for words in ("delta rule", "sums")
)
MIXING = Variant("mixing", {"mixing": True})
SIGNALS, SPECTRA = (1, 256, 15625), (256, 7813, 1)  # 256 signals of 15625 samples, and spectra of such

TIMED: dict[str, tuple[Timed, ...]] = {
    "cuda": (
        *_rows("linear_scan", REAL[:1], *LONG, dtypes=BOTH),
        *_rows("linear_scan", REAL[:1], (8, 1000, 2048), (8, 2049, 2048), (1, 65537, 1024), (1, 65536, 64)),
        *_rows("linear_scan", COMPLEX, EVENTS, dtypes=BOTH),
        *_rows("discretized_scan", DISCRETIZED, EVENTS, dtypes=BOTH),
        *_rows("rglru_scan", (PLAIN,), LONG[0], dtypes=BOTH),
        *_rows("short_conv", CONV, LONG[0], dtypes=BOTH, keep=CONV_KEEPS),
        *_rows("selective_scan", GATED, *LONG, (8, 2049, 2048), dtypes=BOTH, keep=("D", "bias", "z")),
        *_rows("selective_scan", RULED, LONG[0], keep=("D", "bias")),
        *_rows("bank_scan", BANK, EVENTS, dtypes=BOTH, keep=("direct",)),
        *_rows("matrix_scan", MATRIX, (8, 2048, 32), dtypes=BOTH),
        *_rows("gru_scan", (PLAIN,), EVENTS),
        *_rows("fft_conv", (PLAIN,), EVENTS, dtypes=BOTH),
        *_rows("fft_conv", (MIXING,), AUDIO),
        *_rows("rfft", (PLAIN,), SIGNALS),
        *_rows("irfft", (PLAIN,), SPECTRA),
    ),
    "cpu": (
        *_rows("linear_scan", (*REAL, *COMPLEX), AUDIO, dtypes=BOTH),
        *_rows("discretized_scan", DISCRETIZED, AUDIO),
        *_rows("rglru_scan", (PLAIN,), AUDIO),
        *_rows("short_conv", CONV, AUDIO, keep=CONV_KEEPS),
        *_rows("selective_scan", (_selective(1, "euler"), _selective(1, "zoh")), MAMBA, keep=("D", "bias")),
        *_rows("selective_scan", (_selective(2, "euler"),), MAMBA, keep=("D", "bias")),
        *_rows("bank_scan", BANK, SHORT, keep=("direct",)),
        *_rows("matrix_scan", MATRIX, (2, 2048, 4)),
        *_rows("gru_scan", (PLAIN,), (4, 1000, 64)),
        *_rows("fft_conv", (PLAIN,), SHORT),
        *_rows("rfft", (PLAIN,), SIGNALS),
        *_rows("irfft", (PLAIN,), SPECTRA),
    ),
}
