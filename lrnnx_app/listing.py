"""Tables of the shipped recipes."""

from lrnnx_app import recipe

COLUMNS = ("name", "task", "layer", "data", "what it is for")
Cell = str | list[str]


def recipes() -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """Columns, and a row for each recipe."""
    rows: list[tuple[Cell, ...]] = []
    for name, path in recipe.shipped().items():
        content = recipe.read_yaml(path)
        rows.append((name, content["task"]["name"], *recipe.system(path), content.get("about", "")))
    return COLUMNS, rows


def matrix() -> tuple[tuple[str, ...], list[tuple[Cell, ...]]]:
    """Columns: layer and the kinds of data; rows: a layer and, for each kind, the recipes' names."""
    cells: dict[tuple[str, str], list[str]] = {}
    for name, path in recipe.shipped().items():
        cells.setdefault(recipe.system(path), []).append(name)
    kinds = sorted({kind for _, kind in cells})
    layers = sorted({layer for layer, _ in cells})
    return ("layer", *kinds), [(layer, *(cells.get((layer, kind), []) for kind in kinds)) for layer in layers]
