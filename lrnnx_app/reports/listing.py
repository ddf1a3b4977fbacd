"""Tables of the recipes that have names, and of the keys of one; the texts of `lrnnx docs`."""

from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from lrnnx_app import recipe, registry
from lrnnx_app.console.terminal import as_json
from lrnnx_app.errors import RecipeError, UserError, nearest
from lrnnx_app.reports import explain

DOCS = Path(__file__).parents[1] / "docs"
COLUMNS = ("name", "task", "layer", "data", "from", "what it is for")
Cell = Any  # text, names, or the value of a key


def recipes() -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """Columns, and a row for each recipe."""
    rows: list[tuple[Cell, ...]] = []
    for name, (path, origin) in registry.recipes().items():
        content = recipe.read_yaml(path)
        kind = content["task"]["name"]
        rows.append((name, kind, *recipe.system(path), origin or "lrnnx", content.get("about", "")))
    return COLUMNS, rows


def trained_models() -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """Columns, and a row for each trained model that lrnnx ships."""
    from lrnnx_app.runs import weights_file

    rows = []
    for name, path in registry.trained().items():
        written = weights_file.read(path)
        count = sum(weight.numel() for weight in written.weights.values())
        layer, _ = recipe.system(path.with_suffix(recipe.SUFFIX))
        rows.append((name, layer, f"{count:,}", f"{path.stat().st_size / 1000:.0f}", written.recipe["about"]))
    return ("name", "layer", "parameters", "kB", "what it is for"), rows


def matrix() -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """Columns: layer and the kinds of data; rows: a layer and, for each kind, the recipes' names."""
    cells: dict[tuple[str, str], list[str]] = {}
    for name, (path, _) in registry.recipes().items():
        cells.setdefault(recipe.system(path), []).append(name)
    kinds = sorted({kind for _, kind in cells})
    layers = sorted({layer for layer, _ in cells})
    return ("layer", *kinds), [(layer, *(cells.get((layer, kind), []) for kind in kinds)) for layer in layers]


def keys(name: str | None) -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """Columns, and a row for each key of a recipe.

    Raises:
        RecipeError: none is named, there is no such recipe, or it does not resolve.
    """
    if name is None:
        raise RecipeError("--explain: expected the NAME of a recipe, or its file")
    return explain.COLUMNS, list(explain.rows(recipe.load(name)))


def topics() -> dict[str, str]:
    """The topics of `lrnnx docs`, each with the title of its text."""
    files = sorted(DOCS.glob("*.md"))
    return {path.stem: path.read_text("utf-8").partition("\n")[0].lstrip("# ") for path in files}


def topic(name: str) -> str:
    """The text of a topic, in Markdown.

    Raises:
        UserError: there is no such topic; names the nearest one.
    """
    if name not in topics():
        raise UserError(f"docs: unknown topic '{name}'; {nearest(name, topics())}")
    return (DOCS / f"{name}.md").read_text("utf-8")


def text(cell: Cell) -> str:
    """A cell as people read it."""
    if isinstance(cell, list):
        return ", ".join(map(text, cell))
    return cell if isinstance(cell, str) else as_json(cell)


def yaml(config: DictConfig) -> list[str]:
    """The lines of a resolved recipe."""
    return OmegaConf.to_yaml(config).splitlines()
