"""Models: stacks of layers that map a batch to predictions, found by file name (`model.name`)."""
