"""SAFE heads: their losses, recipe and training."""
