"""Layers: one paper, one file, found by file name (`model.layer.name` in a recipe)."""
