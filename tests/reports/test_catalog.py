"""The table of layers: complete, and in the docs as the command prints it."""

from lrnnx_app.registry import LAYERS
from lrnnx_app.reports import catalog
from tests.helpers import ROOT


def test_the_docs_show_what_the_command_prints(lrnnx) -> None:
    docs = (ROOT / "lrnnx_app" / "docs" / "layers.md").read_text()
    start, end = docs.index(catalog.BEGIN), docs.index(catalog.END) + len(catalog.END)
    assert docs[start:end] == lrnnx("layers", "--markdown").done().out.strip()


def test_every_layer_has_a_full_row() -> None:
    rows = catalog.rows()
    assert [row[0] for row in rows] == list(LAYERS)
    assert all(all(row) and len(row) == len(catalog.COLUMNS) + 1 for row in rows)
    assert all("paper" in vars(LAYERS[name]) for name in LAYERS)


def test_what_is_derived_is_right() -> None:
    table = {row[0]: dict(zip(catalog.COLUMNS, row, strict=False)) for row in catalog.rows()}
    assert table["s6"]["states"] == "real or complex"
    assert table["s6"]["floats per channel"] == "38"  # 2 · (16 states + 3 inputs of the convolution)
    assert table["lru"]["floats per channel"] == "2"
    assert table["stream"]["rules"] == "dirac"
    assert table["local_attention"]["event time"] == "no"
