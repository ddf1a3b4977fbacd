"""Tiny stand-ins for public data sets, in their published file layouts: one module for each data module.

`write(folder, config)` makes what a data module's Config asks for and returns the overrides that name it;
none for embedded data.
"""
