"""Measured comparisons: one module a subject, ratios from one run, JSON under `benchmarks/results/`."""
