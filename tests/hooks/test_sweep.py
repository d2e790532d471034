"""Every site and every kind of edit, in prefill and in the flow steps."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks import POINTS, Tap

STACKS = ("vision", "vlm", "action")
SITES = tuple(f"{stack}.{point}" for stack in STACKS for point in POINTS)
KINDS = ("Add", "SetNeurons", "Scale", "ProjectOut", "Affine", "Patch")
COMBINATIONS = tuple(itertools.product(SITES, KINDS))
RESID = tuple(Tap(f"{stack}.resid") for stack in STACKS)
LAYER = 1  # the only layer that is edited


def changed_layers(tap, before, after):
    """Which layers of a residual stream differ, in the first step where there are steps."""
    if tap.stack == "action":
        before, after = before[0], after[0]
    return [bool((a != b).any()) for a, b in zip(after, before, strict=True)]


MODELS = ("pi0", pytest.param("pi05", marks=pytest.mark.slow), "pi0_fast")


@pytest.mark.parametrize("model", MODELS)
def test_an_edit_changes_the_layers_from_its_own_on_and_off_it_changes_no_bit(rig, model):
    r = rig(fast=True) if model == "pi0_fast" else rig(pi05=model == "pi05")

    def gated(site, kind, seed):
        gate = jnp.zeros(r.depth(site.split(".")[0])).at[LAYER].set(1.0)
        return r.edit(kind, site, seed=seed, gate=gate)

    edits = [gated(site, kind, i) for i, (site, kind) in enumerate(COMBINATIONS)]

    @jax.jit
    def run(inputs, edits, strengths):
        switched = [e.replace(strength=s) for e, s in zip(edits, strengths, strict=True)]
        return r.sample(inputs, switched, RESID)

    def switched(on):
        return jax.device_get(run(r.inputs, edits, jnp.float32(jnp.arange(len(edits)) == on)))

    actions, taps = r.off()
    none, found = switched(-1)
    np.testing.assert_array_equal(none, actions)
    for name, value in found.items():
        np.testing.assert_array_equal(value, taps[name], err_msg=name)
    for number, (site, kind) in enumerate(COMBINATIONS):
        edited, found = switched(number)
        assert np.isfinite(edited).all() and (edited != actions).any(), (site, kind)
        here = STACKS.index(site.split(".")[0])
        for i, tap in enumerate(RESID):
            changed = changed_layers(tap, taps[str(tap)], found[str(tap)])
            if i < here:
                assert not any(changed), f"{kind} at {site} changed the earlier {tap.stack}"
            elif i == here:
                expected = [layer >= LAYER for layer in range(len(changed))]
                assert changed == expected, f"{kind} at {site} changed layers {changed}"
            else:
                assert any(changed), f"{kind} at {site} did not reach {tap.stack}"
    assert run._cache_size() == 1
