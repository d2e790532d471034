"""What pi0 and pi0.5 are compared in: every stage from prefix tokens to actions, and the loss."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np
from flax.traverse_util import unflatten_dict

from mistjax.conformance.family import Arrays, Family, branch, random_observation
from mistjax.hooks.hooks import Hooks
from mistjax.hooks.interceptor import Tokens, hooked_apply
from mistjax.hooks.sites import Tap
from mistjax.models import pi0
from mistjax.models.config import Pi0Config
from mistjax.models.observation import Observation
from mistjax.models.pi0 import Pi0
from mistjax.models.sampling import denoise, prefill
from mistjax.models.stacks import token_layouts

POINTS = ("attn_out", "mlp_out", "resid")
VLM_CAPTURES = ("attn_0.out", "mlp.out", "resid_post_0")
ACTION_CAPTURES = ("attn_1.out", "mlp_1.out", "resid_post_1")


def taps(stack: str) -> list[Tap]:
    """All points of a stack that recordings hold."""
    return [Tap(f"{stack}.{point}") for point in POINTS]


def _random_inputs(config: Pi0Config, seed: int) -> dict[str, Any]:
    rng, chunk = np.random.default_rng(seed), (2, config.action_horizon, config.action_dim)
    inputs: dict[str, Any] = random_observation(config, rng)
    inputs[f"obs/image_masks/{config.image_keys[-1]}"] = np.array([True, False])
    return inputs | {
        "suffix/x_t": rng.standard_normal(chunk, dtype=np.float32),
        "suffix/t": rng.uniform(0.1, 0.9, 2).astype(np.float32),
        "sample/noise": rng.standard_normal(chunk, dtype=np.float32),
        "sample/num_steps": np.int32(config.num_steps),
        "loss/actions": rng.standard_normal(chunk, dtype=np.float32),
        "loss/rng_seed": np.int32(seed),
    }


@jax.default_matmul_precision("highest")
@functools.partial(jax.jit, static_argnums=0)
def _outputs(config: Pi0Config, variables: Any, inputs: Arrays) -> dict[str, Any]:
    model: Any = Pi0(config)
    fields: dict[str, Any] = unflatten_dict(branch(inputs, "obs/"), sep="/")
    obs, x_t, t = Observation(**fields), inputs["suffix/x_t"], inputs["suffix/t"]

    embedded = model.apply(variables, obs, method=Pi0.embed_prefix)
    names = ("tokens", "mask", "ar_mask")
    out = {f"prefix/{k}": v for k, v in zip(names, embedded, strict=True)}
    suffix = model.apply(variables, obs.state, x_t, t, method=Pi0.embed_suffix)
    names = ("tokens", "mask", "ar_mask", "adarms_cond")
    out |= {f"suffix/{k}": v for k, v in zip(names, suffix, strict=True) if v is not None}

    prefix = prefill(model, variables, obs, Hooks.of((), taps("vlm")))
    out |= {"prefill/k": prefix.cache[0], "prefill/v": prefix.cache[1]}
    out["joint/prefix_out"] = prefix.hidden
    (out["joint/v_t"], out["joint/suffix_out"]), found = hooked_apply(
        model,
        variables,
        prefix.cache,
        prefix.valid,
        obs.state,
        x_t,
        t,
        method=Pi0.velocity,
        stacks=model.stacks(),
        tokens={"action": Tokens(token_layouts(config)["action"], suffix[1])},
        taps=taps("action"),
    )
    for name, tap in zip(VLM_CAPTURES, taps("vlm"), strict=True):
        out[f"joint/capture/{name}"] = out[f"prefill/capture/{name}"] = prefix.taps[str(tap)]
    for name, tap in zip(ACTION_CAPTURES, taps("action"), strict=True):
        out[f"joint/capture/{name}"] = found[str(tap)]

    out["sample/actions"], _, _ = denoise(
        model,
        variables,
        prefix,
        inputs["obs/state"],
        inputs["sample/noise"],
        num_steps=config.num_steps,
    )
    key = jax.random.key(inputs["loss/rng_seed"])
    out["loss/value"] = pi0.compute_loss(model, variables, key, obs, inputs["loss/actions"])
    return out


PI = Family(
    init=pi0.init,
    inputs=frozenset(
        {"suffix/x_t", "suffix/t", "sample/noise", "sample/num_steps"}
        | {"loss/actions", "loss/rng_seed"}
    ),
    random_inputs=_random_inputs,
    outputs=_outputs,
    prefix_mask="prefix/mask",
    prefix_rows={"joint/prefix_out": 0, "prefill/k": 1, "prefill/v": 1}
    | {f"{part}/capture/{name}": 1 for part in ("joint", "prefill") for name in VLM_CAPTURES},
)
