"""The published results: training, tables, shipped weights."""
