"""pi0's VLM inside of a SmolVLA: in JAX and in PyTorch every site holds the same values."""

import jax
import numpy as np
import pytest
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

from experiments.train.board_smolvla import board_pieces, statistics
from experiments.train.board_smolvla_model import smolvla_config, write_backbone
from experiments.train.board_smolvla_start import start_from
from interop.lerobot.policy import LeRobotPolicy
from mistjax.demo import SHIPPED
from mistjax.envs.board.env import BoardEnv
from mistjax.hooks import POINTS, Tap
from mistjax.policies import BOARD, PiPolicy

CAMERAS = ("observation.images.image", "observation.images.wrist_image")
RUNS = ("vision", "image"), ("vlm", "image"), ("vlm", "text")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    pi = PiPolicy.load(SHIPPED / "board_pi0", BOARD)
    backbone = tmp_path_factory.mktemp("backbone")
    write_backbone(backbone, board_pieces())
    policy = SmolVLAPolicy(smolvla_config(backbone, CAMERAS))
    start_from(policy.model, pi)
    pipelines = make_smolvla_pre_post_processors(policy.config, statistics(pi))
    return pi, LeRobotPolicy(policy, *pipelines, BOARD)


def test_what_the_vlm_makes_of_pictures_and_words_is_the_same(both):
    raw = [BoardEnv().reset(seed=seed)[0] for seed in range(2)]
    pi, lerobot = both
    seen = pi.prepare(raw), lerobot.prepare(raw)
    np.testing.assert_array_equal(seen[0].tokenized_prompt, seen[1].tokenized_prompt)
    taps = tuple(Tap(f"{stack}.{point}", tokens=part) for stack, part in RUNS for point in POINTS)
    key = jax.random.key(0)
    jaxs, torchs = (p.sample(obs, key, taps=taps) for p, obs in zip(both, seen, strict=True))
    for tap in taps:
        a, b = np.asarray(jaxs.taps[str(tap)]), np.asarray(torchs.taps[str(tap)])
        real = np.asarray(seen[0].tokenized_prompt_mask) if tap.tokens == "text" else ...
        np.testing.assert_allclose(b[:, real], a[:, real], atol=1e-4, err_msg=str(tap))


def test_directions_read_as_the_same_words(both):
    pi, lerobot = (policy.value_vectors() for policy in both)
    assert lerobot.names[: len(pi.names)] == pi.names
    a, b = pi.decode(pi.vectors[1]), lerobot.decode(lerobot.vectors[1])
    np.testing.assert_allclose(b[:, : a.shape[1]], a, atol=1e-4)
