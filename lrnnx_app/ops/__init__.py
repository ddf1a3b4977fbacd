"""Operators: each file has schema, reference, fake kernel and autograd of one op."""
