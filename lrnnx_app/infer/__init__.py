"""Runs a trained model on a user's files, pipe or prompt."""
