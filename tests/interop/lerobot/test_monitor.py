"""`MistPolicy` around SmolVLA: watched, steered, and itself while no alarm is raised."""

import json
import re
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.attribute.readouts import FailureScore
from mistjax.detect.artifact import Artifact, save_detector
from mistjax.detect.calibration.conformal import Threshold
from mistjax.detect.inputs import DEFAULT_INPUT
from mistjax.detect.methods.safe.heads import SafeMLP
from mistjax.detect.monitor import Monitor
from mistjax.recover.mist import MistPolicy

KEY = jax.random.key(0)
PAGE = (Path(__file__).parents[3] / "docs" / "lerobot.md").read_text()


@pytest.fixture(scope="module")
def monitor(policy, raw):
    sample = policy.sample(policy.prepare(raw), KEY, taps=DEFAULT_INPUT.taps)
    width = DEFAULT_INPUT.live(sample).shape[-1]
    head = SafeMLP.create(jax.random.key(1), width, hidden=8)
    return Monitor(head, Threshold(jnp.full(10, jnp.inf), 0.1, 9, 10), DEFAULT_INPUT)


def test_without_an_alarm_it_is_the_policy_itself(policy, monitor, raw):
    mist, obs = MistPolicy(policy, monitor, None, "monitor"), policy.prepare(raw)
    sample = mist.sample(obs, KEY, state=mist.initial_state(2))
    np.testing.assert_array_equal(sample.actions, policy.sample(obs, KEY).actions)
    assert np.isfinite(sample.aux["score"]).all() and not sample.aux["alarm"].any()


def test_what_is_not_finite_holds_still_and_the_rest_goes_on(policy, monitor, raw):
    mist, obs = MistPolicy(policy, monitor, None, "monitor"), policy.prepare(raw)
    state = np.array(obs.state)
    state[1] = np.nan
    sample = mist.sample(obs.replace(state=state), KEY, state=mist.initial_state(2))
    assert sample.aux["fallback"].tolist() == [False, True]
    chunk = mist.finish(sample, raw)
    np.testing.assert_allclose(chunk[1, 0, :3], 0)
    fine = policy.finish(policy.sample(obs, KEY), raw)
    np.testing.assert_allclose(chunk[0], fine[0], atol=1e-5)


def test_a_score_has_gradients_in_the_pictures(policy, monitor, raw):
    obs = policy.prepare(raw)
    readout = FailureScore(monitor.detector, monitor.detector.init_state(2), monitor.reads)

    def score(images):
        seen = obs.replace(images=images)
        return policy.objective(seen, KEY, readout, taps=monitor.reads.taps).sum()

    for grad in jax.tree.leaves(jax.grad(score)(obs.images)):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0


def test_the_page_makes_and_watches_a_policy_of_lerobots_own_objects(
    policy, monitor, folder, backbone, raw, tmp_path, monkeypatch
):
    made = tmp_path / "outputs" / "train" / "my_smolvla" / "checkpoints" / "last"
    shutil.copytree(folder, made / "pretrained_model")
    config = made / "pretrained_model" / "config.json"  # LeRobot's own reader knows no name inside
    config.write_text(config.read_text().replace('"backbone"', json.dumps(str(backbone))))
    found = Artifact(
        monitor.detector, policy.spec.fingerprint, monitor.reads, threshold=monitor.threshold
    )
    save_detector(tmp_path / "runs" / "monitor", found)
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python in_hand\n(.*?)```", PAGE, re.DOTALL)
    names: dict = {}
    exec(compile(code, "docs/lerobot.md", "exec"), names)
    safer = names["safer"]
    obs = safer.prepare(raw)
    sample = safer.sample(obs, KEY, state=safer.initial_state(2))
    assert np.isfinite(sample.aux["score"]).all() and not sample.aux["alarm"].any()
    np.testing.assert_array_equal(sample.actions, policy.sample(policy.prepare(raw), KEY).actions)
