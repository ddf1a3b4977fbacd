"""Benchmarks: `ops`, `layers`, `streaming` and `soak` give rows, `report` shows them."""
