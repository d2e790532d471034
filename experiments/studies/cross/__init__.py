"""The parts of `cross_architecture`: one module for each question."""
