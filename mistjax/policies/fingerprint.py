"""SHA-256 of what a value holds: arrays, and everything static around them.

Two values have one fingerprint only if they behave alike: the leaves of a pytree do not tell a
method's name, a tap, a token selector or which kind of edit it is.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def fingerprint(*values: Any) -> str:
    """Hex digest of dataclasses, mappings, sequences, arrays, plain values, classes and functions
    (by name, so no lambdas), nested in any way.

    Raises:
        TypeError: something else is among them, which could change unseen.
    """
    digest = hashlib.sha256()
    for part in _parts(values):
        digest.update(len(part).to_bytes(8, "little") + part)
    return digest.hexdigest()


def _parts(value: Any) -> Iterator[bytes]:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".encode()
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        yield from _parts((str(value.dtype), jax.random.key_data(value)))
    elif isinstance(value, jax.Array | np.ndarray | np.generic):
        array = np.asarray(value)
        yield f"{array.dtype} {array.shape}".encode()
        yield np.ascontiguousarray(array).tobytes()
    elif (isinstance(value, type) or hasattr(value, "__code__")) and "<" not in value.__qualname__:
        yield f"{value.__module__}.{value.__qualname__}".encode()
    elif isinstance(value, functools.partial):
        yield from _parts((value.func, value.args, value.keywords))
    elif dataclasses.is_dataclass(value):
        yield kind
        for field in dataclasses.fields(value):
            yield field.name.encode()
            yield from _parts(getattr(value, field.name))
    elif isinstance(value, Mapping):
        yield f"mapping of {len(value)}".encode()
        for key in sorted(value, key=repr):
            yield from _parts(key)
            yield from _parts(value[key])
    elif isinstance(value, tuple | list):
        yield f"sequence of {len(value)}".encode()
        for item in value:
            yield from _parts(item)
    elif value is None or isinstance(value, bool | int | float | str | bytes):
        yield kind
        yield repr(value).encode()
    else:
        raise TypeError(
            f"{type(value).__name__} has no fingerprint: expected dataclasses, mappings, "
            "sequences, arrays, plain values, or classes and functions that can be imported."
        )
