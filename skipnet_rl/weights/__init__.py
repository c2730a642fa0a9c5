"""Weights that this project trained; see index.json."""
