"""Paired studies by name: which arms, under which conditions, and what comes out."""
