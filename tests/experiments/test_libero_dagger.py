"""The expert takes over in a real scene, from a fixed driver and from the shipped policy."""

import numpy as np
import pytest

from experiments.train import libero_dagger
from experiments.train.libero_model import LiberoData
from mistjax.demo import SHIPPED
from mistjax.envs.libero.demos import HORIZON, demonstrate
from mistjax.envs.libero.env import LiberoEnv
from tests.libero_found import FOUND

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not FOUND, reason="needs LIBERO and its assets"),
]


def test_no_action_of_another_driver_is_kept():
    env = LiberoEnv("libero_object", 0, image_size=64, picture_every=10**6, reflections=False)
    theirs, asked = np.array([0.0, 0.0, 0.3, 0.0, 0.0, 0.0, -1.0], np.float32), []

    def up(scene):
        asked.append(scene.steps)
        return [theirs] * 5

    row = demonstrate(env, 2_000_000, 3, up)
    env.close()
    assert row is not None and len(asked) >= 3 and min(np.diff(asked)) == 5
    assert row["actions"].shape[1:] == (HORIZON, 7)
    assert not np.all(row["actions"] == theirs, axis=-1).any()


def test_corrections_of_the_shipped_policy_can_be_trained_on(tmp_path):
    config = libero_dagger.Config(
        out=tmp_path, policy=SHIPPED / "libero_pi0", tasks=(0,), episodes=2
    )
    libero_dagger.main(config)
    data = LiberoData.load(tmp_path).data
    assert set(data.arrays["episode"]) <= {config.seed, config.seed + 1} and len(data) > 10
