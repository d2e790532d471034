"""Does this code compute what another did? Recorded parameters, inputs and outputs say."""

from mistjax.conformance.runner import Report, main, record, run_conformance

__all__ = ["Report", "main", "record", "run_conformance"]
