"""Settings of the whole test run; they must be in place before JAX starts a backend."""

import inspect
import os

import jax
from jaxtyping import install_import_hook

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("OMP_NUM_THREADS", "2")

# Array annotations of everything imported from here on are checked; an int may stand for a float.
CHECKED = ("mistjax", "interop")
install_import_hook(CHECKED, "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))")

register_dataclass = jax.tree_util.register_dataclass


def register_unchecked(cls, data_fields, meta_fields, drop_fields=()):
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


def pytest_configure():
    from mistjax import compilation

    compilation.enable_cache()
