"""One module per experiment: a frozen config and `main(config) -> table`."""
