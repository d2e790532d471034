"""What a readout relies on: image patches, words, state; and which activations carry it.

The package can be called: `mistjax.attribute(...)` is `attribute(...)`, imported or not.
"""

import sys
from types import ModuleType

from mistjax.attribute.attribution import Attribution
from mistjax.attribute.explain import Explanation, explain
from mistjax.attribute.inputs import Baseline, Regions
from mistjax.attribute.localiser import Cause, describe, localise
from mistjax.attribute.readouts import (
    ActionChange,
    ActionContrast,
    ActionValue,
    FailureScore,
    Readout,
    TokenLogProbability,
)
from mistjax.attribute.registry import ATTRIBUTIONS, attribute

__all__ = [
    "ATTRIBUTIONS",
    "ActionChange",
    "ActionContrast",
    "ActionValue",
    "Attribution",
    "Baseline",
    "Cause",
    "Explanation",
    "FailureScore",
    "Readout",
    "Regions",
    "TokenLogProbability",
    "attribute",
    "describe",
    "explain",
    "localise",
]


class _Callable(ModuleType):
    __call__ = staticmethod(attribute)


sys.modules[__name__].__class__ = _Callable
