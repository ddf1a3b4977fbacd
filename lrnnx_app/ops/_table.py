"""The table of operators: what `lrnnx doctor` checks, `lrnnx bench ops` times and the tests range over.

An entry holds example operands, the definition in float64, the dtypes and devices with kernels, and what the
benchmark times. A test fails if an operator is registered with torch but is in no entry.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import product
from typing import Any, NamedTuple

import torch

from lrnnx_app.ops import _examples as of
from lrnnx_app.ops._examples import Draw, Operands, Sizes
from lrnnx_app.ops.bank_scan import bank_scan
from lrnnx_app.ops.bank_scan import reference as bank_definition
from lrnnx_app.ops.discretized_scan import discretized_scan
from lrnnx_app.ops.fft_conv import fft_conv, rfft
from lrnnx_app.ops.fft_conv import reference as fft_definition
from lrnnx_app.ops.linear_scan import linear_scan, state_dtype
from lrnnx_app.ops.linear_scan import reference as linear_definition
from lrnnx_app.ops.matrix_scan import matrix_scan
from lrnnx_app.ops.matrix_scan import reference as matrix_definition
from lrnnx_app.ops.rglru_scan import rglru_scan
from lrnnx_app.ops.row_linear import CODES as ACTIVATIONS
from lrnnx_app.ops.row_linear import row_linear
from lrnnx_app.ops.rules import KERNELS, SCANNED
from lrnnx_app.ops.selective_scan import reference as selective_definition
from lrnnx_app.ops.selective_scan import selective_scan
from lrnnx_app.ops.short_conv import reference as conv_definition
from lrnnx_app.ops.short_conv import short_conv
from lrnnx_app.ops.step import diagonal_step

DOUBLE, FLOAT, HALF, BRAIN = torch.float64, torch.float32, torch.float16, torch.bfloat16
DTYPES = (DOUBLE, FLOAT, HALF, BRAIN)


class Errors(NamedTuple):
    """The largest ‖value − definition‖ / ‖definition‖; infinite if a value is not finite."""

    output: float
    gradient: float

    def within(self, allowed: "Errors", times: float = 1) -> bool:
        return self.output <= times * allowed.output and self.gradient <= times * allowed.gradient


# Allowed ‖value − definition‖ / ‖definition‖, from rounding in a matmul and in storage of half precision.
TOLERANCE = {DOUBLE: 1e-14, FLOAT: 1e-6, HALF: 1e-3, BRAIN: 8e-3}
OUTPUTS = {BRAIN: 0.6}  # times TOLERANCE for outputs; gradients, sums of rounded numbers, may use all of it


@dataclass(frozen=True)
class Variant:
    """One way to call an operator: arguments of its `example`, and options that are not tensors."""

    words: str = ""
    example: Mapping[str, Any] = field(default_factory=dict)
    options: Mapping[str, Any] = field(default_factory=dict)


PLAIN = Variant()


@dataclass(frozen=True)
class Operator:
    """A public function that calls an operator, with all that is needed to test and time it."""

    run: Callable[..., Any]
    definition: Callable[..., Any]  # takes the same arguments, in float64
    example: Callable[..., Operands]
    registered: tuple[str, ...]  # the operators of torch.ops.lrnnx that it may reach
    narrow: tuple[
        str, ...
    ] = ()  # operands stored in the dtype under test; other numbers are float32 or wider
    optional: tuple[str, ...] = ()
    constant: tuple[str, ...] = ()  # operands without a derivative
    free: Mapping[str, tuple[int, ...]] = field(default_factory=dict)  # axes of any size
    variants: tuple[Variant, ...] = (PLAIN,)
    dtypes: tuple[torch.dtype, ...] = DTYPES
    kernels: Mapping[str, tuple[torch.dtype, ...]] = field(default_factory=dict)  # by device
    times: tuple[float, float] = (5, 1)  # × TOLERANCE, for full and for half precision

    def allowed(self, dtype: torch.dtype) -> Errors:
        """The largest errors that are allowed in `dtype`."""
        error = TOLERANCE[dtype] * self.times[dtype is not state_dtype(dtype)]
        return Errors(error * OUTPUTS.get(dtype, 1), error)

    def draw(self, draw: Draw, sizes: Sizes, variant: Variant = PLAIN) -> Operands:
        """All operands, in float32."""
        return self.example(draw, sizes, **variant.example)

    def needed(self, operands: Operands, keep: tuple[str, ...] = ()) -> Operands:
        """The operands without the optional ones, except those in `keep`."""
        return {k: x for k, x in operands.items() if k not in self.optional or k in keep}

    def typed(self, operands: Operands, dtype: torch.dtype, device: str | None = None) -> Operands:
        """The operands for a call in `dtype`: the narrow ones have it, other numbers that of its states."""
        wide = state_dtype(dtype)
        return {
            k: x.to(device, (dtype if k in self.narrow else wide) if x.is_floating_point() else None)
            for k, x in operands.items()
        }

    def leaves(self, operands: Operands) -> Operands:
        """The operands that have a derivative."""
        return {k: x for k, x in operands.items() if x.is_floating_point() and k not in self.constant}


def options(**choices: tuple[Any, ...]) -> tuple[Variant, ...]:
    """Every combination of options."""
    found = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
    return tuple(Variant(" ".join(_word(*option) for option in each.items()), {}, each) for each in found)


def _word(name: str, value: Any) -> str:
    return (name if value else f"not {name}") if isinstance(value, bool) else str(value)


def real_and_complex(variants: tuple[Variant, ...] = (PLAIN,), **more: Any) -> tuple[Variant, ...]:
    """Each variant of real numbers, then each of complex ones."""
    return tuple(
        Variant(
            f"{('real', 'complex')[planes - 1]} {v.words}".strip(),
            {**more, "planes": planes, **v.example},
            v.options,
        )
        for planes in (1, 2)
        for v in variants
    )


def _backward(*names: str) -> tuple[str, ...]:
    return tuple(name + end for name in names for end in ("", "_backward"))


EVERYWHERE = {"cpu": DTYPES, "cuda": DTYPES}
MASKS = ("h0", "lengths", "reset")
ORDERS = (PLAIN, Variant("reverse", {}, {"reverse": True}))
COEFFICIENTS = {"": "full", "constant a": "constant", "a of a row": "rows", "a of a step": "steps"}
OPERATORS: dict[str, Operator] = {
    "linear_scan": Operator(
        linear_scan,
        linear_definition,
        of.linear_example,
        _backward("linear_scan"),
        ("b", "a"),
        MASKS,
        variants=tuple(
            Variant(f"{v.words} {words}".strip(), {**v.example, "a": a}, v.options)
            for v in real_and_complex(ORDERS)
            for words, a in COEFFICIENTS.items()
        )
        + tuple(
            Variant(f"real {v.words} {a}", {"a": a}, v.options)
            for v in ORDERS
            for a in ("heads", "constant heads")
        ),
        kernels=EVERYWHERE,
    ),
    "discretized_scan": Operator(
        discretized_scan,
        of.discretized_definition,
        of.discretized_example,
        _backward("discretized_scan"),
        ("v",),
        MASKS,
        variants=real_and_complex(options(rule=tuple(SCANNED), reverse=(False, True))),
        kernels=EVERYWHERE,
    ),
    "rglru_scan": Operator(
        rglru_scan,
        of.rglru_definition,
        of.rglru_example,
        _backward("rglru_scan"),
        ("u", "gate", "input_gate"),
        (*MASKS, "dt", "first"),
        kernels=EVERYWHERE,
    ),
    "selective_scan": Operator(
        selective_scan,
        selective_definition,
        of.selective_example,
        _backward("selective_scan", "selective_scan_kernel"),
        ("u", "delta", "B", "C", "z"),
        (*MASKS, "D", "z", "bias", "dt"),
        variants=real_and_complex(options(rule=tuple(KERNELS), softplus=(True,))),
        kernels={"cpu": DTYPES, "cuda": (FLOAT, HALF, BRAIN)},
    ),
    "matrix_scan": Operator(
        matrix_scan,
        matrix_definition,
        of.matrix_example,
        _backward("matrix_scan"),
        ("q", "k", "v", "erase"),
        MASKS,
        variants=tuple(
            Variant(
                f"{words}, decays of {of_what}",
                {"delta": words != "sums", "erase": words == "erasing", "of_channels": of_what == "channels"},
            )
            for words, of_what in product(("delta rule", "sums", "erasing"), ("heads", "channels"))
            if (words, of_what)
            not in (("delta rule", "channels"), ("erasing", "heads"))  # no paths of their own
        ),
    ),
    "bank_scan": Operator(
        bank_scan,
        bank_definition,
        of.bank_example,
        (),
        ("v",),
        ("direct", "h0", "lengths"),
        free={"v": (1,)},
        variants=tuple(
            Variant(f"{modes} modes, chunks of {size or 32}", {"modes": modes}, {"size": size})
            for modes, size in ((3, None), (3, 4), (1, 16))
        ),
    ),
    "short_conv": Operator(
        short_conv,
        conv_definition,
        of.conv_example,
        _backward("short_conv"),
        ("x",),
        ("bias", "state", "lengths", "reset"),
        free={"weight": (1,)},
        variants=tuple(
            Variant(f"of {width}", {"width": width}, {"silu": width % 2 == 0}) for width in (4, 1, 2, 3, 5)
        ),
        kernels=EVERYWHERE,
    ),
    "gru_scan": Operator(
        of.gru,
        of.gru_definition,
        of.gru_example,
        ("gru_states",),
        ("inputs",),
        ("dt", "lengths", "reset"),
        dtypes=(DOUBLE, FLOAT),
    ),
    "fft_conv": Operator(
        fft_conv,
        fft_definition,
        of.fft_example,
        ("convolve", "correlate"),
        ("u",),
        free={"u": (0, 1), "kernel": (-1, -3)},
        variants=(Variant("mixing", {"mixing": True}), PLAIN),
    ),
    "rfft": Operator(
        rfft, of.spectrum_definition, lambda draw, sizes: {"x": draw.normal(*sizes)}, ("rfft",), ("x",)
    ),
    "irfft": Operator(
        of.samples,
        of.samples_definition,
        lambda draw, sizes: {"spectrum": draw.normal(sizes.batch, 2, sizes.time)},
        ("irfft",),
        ("spectrum",),
    ),
    "diagonal_step": Operator(
        diagonal_step,
        of.step_definition,
        of.step_example,
        ("diagonal_step",),
        ("v", "gate"),
        ("gain", "c", "direct", "step", "dt", "gate"),
        variants=(
            *real_and_complex(options(rule=tuple(KERNELS), softplus=(True,)))[::-1],
            *real_and_complex((Variant("alone", {"contracted": False}, {"rule": "zoh"}),), n=1),
        ),
        kernels=EVERYWHERE,
        times=(10, 1),  # dt's gradient is a difference of large ones
    ),
    "row_linear": Operator(
        row_linear,
        of.rows_definition,
        of.rows_example,
        ("row_linear",),
        ("x", "weight", "bias", "skip", "via", "times"),
        ("bias", "skip", "via", "times"),
        variants=(
            *options(activation=tuple(ACTIVATIONS), gelu=(False, True)),
            Variant("of heads", {"heads": 2}, {"heads": 2}),
        ),
        kernels={"cuda": (FLOAT,)},
        times=(1, 2),  # torch code rounds after the matmul and after what follows it
    ),
    "advance": Operator(
        of.advance,
        of.advance_definition,
        of.advance_example,
        ("advance",),
        ("held", "more", "new", "new_more"),
        constant=("held", "more", "new", "new_more"),
        kernels={"cuda": DTYPES},
    ),
}
