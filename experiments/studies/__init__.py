"""Studies: one module for each question, with a frozen config and `main(config) -> table`."""
