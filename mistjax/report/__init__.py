"""Plots, annotated videos and the HTML report."""

from mistjax.report.build import Explanation, build_report, explanations
from mistjax.report.html import Section, write_report
from mistjax.report.video import write_overlay

__all__ = [
    "Explanation",
    "Section",
    "build_report",
    "explanations",
    "write_overlay",
    "write_report",
]
