"""Every attribution method by name, with one signature.

Each compiles once for its options and the shapes: weights, observation, key and what the readout
holds are arguments.
"""

from __future__ import annotations

import functools
import inspect
import warnings
from collections.abc import Callable
from typing import Any

from jaxtyping import Array

from mistjax.attribute.attribution import Attribution
from mistjax.attribute.batching import largest_chunk
from mistjax.attribute.gradients import gradient_x_input, integrated_gradients, saliency
from mistjax.attribute.inputs import PatchSize
from mistjax.attribute.interventional import iss, iss_regression, occlusion
from mistjax.attribute.readouts import Readout
from mistjax.attribute.tokens import attention_mass, cache_ablation, camera_masking, token_norm
from mistjax.models.observation import Observation
from mistjax.policies.protocol import Policy

OF_ANY_POLICY: dict[str, Callable[..., Attribution]] = {
    "integrated_gradients": integrated_gradients,
    "gradient_x_input": gradient_x_input,
    "saliency": saliency,
    "occlusion": occlusion,
    "iss": iss,
    "iss_regression": iss_regression,
}
OF_TOKENS: dict[str, Callable[..., Attribution]] = {
    "attention_mass": attention_mass,
    "token_norm": token_norm,
    "cache_ablation": cache_ablation,
    "camera_masking": camera_masking,
}
"""Those that look inside: at the tokens of the policies that they name."""
ATTRIBUTIONS = OF_ANY_POLICY | OF_TOKENS
RENAMED = {"iss_masked_mean": "iss"}
"""Names of the release before this one."""


def current(name: str) -> str:
    """Today's name of a method; an old one works with a DeprecationWarning."""
    if name not in RENAMED:
        return name
    message = f"attribution {name!r} is now called {RENAMED[name]!r}."
    warnings.warn(message, DeprecationWarning, stacklevel=3)
    return RENAMED[name]


def attribute(
    name: str,
    policy: Policy,
    obs: Observation,
    key: Array,
    readout: Readout,
    *,
    patch: PatchSize | None = None,
    memory: int | None = None,
    **options: Any,
) -> Attribution:
    """Runs the method called `name`; also inside jit.

    Args:
        name: key of `ATTRIBUTIONS`.
        policy: the policy.
        obs: a batch.
        key: of the sampling noise.
        readout: a pytree, see `readouts`.
        patch: pixels (height, width) of a region; None takes the policy's vision patches.
        memory: bytes of temporary memory to stay within: prints how many runs fit at a time, and
            uses that as `chunk`; not inside jit.
        **options: of the method, such as `baseline` and `chunk`.

    Raises:
        ValueError: unknown name or option, a patch larger than a picture, not even one run fits the
            memory, or what the method refuses.
    """
    name = current(name)
    if name not in ATTRIBUTIONS:
        raise ValueError(
            f"no attribution is called {name!r}; choose one of {', '.join(ATTRIBUTIONS)}."
        )
    known = sorted(inspect.signature(ATTRIBUTIONS[name]).parameters)
    if unknown := sorted(set(options) - set(known)):
        raise ValueError(f"{name} has no options {unknown}; it has {known}.")
    patch = patch or policy.patch
    for camera, image in obs.images.items():
        sizes = image.shape[1:3]
        if not all(1 <= p <= size for p, size in zip(patch, sizes, strict=True)):
            raise ValueError(f"patches of {patch} pixels do not fit camera {camera!r}: {sizes}.")
    method = functools.partial(ATTRIBUTIONS[name], patch=patch, **options)
    if memory is None or "chunk" not in known:
        return method(policy, obs, key, readout)
    chunk = largest_chunk(
        lambda *a, chunk: method(*a, chunk=chunk), memory, policy, obs, key, readout
    )
    print(f"{name}: {chunk} runs at a time in {memory / 2**20:.0f} MiB", flush=True)
    return method(policy, obs, key, readout, chunk=chunk)
