"""Thresholds with a promise, and whether the promise still holds."""
