"""Whether an input is unsound: its own novelty, its own change, its disagreement with others."""
