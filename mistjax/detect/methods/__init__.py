"""Failure detectors, one module or folder per family."""
