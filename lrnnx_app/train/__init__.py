"""Training, on Lightning: all that leans on it is here."""
