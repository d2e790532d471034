"""Execution that does not wait: chunk strategies under a delay, the robot's side of a server."""

from mistjax.realtime.runner import Action, Runner

__all__ = ["Action", "Runner"]
