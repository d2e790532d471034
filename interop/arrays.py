"""Arrays between JAX and PyTorch, by DLPack.

Where both frameworks see the same device nothing is copied: the two arrays share memory. JAX takes
its arrays to be immutable, so a tensor from `to_torch` must not be written to in place, and neither
must a tensor that was given to `to_jax`. Elsewhere (JAX on a GPU, PyTorch on the CPU) there is one
copy. bfloat16 crosses both ways.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

if TYPE_CHECKING:
    import torch


def _torch():
    try:
        import torch
    except ImportError as error:
        raise ImportError("PyTorch is not installed: pip install 'mistjax[openvla]'.") from error
    return torch


def to_torch(array: Any, device: str | torch.device = "cpu") -> torch.Tensor:
    """A tensor with the values of a JAX array, a numpy array or a number.

    Args:
        array: what to convert; must be concrete, not a tracer.
        device: where the tensor shall be.

    Raises:
        TypeError: the array is being traced.
    """
    torch = _torch()
    if isinstance(array, Tracer):
        raise TypeError(
            "a traced array has no values to hand to PyTorch: call outside of jit, or go through "
            "jax.pure_callback."
        )
    if isinstance(array, torch.Tensor):
        return array.to(device)
    if not isinstance(array, jax.Array):
        array = np.asarray(array)
        if array.dtype == jnp.bfloat16:
            return torch.tensor(array.view(np.uint16)).view(torch.bfloat16).to(device)
        return torch.tensor(array, device=device)
    return torch.from_dlpack(array).to(device)


def to_jax(tensor: torch.Tensor) -> jax.Array:
    """A JAX array with the values of a tensor, detached from its graph.

    A tensor on a GPU that JAX does not see becomes an array on the CPU. A tensor whose elements do
    not lie in row-major order is copied first.

    Raises:
        TypeError: a 64-bit tensor while JAX runs with 32 bits: precision is the caller's to drop.
    """
    torch = _torch()
    wide = (torch.float64, torch.int64, torch.complex128)
    if tensor.dtype in wide and not jax.config.read("jax_enable_x64"):
        raise TypeError(
            f"the tensor is {tensor.dtype} and JAX runs with 32 bits: convert it first, for "
            "example with .float() or .int()."
        )
    tensor = tensor.detach().contiguous()
    if tensor.is_cuda and jax.default_backend() == "cpu":
        tensor = tensor.cpu()
    return jnp.from_dlpack(tensor)


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    """A numpy array with the values of a tensor, bfloat16 included (as `ml_dtypes.bfloat16`)."""
    torch = _torch()
    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(jnp.bfloat16)
    return tensor.numpy()
