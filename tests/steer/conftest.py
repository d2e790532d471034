"""A random policy whose words are known, and observations for it."""

import jax
import numpy as np
import pytest

from mistjax.models.config import TINY
from mistjax.models.tokenizers import PromptTokenizer, train_word_tokenizer
from mistjax.policies import BOARD, random_policy

PROMPT = "move the black stone slowly"
SENTENCES = [PROMPT, "lift it high and quickly", "carry it slow and low"]


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.model"
    train_word_tokenizer(SENTENCES, [], path)
    return PromptTokenizer.from_file(path, TINY.max_token_len)


@pytest.fixture(scope="session")
def policy(tokenizer):
    return random_policy(TINY, tokenizer, BOARD)


@pytest.fixture(scope="session")
def raw():
    """Six scenes; the rows differ in picture and state."""

    def one(seed):
        rng = np.random.default_rng(seed)
        images = rng.integers(0, 256, (2, 16, 16, 3), np.uint8)
        return {
            "observation/image": images[0],
            "observation/wrist_image": images[1],
            "observation/state": rng.normal(size=5).astype(np.float32),
            "prompt": PROMPT,
        }

    return [one(seed) for seed in range(6)]


@pytest.fixture(scope="session")
def obs(policy, raw):
    return policy.prepare(raw)


@pytest.fixture
def key():
    return jax.random.key(7)


@pytest.fixture(scope="session")
def planted(policy):
    """The policy with two planted neurons: vlm (1, 5) writes "slowly", action (2, 3) lifts."""
    params = jax.tree.map(lambda leaf: leaf, policy.variables["params"])
    llm = params["PaliGemma"]["llm"]
    row = llm["embedder"]["input_embedding"][policy.tokenizer.piece_to_id("▁slowly")]
    mlp, expert = llm["layers"]["mlp"], llm["layers"]["mlp_1"]
    mlp["linear"] = mlp["linear"].at[1, 5].set(row)
    lift = params["action_out_proj"]["kernel"][:, 2]
    expert["linear"] = expert["linear"].at[2, 3].set(-lift)
    return policy.replace(variables={"params": params})
