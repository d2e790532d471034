"""Does this code compute what another did? Recorded parameters, inputs and outputs say."""

from mistjax.conformance.models import record, run_conformance
from mistjax.conformance.rows import Row
from mistjax.conformance.runner import compare

__all__ = ["Row", "compare", "record", "run_conformance"]
