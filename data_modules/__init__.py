"""Data modules: one file each, found by file name (`data.name` in a recipe)."""
