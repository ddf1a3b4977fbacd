"""`python -m lrnnx_app`."""

from lrnnx_app.cli import main

main()
