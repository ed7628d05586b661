"""Measurements, not tests: each script writes JSON into `benchmarks/results`, and `benchmarks.tables` prints it."""
