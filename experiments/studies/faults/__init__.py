"""Faults in mid-episode: how soon they are detected, and whether the right input is named."""
