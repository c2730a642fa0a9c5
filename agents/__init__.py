"""The algorithms: one file each, read top to bottom, run with `python -m agents.NAME`."""
