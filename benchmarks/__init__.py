"""Benchmark scripts: they print a table and write JSON; none is a test."""
