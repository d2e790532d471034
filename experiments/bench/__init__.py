"""Benchmarks: each prints its own command, data and machine load."""
