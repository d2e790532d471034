"""openpi itself, where it is installed: its own models under our hooks against its own sampler.

`test_openpi` does the same with doubles everywhere. pi0-FAST has no small variant in openpi: its
recorded outputs are in tests/goldens/openpi.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from interop.openpi import wrap
from mistjax.hooks import POINTS, Add, Tap
from mistjax.models.normalize import NormStats
from mistjax.models.tokenizers import PromptTokenizer, train_word_tokenizer
from mistjax.policies import BOARD

pytest.importorskip("openpi", reason="needs openpi")
pytestmark = pytest.mark.slow  # its vision tower has 400 M parameters
KEY = jax.random.key(0)
TAPS = tuple(Tap(f"{s}.{p}", reduce="mean") for s in ("vision", "vlm", "action") for p in POINTS)


@pytest.fixture(scope="module", params=[False, True], ids=["pi0", "pi05"])
def stock(request):
    """openpi's model with random weights, its Gemmas small, everything in float32."""
    from openpi.models.pi0_config import Pi0Config

    return Pi0Config(
        dtype="float32",
        paligemma_variant="dummy",
        action_expert_variant="dummy",
        action_dim=5,
        action_horizon=8,
        max_token_len=12,
        pi05=request.param,
    ).create(KEY)


@pytest.fixture(scope="module")
def policy(stock, tmp_path_factory):
    path = tmp_path_factory.mktemp("words") / "words.model"
    train_word_tokenizer(["go"], [], path)
    ones = {"state": np.ones(5, np.float32), "actions": np.ones(4, np.float32)}
    stats = {k: NormStats(mean=0 * v, std=v, q01=-v, q99=v) for k, v in ones.items()}
    return wrap(stock, BOARD, PromptTokenizer.from_file(path, 12), stats)


def test_the_actions_are_those_of_openpis_sampler_and_an_edit_that_is_off_changes_no_bit(
    stock, policy, observation
):
    from openpi.models.model import Observation

    obs = observation(policy.config)
    noise = jax.vmap(lambda k: jax.random.normal(k, (8, 5)))(jax.random.split(KEY, 2))
    theirs = Observation(
        images=obs.images,
        image_masks=obs.image_masks,
        state=obs.state,
        tokenized_prompt=obs.tokenized_prompt,
        tokenized_prompt_mask=obs.tokenized_prompt_mask,
    )
    expected = stock.sample_actions(KEY, theirs, noise=noise)
    plain = policy.sample(obs, KEY, taps=TAPS)
    np.testing.assert_allclose(plain.actions, expected, atol=1e-4)
    assert set(plain.taps) == {str(tap) for tap in TAPS}

    vlm = policy.config.vlm
    edit = Add(site="vlm.mlp_out", vector=jnp.ones((vlm.depth, vlm.width)))
    off, on = (
        policy.sample(obs, KEY, taps=TAPS, edits=[edit.replace(strength=jnp.float32(s))])
        for s in (0.0, 1.0)
    )
    np.testing.assert_array_equal(off.actions, plain.actions)
    assert (on.actions != plain.actions).any()
