"""Train, stream and export linear recurrent neural networks."""

__version__ = "0.1.0"
