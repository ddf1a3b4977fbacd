"""Training with Lightning. Code that depends on Lightning's internals is in this folder only."""
