"""Input and output of a terminal: text, tables, options, signals."""
