"""Where activations are read (`Tap`) and changed (`Edit`)."""

from mistjax.hooks.adapters import Point, ScannedStack, Stream
from mistjax.hooks.edits import Add, Affine, Edit, Patch, ProjectOut, Scale, SetNeurons, Sparse
from mistjax.hooks.hooks import Hooks
from mistjax.hooks.interceptor import Tokens, hooked_apply
from mistjax.hooks.sites import POINTS, STACKS, Tap, TokenLayout

__all__ = [
    "POINTS",
    "STACKS",
    "Add",
    "Affine",
    "Edit",
    "Hooks",
    "Patch",
    "Point",
    "ProjectOut",
    "Scale",
    "ScannedStack",
    "SetNeurons",
    "Sparse",
    "Stream",
    "Tap",
    "TokenLayout",
    "Tokens",
    "hooked_apply",
]
