"""Streaming: a model fed chunk by chunk with the state carried between chunks."""
