"""Where compiled XLA programs are kept between runs.

A pi0 sampler takes seconds (tiny) to minutes (full size) to compile; with the cache the second run
of the same program on the same machine reads it from disk.
"""

from __future__ import annotations

import os
from pathlib import Path

import jax


def cache_folder() -> Path:
    """`$JAX_COMPILATION_CACHE_DIR`, else `mistjax/xla` in the user's cache folder."""
    if folder := os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        return Path(folder)
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "mistjax" / "xla"


def enable_cache(folder: Path | None = None, min_compile_seconds: float = 0.3) -> Path:
    """Turns JAX's persistent compilation cache on and returns its folder.

    Args:
        folder: where to keep programs; None means `cache_folder()`. JAX creates it when needed.
        min_compile_seconds: quicker compilations are not kept.
    """
    folder = cache_folder() if folder is None else folder
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", min_compile_seconds)
    return folder
