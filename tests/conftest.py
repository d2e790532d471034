"""Settings of the whole test run; they must be in place before JAX starts a backend."""

import os

import pytest

os.environ.setdefault("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
os.environ.setdefault("OMP_NUM_THREADS", "2")


# Last, and with its imports inside: a module imported before jaxtyping's own plugin has installed
# its import hook would go unchecked.
@pytest.hookimpl(trylast=True)
def pytest_configure():
    from mistjax import compilation

    compilation.enable_cache()
