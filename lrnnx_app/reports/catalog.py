"""The table of layers that `lrnnx layers` prints and `lrnnx docs layers` shows, from the registry."""

from typing import Any

from lrnnx_app.errors import RecipeError
from lrnnx_app.layers._base import Layer
from lrnnx_app.registry import LAYERS, RULES

COLUMNS = (
    "layer",
    "paper",
    "recurrence",
    "states",
    "rules",
    "event time",
    "floats per channel",
    "cost per step",
)
FROM = "from"  # column with the package of a layer; not in the docs, as rules of packages are not
WIDTH = 64  # d_model for which sizes are given
BEGIN, END = "<!-- lrnnx layers --markdown -->", "<!-- end of layers -->"
LEGEND = (
    f"Floats of state per channel are those of the default settings at {WIDTH} channels. Cost is the order "
    "of multiplications: D channels, N states in all, n states of each channel."
)


def rows() -> list[tuple[str, ...]]:
    """A row for each layer of the registry, in the order of COLUMNS and FROM."""
    told = {rule: f"{rule} from {origin}" if origin else rule for rule, origin in RULES.origins().items()}
    return [(*_row(name, LAYERS[name], told), origin or "lrnnx") for name, origin in LAYERS.origins().items()]


def markdown() -> str:
    """The table of docs/layers.md, markers included."""
    told = {rule: rule for rule in RULES.own()}
    own = (_row(name, LAYERS[name], told) for name in LAYERS.own())
    lines = [COLUMNS, ("---",) * len(COLUMNS), *own]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"{BEGIN}\n{table}\n\n{LEGEND}\n{END}"


def _row(name: str, entry: type[Layer], told: dict[str, str]) -> tuple[str, ...]:
    """A layer's row; `told` is what to say of each rule, those that it lacks are left out."""
    chosen = [told[rule] for rule in entry.rules() if rule in told] if entry.taps else entry.rules()
    layer = _build(entry)
    assert layer is not None
    variants = (layer, _build(entry, complex=True))
    kinds = {"complex" if "complex" in variant.n_states else "real" for variant in variants if variant}
    return (
        name,
        entry.paper,
        "time-varying" if entry.varying else "time-invariant",
        " or ".join(sorted(kinds, reverse=True)),
        ", ".join(chosen) or layer.rule_name,
        "yes" if layer.uses_dt else "no",
        f"{layer.state_size / WIDTH:.3g}",
        entry.cost,
    )


def _build(entry: Any, **options: Any) -> Layer | None:
    """The layer with these options; None if they are not valid for it."""
    try:
        return entry(WIDTH, entry.Config(**options))
    except (RecipeError, TypeError):
        return None
