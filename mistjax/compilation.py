"""Where compiled XLA programs are kept between runs.

A pi0 sampler takes seconds (tiny) to minutes (full size) to compile; with the cache the second run
of the same program on the same machine reads it from disk.

With jaxlib 0.5.3 and 0.6.0, a program that is read back on a CPU can leave a `while_loop` before
its first iteration and return its initial value: openpi's sampler of pi0-FAST silently writes only
zeros. These releases get no cache.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax
import jaxlib.version

_READS_BACK_RIGHT = (0, 6, 2)  # the first jaxlib release seen to


def cache_folder() -> Path:
    """`$JAX_COMPILATION_CACHE_DIR`, else `mistjax/xla` in the user's cache folder."""
    if folder := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mistjax" / "xla"


def enable_cache(folder: Path | None = None) -> Path | None:
    """Turns JAX's persistent compilation cache on and returns its folder; off, and None, where
    jaxlib is too old to read programs back.

    Small programs are kept too: most hold one operation, but together they cost as much to compile.

    Args:
        folder: where to keep programs; None means `cache_folder()`. JAX creates it when needed.
    """
    if jaxlib.version.__version_info__ < _READS_BACK_RIGHT:
        jax.config.update("jax_compilation_cache_dir", None)
        return None
    folder = cache_folder() if folder is None else folder
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    return folder
