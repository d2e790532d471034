"""FIPER: novelty of observations and entropy of action chunks, and its alarm."""
