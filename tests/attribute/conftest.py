"""Two policies: a linear one, of which every attribution is known, and a small random pi0."""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.hooks import TokenLayout
from mistjax.models.config import TINY
from mistjax.models.observation import Observation
from mistjax.models.tokenizers import PromptTokenizer, train_word_tokenizer
from mistjax.policies import BOARD, Policy, PolicySpec, Sample, StackSpec, random_policy

PROMPTS = ("place the black stone", "move left slowly")
CAMERAS = ("front", "wrist")


@flax.struct.dataclass
class LinearPolicy(Policy):
    """Actions [B,1,2]: (a linear function of everything but the wrist camera, its square)."""

    pixels: jax.Array
    table: jax.Array
    joints: jax.Array
    tokenizer: PromptTokenizer = flax.struct.field(pytree_node=False)
    traces: list = flax.struct.field(pytree_node=False)

    preset = BOARD
    patch = (4, 4)
    num_parameters = 0

    @property
    def spec(self):
        layout = TokenLayout(8, {"front": (0, 4), "wrist": (4, 8)})
        return PolicySpec(
            name="linear",
            fingerprint="0",
            action_dim=2,
            action_horizon=1,
            execute_steps=1,
            action_names=("z", "z squared"),
            action_low=(-1.0, -1.0),
            action_high=(1.0, 1.0),
            gripper_index=None,
            action_scale=(1.0, 1.0),
            cameras={name: name for name in CAMERAS},
            stacks={"vision": StackSpec(1, 1, 1, 1, 1, layout)},
            num_steps=1,
        )

    def prepare(self, raw):
        encoded = [self.tokenizer.encode_pi0(r["prompt"]) for r in raw]
        return Observation(
            images={name: jnp.stack([jnp.asarray(r[name]) for r in raw]) for name in CAMERAS},
            image_masks={name: jnp.ones(len(raw), bool) for name in CAMERAS},
            state=jnp.stack([jnp.asarray(r["state"]) for r in raw]),
            tokenized_prompt=jnp.stack([jnp.asarray(tokens) for tokens, _ in encoded]),
            tokenized_prompt_mask=jnp.stack([jnp.asarray(mask) for _, mask in encoded]),
        )

    def embed_prompt(self, obs):
        return dataclasses.replace(obs, prompt_embedding=self.table[obs.tokenized_prompt])

    def value_vectors(self, stack="vlm"):
        raise ValueError("it has no neurons.")

    def sample(self, obs, key, *, state=(), taps=(), edits=(), prefix=None):
        self.traces.append(None)
        if obs.prompt_embedding is None:
            obs = self.embed_prompt(obs)
        words = jnp.where(obs.tokenized_prompt_mask, obs.prompt_embedding.sum(-1), 0.0)
        z = jnp.einsum("bhwc,hwc->b", obs.images["front"], self.pixels)
        z = z + words.sum(1) + obs.state @ self.joints
        return Sample(jnp.stack([z, z**2], -1)[:, None], {}, {})

    def finish(self, sample, raw):
        return np.asarray(sample.actions)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokenizer") / "words.model"
    train_word_tokenizer(PROMPTS, [], path)
    return PromptTokenizer.from_file(path, TINY.max_token_len)


@pytest.fixture(scope="session")
def key():
    return jax.random.key(3)


@pytest.fixture
def linear(tokenizer):
    a, b, c = jax.random.split(jax.random.key(0), 3)
    return LinearPolicy(
        pixels=jax.random.normal(a, (8, 8, 3)) / 10,
        table=jax.random.normal(b, (tokenizer.vocab_size, 4)),
        joints=jax.random.normal(c, (3,)),
        tokenizer=tokenizer,
        traces=[],
    )


@pytest.fixture(scope="session")
def raw():
    rng = np.random.default_rng(0)
    return [
        {
            "front": rng.uniform(-1, 1, (8, 8, 3)).astype(np.float32),
            "wrist": rng.uniform(-1, 1, (8, 8, 3)).astype(np.float32),
            "state": rng.normal(size=3).astype(np.float32),
            "prompt": prompt,
        }
        for prompt in PROMPTS
    ]


@pytest.fixture
def linear_obs(linear, raw):
    return linear.prepare(raw)


@pytest.fixture(scope="session")
def pi(tokenizer):
    return random_policy(dataclasses.replace(TINY, num_steps=2), tokenizer, BOARD)


@pytest.fixture(scope="session")
def pi_obs(pi):
    """Two rows; the second row has no wrist camera."""
    rng = np.random.default_rng(1)
    raw = [
        {
            "observation/image": rng.integers(0, 255, (16, 16, 3), dtype=np.uint8),
            "observation/wrist_image": rng.integers(0, 255, (16, 16, 3), dtype=np.uint8),
            "observation/state": rng.normal(size=5).astype(np.float32),
            "prompt": prompt,
        }
        for prompt in PROMPTS
    ]
    obs = jax.tree.map(jnp.asarray, pi.prepare(raw))
    base, wrist = obs.images
    masks = {base: jnp.array([True, True]), wrist: jnp.array([True, False])}
    return dataclasses.replace(obs, image_masks=masks)
