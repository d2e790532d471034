"""Failure detectors, one module or folder a family."""
