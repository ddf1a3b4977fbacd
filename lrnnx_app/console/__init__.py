"""What a terminal gives and takes: text, tables, options, signals."""
