"""Tables and pictures for commands."""
