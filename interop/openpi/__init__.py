"""openpi's own models and policies behind the Policy protocol, none of its files touched.

`wrap` takes a model; `wrap_policy` what `create_trained_policy` returns, with its transforms;
`monitored` gives that back to openpi's own scripts with a monitor inside.
"""

from interop.openpi.models import OpenpiFastPolicy, OpenpiPolicy, read_config, wrap
from interop.openpi.trained import (
    InferPolicy,
    TrainedFastPolicy,
    TrainedPolicy,
    monitored,
    wrap_policy,
)

__all__ = [
    "InferPolicy",
    "OpenpiFastPolicy",
    "OpenpiPolicy",
    "TrainedFastPolicy",
    "TrainedPolicy",
    "monitored",
    "read_config",
    "wrap",
    "wrap_policy",
]
