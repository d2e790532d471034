"""Runs as LeRobotDatasets."""

from mistjax.rollouts.formats.lerobot.export import Export, export_lerobot

__all__ = ["Export", "export_lerobot"]
