"""A trained run on a user's files, pipe or prompt."""
