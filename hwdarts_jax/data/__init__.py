"""Data sources, the search split and the input pipelines."""
