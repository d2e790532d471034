"""Disagreement of several action chunks drawn for one observation."""
