"""Compiled programs are kept where the user, or nobody, said."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mistjax.compilation import cache_folder, enable_cache


@pytest.fixture
def restored():
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    jax.experimental.compilation_cache.compilation_cache.reset_cache()


def test_the_folder_is_the_variable_then_the_users_cache(monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "/some/where")
    assert cache_folder() == Path("/some/where")
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_folder() == Path("/cache/mistjax/xla")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == Path.home() / ".cache/mistjax/xla"


def test_a_compiled_program_is_kept(tmp_path, restored):
    from jax.experimental.compilation_cache import compilation_cache

    compilation_cache.reset_cache()
    enable_cache(tmp_path / "xla", min_compile_seconds=0)
    jax.jit(lambda x: jnp.sin(x) * 1.2345).lower(1.0).compile()
    assert any((tmp_path / "xla").iterdir())
