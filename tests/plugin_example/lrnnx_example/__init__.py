"""One entry of every kind that lrnnx takes from other packages."""
