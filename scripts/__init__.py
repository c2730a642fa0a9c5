"""What makes the published results: training, tables, shipped weights."""
