"""Execution that does not wait: chunk strategies under a delay, the robot's side of a server."""
