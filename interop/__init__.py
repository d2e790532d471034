"""Policies and arrays from outside JAX, behind the same `Policy` protocol."""
