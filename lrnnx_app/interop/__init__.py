"""Weights from other implementations: one source, one file, found by file name (hyphens as underscores)."""

from lrnnx_app.interop._load import SOURCES, convert, converted, key, load

__all__ = ["SOURCES", "convert", "converted", "key", "load"]
