"""The parts of `exp_cross_architecture`: one module for each question."""
