"""The adapter that docs/another_vla.md shows, on a network that shares no module with pi0."""

import re
from pathlib import Path

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks import POINTS, Add, Patch, Scale, SetNeurons, Tap

PAGE = (Path(__file__).parents[2] / "docs" / "another_vla.md").read_text()
(ADAPTER,) = re.findall(r"^```python adapter\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
DEPTH, READ, ACT, HEADS, NEURONS = 3, 24, 16, 2, 40
PATCHES, WORDS, HORIZON, ACTIONS, STEPS = 4, 5, 6, 3, 2
SITES = tuple(f"{stack}.{point}" for stack in ("vlm", "action") for point in POINTS)
TAPS = tuple(Tap(site) for site in SITES)
LAYER = 1  # the only one that is edited


class ReadBlock(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        attention = nn.MultiHeadDotProductAttention(HEADS, name="attention")
        x = x + attention(nn.LayerNorm()(x), mask=mask)
        neurons = nn.silu(nn.Dense(NEURONS, name="up")(nn.LayerNorm()(x)))
        x = x + nn.Dense(READ, name="down")(neurons)
        return x, x


class ActBlock(nn.Module):
    @nn.compact
    def __call__(self, x, memory, mask):
        look = nn.MultiHeadDotProductAttention(HEADS, name="look", out_features=ACT)
        x = x + look(nn.LayerNorm()(x), memory, mask=mask)
        neurons = nn.silu(nn.Dense(NEURONS, name="up")(nn.LayerNorm()(x)))
        return x + nn.Dense(ACT, name="down")(neurons), None


def scanned(block, axes):
    options = {"variable_axes": {"params": 0}, "split_rngs": {"params": True}}
    return nn.scan(block, length=DEPTH, in_axes=axes, **options)(name="layers")


class Reader(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        return scanned(ReadBlock, nn.broadcast)(x, mask)


class Actor(nn.Module):
    @nn.compact
    def __call__(self, x, memory, mask):
        x, emitted = scanned(ActBlock, (0, nn.broadcast))(x, memory, mask)
        return nn.LayerNorm()(x), emitted


class CrossVLA(nn.Module):
    """Reads once; each layer of the action head looks at the states of the same reader layer."""

    depth: int = DEPTH
    patches: int = PATCHES
    words: int = WORDS
    horizon: int = HORIZON

    def setup(self):
        self.see, self.embed = nn.Dense(READ), nn.Embed(32, READ)
        self.reader, self.actor = Reader(), Actor()
        self.into, self.out = nn.Dense(ACT), nn.Dense(ACTIONS)

    def read(self, pictures, words):
        x = jnp.concatenate([self.see(pictures), self.embed(words)], axis=1)
        valid = jnp.concatenate([jnp.ones(pictures.shape[:2], bool), words != 0], axis=1)
        return self.reader(x, valid[:, None, None])[1]

    def velocity(self, memory, valid, x_t, t):
        time = jnp.full((*x_t.shape[:2], 1), t)
        x = self.into(jnp.concatenate([x_t, time], axis=-1))
        x, _ = self.actor(x, memory, valid[:, None, None])
        return self.out(x)

    def __call__(self, pictures, words, x_t):
        valid = jnp.ones((len(words), PATCHES + WORDS), bool)
        return self.velocity(self.read(pictures, words), valid, x_t, 1.0)


@pytest.fixture(scope="module")
def adapter():
    names = {}
    exec(compile(ADAPTER, "docs/another_vla.md", "exec"), names)
    return names


@pytest.fixture(scope="module")
def inputs():
    """(variables, pictures, words, noise) of two rows; the second prompt is shorter."""
    rng, model = np.random.default_rng(0), CrossVLA()
    pictures = jnp.asarray(rng.normal(size=(2, PATCHES, 7)), jnp.float32)
    words = jnp.array([[3, 4, 5, 6, 7], [8, 9, 0, 0, 0]])
    noise = jnp.asarray(rng.normal(size=(2, HORIZON, ACTIONS)), jnp.float32)
    shapes = jax.eval_shape(model.init, jax.random.key(0), pictures, words, noise)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(0, 0.3, leaf.shape), jnp.float32), shapes
    )
    return variables, pictures, words, noise


@pytest.fixture(scope="module")
def run(adapter, inputs):
    """`run(edits)`: (actions, taps) of the jitted sampler."""

    @jax.jit
    def sample(inputs, edits):
        return adapter["sample"](CrossVLA(), *inputs, STEPS, TAPS, edits)

    return lambda edits=(): jax.device_get(sample(inputs, edits))


@pytest.fixture(scope="module")
def plain(run):
    return run()


def alone(block, params, attention, *args):
    """A block outside of its scan, by Flax's own means: what it emits, its value at each point."""
    (x, y), state = block.apply(
        {"params": params}, *args, capture_intermediates=True, mutable=["intermediates"]
    )
    seen = {name: values["__call__"][0] for name, values in state["intermediates"].items()
            if name != "__call__"}  # fmt: skip
    found = {"resid": x, "attn_out": seen[attention], "mlp_out": seen["down"]}
    return y, {**found, "mlp_neurons": nn.silu(seen["up"])}


@jax.jit
def reference(variables, pictures, words, x_t):
    """(actions, taps) of the sampler, block by block."""
    params, model = variables["params"], CrossVLA().bind(variables)
    valid = jnp.concatenate([jnp.ones((2, PATCHES), bool), words != 0], axis=1)
    mask, found = valid[:, None, None], {}

    def layers(name, block, attention, x, *args):
        states = []
        for i in range(DEPTH):
            own = jax.tree.map(lambda leaf, i=i: leaf[i], params[name]["layers"])
            y, values = alone(block, own, attention, x, *(arg[i] for arg in args), mask)
            x = values["resid"]
            states.append((y, values))
        return states

    x = jnp.concatenate([model.see(pictures), model.embed(words)], axis=1)
    read = layers("reader", ReadBlock(), "attention", x)
    memory = jnp.stack([y for y, _ in read])
    steps = []
    for step in range(STEPS):
        t = 1 - step / STEPS
        time = jnp.full((2, HORIZON, 1), t)
        x = model.into(jnp.concatenate([x_t, time], axis=-1))
        steps.append(layers("actor", ActBlock(), "look", x, memory))
        x_t = x_t - model.velocity(memory, valid, x_t, t) / STEPS
    for point in ("resid", "attn_out", "mlp_out", "mlp_neurons"):
        found[f"vlm.{point}"] = jnp.stack([values[point] for _, values in read])
        found[f"action.{point}"] = jnp.stack(
            [jnp.stack([values[point] for _, values in states]) for states in steps]
        )
    return x_t, found


def test_taps_are_what_each_block_alone_computes(inputs, plain):
    actions, expected = reference(*inputs)
    for site, value in expected.items():
        np.testing.assert_allclose(plain[1][str(Tap(site))], value, atol=1e-5, err_msg=site)
    np.testing.assert_allclose(plain[0], actions, atol=1e-5)


@pytest.mark.parametrize(("name", "stack", "attention"), [
    ("reader", "vlm", "attention"), ("actor", "action", "look"),
])  # fmt: skip
def test_heads_project_to_what_attention_adds(inputs, plain, name, stack, attention):
    out = inputs[0]["params"][name]["layers"][attention]["out"]
    heads, added = (plain[1][str(Tap(f"{stack}.{p}"))] for p in ("attn_heads", "attn_out"))
    bias = np.asarray(out["bias"])[:, None, None]
    projected = np.einsum("...lbtnh,lnhd->...lbtd", heads, out["kernel"]) + bias
    np.testing.assert_allclose(projected, added, atol=1e-5)


def edits_of_every_site(plain):
    """One edit at each site, of layer `LAYER` alone, with arrays that move every value."""
    gate, kinds = jnp.zeros(DEPTH).at[LAYER].set(1.0), (Add, Scale, SetNeurons, Patch)
    for i, site in enumerate(SITES):
        value = jnp.asarray(plain[1][str(Tap(site))])
        value = value[0] if site.startswith("action") else value
        other, kind = 1 + jnp.abs(value[:, 0, 0]), kinds[i % len(kinds)]
        arrays = {
            Add: {"vector": other},
            Scale: {"factor": -other},
            SetNeurons: {"mask": jnp.ones_like(other), "value": other},
            Patch: {"value": value + 1},
        }[kind]
        yield kind(site=site, gate=gate, **arrays)


def test_an_edit_acts_from_its_layer_on_and_off_it_changes_no_bit(adapter, inputs, plain):
    edits = list(edits_of_every_site(plain))

    @jax.jit
    def switched(inputs, edits, strengths):
        on = [e.replace(strength=s) for e, s in zip(edits, strengths, strict=True)]
        return adapter["sample"](CrossVLA(), *inputs, STEPS, TAPS, on)

    def only(i):
        strengths = jnp.float32(jnp.arange(len(edits)) == i)
        return jax.device_get(switched(inputs, edits, strengths))

    actions, found = only(-1)
    np.testing.assert_array_equal(actions, plain[0])
    for name, value in plain[1].items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)
    for i, site in enumerate(SITES):
        actions, found = only(i)
        assert np.isfinite(actions).all() and (actions != plain[0]).any(), site
        stack = site.split(".")[0]
        name = str(Tap(f"{stack}.resid"))
        now, before = found[name], plain[1][name]
        if stack == "action":
            now, before = now[0], before[0]  # later steps start from other actions
            np.testing.assert_array_equal(
                found["vlm.resid@all/all/tokens"], plain[1]["vlm.resid@all/all/tokens"]
            )
        assert [bool((a != b).any()) for a, b in zip(now, before, strict=True)] == [
            layer >= LAYER for layer in range(DEPTH)
        ], site
    assert switched._cache_size() == 1


def test_the_adapter_is_short():
    assert len(ADAPTER.splitlines()) < 60
