"""What stands in for an unsound input: one remedy for each input of a policy."""
