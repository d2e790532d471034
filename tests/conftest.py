"""Settings of the whole test run; they must be in place before JAX starts a backend."""

import functools
import gc
import inspect
import io
import os
import pathlib
import threading
import typing
import unittest.mock
from importlib import _bootstrap_external
from importlib.machinery import SourceFileLoader

import jax
import jax.experimental
import jax.numpy as jnp
import jaxtyping
import numpy as np
import optax
import pytest
from jaxtyping import _import_hook, install_import_hook
from typing_extensions import get_protocol_members

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("OMP_NUM_THREADS", "2")

# Array annotations of everything imported from here on are checked; an int may stand for a float.
CHECKED = ("mistjax", "interop")
checked_now = jaxtyping.jaxtyped


def names_arrays(annotation) -> bool:
    """Whether a shape or dtype stands in an annotation."""
    if isinstance(annotation, list | tuple):
        return any(map(names_arrays, annotation))
    return type(annotation).__module__.startswith("jaxtyping") or any(
        map(names_arrays, typing.get_args(annotation))
    )


def checked_when_called(fn=None, *, typechecker=None):
    """jaxtyping's decorator, used at the first call: most functions, of which many are local, are
    never called in one run. Where no axes have to agree, beartype does the same without it, in a
    fourteenth of the time.
    """
    if fn is None:
        return functools.partial(checked_when_called, typechecker=typechecker)
    if not inspect.isfunction(fn):
        return checked_now(fn, typechecker=typechecker)
    if not inspect.get_annotations(fn):
        return fn
    checked = None

    @functools.wraps(fn)
    def call(*args, **kwargs):
        nonlocal checked
        if checked is None:
            try:
                arrays = names_arrays(list(typing.get_type_hints(fn).values()))
            except NameError:  # a name that is imported for type checkers alone
                arrays = True
            written = dict(fn.__annotations__)  # beartype puts what they name in their place
            checked = checked_now(fn, typechecker=typechecker) if arrays else typechecker(fn)
            fn.__annotations__ = written
        return checked(*args, **kwargs)

    return call


def code_of(loader, name):
    """Cached apart from code without checks. jaxtyping itself would also look there for all that a
    checked module imports, and compile other people's packages again.
    """
    cache_from_source = functools.partial(
        _import_hook._optimized_cache_from_source, loader._typechecker.get_hash()
    )
    with unittest.mock.patch.object(_bootstrap_external, "cache_from_source", cache_from_source):
        return SourceFileLoader.get_code(loader, name)


_import_hook._JaxtypingLoader.get_code = code_of
_import_hook._JaxtypingLoader.exec_module = SourceFileLoader.exec_module

jaxtyping.jaxtyped = checked_when_called  # what the import hook writes above functions and classes
CONF = "beartype.BeartypeConf(is_pep484_tower=True, violation_type=TypeError)"
install_import_hook(CHECKED, f"beartype.beartype(conf={CONF})")

if not hasattr(jax, "enable_x64"):  # before JAX 0.8
    jax.enable_x64 = jax.experimental.enable_x64

register_dataclass = jax.tree_util.register_dataclass


def register_unchecked(cls, data_fields=None, meta_fields=None, drop_fields=()):
    """Registers our pytrees so that JAX rebuilds them without the annotation check.

    The check of `__init__` is meant for code that makes such a value. JAX also rebuilds pytrees
    around leaves that are no arrays (axis numbers, shapes, None) or carry one axis more.
    """
    if not cls.__module__.startswith(CHECKED):
        return register_dataclass(cls, data_fields, meta_fields, drop_fields)

    def flatten(value):
        leaves = [(jax.tree_util.GetAttrKey(name), getattr(value, name)) for name in data_fields]
        return leaves, tuple(getattr(value, name) for name in meta_fields)

    def unflatten(meta, leaves):
        value = object.__new__(cls)
        fields = dict(zip(data_fields, leaves, strict=True))
        fields |= dict(zip(meta_fields, meta, strict=True))
        inspect.unwrap(cls.__init__)(value, **fields)
        return value

    jax.tree_util.register_pytree_with_keys(cls, flatten, unflatten)
    return cls


jax.tree_util.register_dataclass = register_unchecked


# No axis and no dtype is promoted unless the code says so, in any thread.
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")


def promoting(rule):
    """An optimiser of Optax, which promotes dtypes itself (a decay to the power of a count)."""

    @functools.wraps(rule)
    def make(*args, **kwargs):
        made = rule(*args, **kwargs)

        def update(*arguments, **extra):
            with jax.numpy_dtype_promotion("standard"):
                return made.update(*arguments, **extra)

        return made._replace(update=update)

    return make


for name in ("adam", "adamw", "sgd"):
    setattr(optax, name, promoting(getattr(optax, name)))


CROWDED = 2.5 * 2**30
"""Bytes of memory from which on a process forgets its compiled programs after a file of tests."""


@pytest.fixture(autouse=True, scope="module")
def bounded_memory():
    """All the suite's programs at once are over 6 GB."""
    yield
    pages = pathlib.Path("/proc/self/statm")
    if pages.exists() and int(pages.read_text().split()[1]) * os.sysconf("SC_PAGESIZE") > CROWDED:
        jax.clear_caches()
        gc.collect()


def pytest_configure():
    from mistjax import compilation

    compilation.enable_cache()


def random_variables(shapes, seed: int = 0):
    """Variables of the given shapes, every leaf random (initialisers leave biases at zero).

    Much quicker than a model's own `init`, whose compilation takes seconds.
    """
    rng = np.random.default_rng(seed)

    def leaf(shape):
        fan_in = shape.shape[-2] if len(shape.shape) > 1 else 4
        return jnp.asarray(rng.normal(0, fan_in**-0.5, shape.shape), jnp.float32)

    return jax.tree.map(leaf, shapes)


def random_observation(config, batch: int = 2, seed: int = 0):
    """Prompts of different lengths; the last row lacks the last camera."""
    from mistjax.models.observation import Observation

    rng, size = np.random.default_rng(seed), config.image_size
    length = config.max_token_len
    real = np.arange(length) < np.linspace(length - 1, length // 2, batch).astype(int)[:, None]
    prompt = rng.integers(4, config.vocab_size, (batch, length))
    absent = (config.image_keys[-1], batch - 1)
    return Observation(
        images={
            k: jnp.asarray(np.tanh(rng.normal(size=(batch, size, size, 3))), jnp.float32)
            for k in config.image_keys
        },
        image_masks={
            k: jnp.array([(k, row) != absent for row in range(batch)]) for k in config.image_keys
        },
        state=jnp.asarray(rng.normal(size=(batch, config.action_dim)), jnp.float32),
        tokenized_prompt=jnp.asarray(np.where(real, prompt, 0), jnp.int32),
        tokenized_prompt_mask=jnp.asarray(real),
    )


@pytest.fixture(scope="session")
def pi_variables():
    """`pi_variables(config, seed=0)`: random variables of a pi0 or pi0.5 model."""
    from mistjax.models import pi0

    def make(config, seed: int = 0):
        shapes = jax.eval_shape(lambda: pi0.init(config, jax.random.key(0)))
        return random_variables(shapes, seed)

    return make


@pytest.fixture(scope="session")
def fast_variables():
    """`fast_variables(config, seed=0)`: random variables of a pi0-FAST model."""
    from mistjax.models import fast

    def make(config, seed: int = 0):
        shapes = jax.eval_shape(lambda: fast.init(config, jax.random.key(0)))
        return random_variables(shapes, seed)

    return make


@pytest.fixture(scope="session")
def lacking():
    """`lacking(policy, Policy)`: the protocol's members that a policy does not have."""

    def names(policy, protocol) -> list[str]:
        def has(name):
            return inspect.getattr_static(policy, name, None) is not None

        return sorted(name for name in get_protocol_members(protocol) if not has(name))

    return names


@pytest.fixture(scope="session")
def observation():
    """`observation(config, batch=2, seed=0)`: see `random_observation`."""
    return random_observation


class Killed(BaseException):
    """The process died here."""


@pytest.fixture
def kill_at_every_call(monkeypatch):
    """`kill_at_every_call(save)`: runs `save()` again and again, each time killed one call to the
    system later, and yields after each death; ends with a whole one. A dead process does nothing
    more: every further call dies too. A file's content is cut in half by a death in its write.
    """

    def deaths(save):
        calls, fatal, thread = 0, 0, threading.get_ident()

        def dies():
            nonlocal calls
            calls += threading.get_ident() == thread
            return calls >= fatal and threading.get_ident() == thread

        def deadly(function, writes=lambda *args, **kwargs: True):
            def call(*args, **kwargs):
                if writes(*args, **kwargs) and dies():
                    raise Killed
                return function(*args, **kwargs)

            return call

        def to_write(file, mode="r", *args, **kwargs):
            return any(letter in mode for letter in "wax+")

        def halved(function):
            def call(path, content, *args, **kwargs):
                if dies():
                    if calls == fatal:
                        function(path, content[: len(content) // 2], *args, **kwargs)
                    raise Killed
                return function(path, content, *args, **kwargs)

            return call

        while True:
            fatal, calls = fatal + 1, 0
            with monkeypatch.context() as patch:
                for name in ("replace", "rename", "fsync", "unlink", "mkdir", "rmdir"):
                    patch.setattr(os, name, deadly(getattr(os, name)))
                for name in ("write_bytes", "write_text"):
                    patch.setattr(pathlib.Path, name, halved(getattr(pathlib.Path, name)))
                patch.setattr(io, "open", deadly(io.open, to_write))
                try:
                    save()
                except Killed:
                    pass
                else:
                    return
            yield fatal

    return deaths
