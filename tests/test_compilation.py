"""Compiled programs are kept where the user, or nobody, said."""

from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from mistjax import compilation
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


def test_a_compiled_program_is_kept_and_computes_the_same_when_it_is_read_back(tmp_path, restored):
    from jax.experimental.compilation_cache import compilation_cache

    def compiled_anew(x):
        def turn(carry):
            x, sums, _, step = carry
            sums = sums.at[:, step].set(jnp.sum(x, axis=-1))
            return jnp.tanh(x @ x.T), sums, jnp.all(x[:, 0] > 5), step + 1

        def goes_on(carry):
            return ~carry[2] & (carry[3] < 4)

        begin = x, jnp.zeros((2, 4)), False, 0
        return jax.jit(lambda begin: jax.lax.while_loop(goes_on, turn, begin)[1])(begin)

    compilation_cache.reset_cache()
    folder = enable_cache(tmp_path / "xla")
    x = jnp.arange(4.0).reshape(2, 2)
    first, again = compiled_anew(x), compiled_anew(x)
    assert (folder is None) != (tmp_path / "xla").exists()
    assert jnp.all(first != 0) and jnp.array_equal(first, again)


def test_a_jaxlib_that_reads_programs_back_wrong_gets_no_cache(tmp_path, restored, monkeypatch):
    monkeypatch.setattr(compilation.jaxlib.version, "__version_info__", (0, 5, 3))
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    assert enable_cache(tmp_path) is None
    assert jax.config.jax_compilation_cache_dir is None
