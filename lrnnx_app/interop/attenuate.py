"""`attenuate` (aTENNuate): one of its state-space layers, Centaurus in pointwise mode."""

from lrnnx_app.interop.centaurus import KEY, MODULES, convert

__all__ = ["KEY", "MODULES", "convert"]
