"""Benchmarks and studies: each prints a table and writes JSON."""
