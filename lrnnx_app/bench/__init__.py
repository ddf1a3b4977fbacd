"""Benchmarks: `ops` and `layers` give rows, `report` shows them as a table, JSON or a plot."""
