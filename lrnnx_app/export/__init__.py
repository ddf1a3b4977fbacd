"""Export formats, one file each: `export(run, path)` writes, reads back and compares."""
