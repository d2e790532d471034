"""LeRobot's SmolVLA behind the `Policy` protocol: LeRobot's own modules, read and edited by hooks.

LeRobot stays the user's: an environment of its own, since it pins what this project does not
(`make test-lerobot` makes one). Import this package before `lerobot` where torchvision is a CUDA
build beside a CPU build of PyTorch: its operators do not load there, nothing here uses them, and
without what follows nothing of it can be imported.
"""

import sys
import types

try:
    import torch  # noqa: F401
except ImportError as error:
    raise ImportError(
        "LeRobot needs PyTorch, which is not installed: see docs/lerobot.md for an environment."
    ) from error

try:
    import torchvision  # noqa: F401
except ImportError:
    pass
except RuntimeError:  # operator torchvision::nms does not exist
    sys.modules["torchvision._meta_registrations"] = types.ModuleType(
        "torchvision._meta_registrations"
    )

try:
    import lerobot  # noqa: F401
except ImportError as error:
    raise ImportError(
        "LeRobot is not installed here: `make test-lerobot` makes an environment for it, see "
        "docs/lerobot.md."
    ) from error
