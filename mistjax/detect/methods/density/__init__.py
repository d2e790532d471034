"""Novelty of features by learned densities."""
