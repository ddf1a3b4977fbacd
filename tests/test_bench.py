"""Benchmarks on sizes small enough for a test: rows, table, JSON and plot."""

import json

from lrnnx_app.bench import layers, ops, report


def test_rows_and_reports(tmp_path):
    rows = ops.rows("cpu", [ops.Case(1, 50, 8), ops.Case(1, 50, 8, 2, True, "bf16")])
    assert [row["op"] for row in rows] == ["linear_scan real", "linear_scan complex constant a"]
    assert all(row["forward ms"] > 0 and row["backward / copy"] > 0 for row in rows)
    assert rows[0]["forward MB"] == 3 * 50 * 8 * 4 / 1e6
    assert len(report.table(rows).splitlines()) == 3
    report.write_json(rows, tmp_path / "rows.json")
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == rows
    report.write_plot(rows, tmp_path / "rows.png")
    assert (tmp_path / "rows.png").read_bytes().startswith(b"\x89PNG")


def test_layers():
    rows = layers.rows("cpu", ["lru", "s5"], (1, 20, 4), d_state=4)
    assert [row["layer"] for row in rows] == ["lru", "s5"]
    assert all(row["forward + backward ms"] > row["forward ms"] * 0.5 > 0 for row in rows)
