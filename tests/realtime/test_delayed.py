import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.cli import main
from mistjax.demo import MIST, POLICY, SHIPPED
from mistjax.detect.novelty.artifact import load_inputs
from mistjax.policies import load_policy
from mistjax.policies.wrapper import Wrapper
from mistjax.realtime.delayed import Delayed
from mistjax.realtime.strategies import NAMES
from mistjax.recover.artifact import load_mist
from mistjax.rollouts import load_run
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan
from tests.libero_found import FOUND

KEY = jax.random.key(3, impl="threefry2x32")


def test_without_delay_the_actions_are_the_policy_s_bit_for_bit(policy, raw):
    seen = raw(2)
    obs, delayed = policy.prepare(seen), Delayed.around(policy, "naive", 0)
    state = delayed.initial_state(2)
    for _ in range(2):
        wanted = policy.finish(policy.sample(obs, KEY), seen)[:, :4]
        sample = delayed.sample(obs, KEY, state=state)
        state = sample.state
        assert delayed.finish(sample, seen).tobytes() == wanted.tobytes()
    assert delayed.spec.execute_steps == 4


def test_the_old_chunk_is_executed_until_the_new_one_is_there(policy, raw):
    seen = raw(1)
    obs, delayed = policy.prepare(seen), Delayed.around(policy, "naive", 2)
    state, keys = delayed.initial_state(1), jax.random.split(KEY, 3)
    rounds, chunks = [], []
    for key in keys:
        sample = delayed.sample(obs, key, state=state)
        state = sample.state
        rounds.append(delayed.finish(sample, seen)[0])
        chunks.append(policy.finish(policy.sample(obs, key), seen)[0])
    still = policy.preset.fallback(seen[0]["observation/state"][None])
    still = np.clip(still, policy.preset.action_low, policy.preset.action_high)
    np.testing.assert_array_equal(rounds[0][:2], np.tile(still, (2, 1)))
    np.testing.assert_array_equal(rounds[0][2:], chunks[0][:2])
    np.testing.assert_array_equal(rounds[1], [*chunks[0][2:4], *chunks[1][2:4]])
    np.testing.assert_array_equal(rounds[2], [*chunks[1][4:6], *chunks[2][2:4]])


@dataclasses.dataclass(frozen=True)
class Alarming(Wrapper):
    """What a monitored policy says; `lost` elements fall back."""

    policy: object
    lost: bool

    def sample(self, obs, key, **options):
        options.pop("state")
        sample = self.policy.sample(obs, key, **options)
        lost = jnp.array([self.lost])
        return dataclasses.replace(sample, aux={**sample.aux, "fallback": lost, "alarm": lost})


def test_an_alarm_that_comes_late_acts_on_the_chunk_in_flight(policy, raw):
    """Until it is there the old chunk is executed; from then on the robot holds still."""
    seen = raw(1)
    obs, calm = policy.prepare(seen), Delayed.around(policy, "naive", 2)
    first = calm.sample(obs, KEY, state=calm.initial_state(1))
    hit = Delayed(Alarming(policy, True), calm.strategy, None, calm.state_width)
    sample = hit.step(obs, KEY, first.state, (), (), None)
    actions = hit.finish(sample, seen)[0]
    chunk = policy.finish(policy.sample(obs, KEY), seen)[0]
    np.testing.assert_array_equal(actions[:2], chunk[2:4])
    assert (actions[2:, :3] == 0).all() and bool(sample.aux["alarm"][0])


def test_the_policy_inside_is_told_the_seeds(policy):
    class Told(type(policy)):
        def begin(self, seeds):
            return {"told": jnp.asarray(seeds)}

    told = Told(**{f.name: getattr(policy, f.name) for f in dataclasses.fields(policy)})
    state = Delayed.around(told, "naive", 2).begin([7, 9])
    assert state.policy["told"].tolist() == [7, 9] and len(state.flight.begun) == 2


def test_vlash_needs_a_model_of_the_motion(policy):
    with pytest.raises(ValueError, match="give the folder of one as mist"):
        Delayed.around(policy, "vlash", 2)


@pytest.mark.slow
def test_vlash_rolls_the_state_forward_to_where_the_robot_will_be(tmp_path):
    policy = load_policy(POLICY)
    motion = load_inputs(MIST, policy.spec.fingerprint).motion
    delayed = Delayed.around(policy, "vlash", 4, motion)
    run = collect(policy, tmp_path / "run", EpisodePlan(episodes=1, first_seed=7_100_000))
    trace = next(run.traces())
    now, later = trace.state[8], trace.state[12]
    look = {
        "observation/image": np.zeros((64, 64, 3), np.uint8),
        "observation/wrist_image": np.zeros((64, 64, 3), np.uint8),
        "observation/state": now,
        "prompt": trace.prompt,
    }
    obs = policy.prepare([look])
    commands = policy.action_normalizer.normalize(trace.actions[8:16])
    old = jnp.zeros((1, 8, policy.chunk_width)).at[0, :, :4].set(jnp.asarray(commands))
    rolled = delayed._rolled(obs, old, jnp.ones((1, 8), bool))
    there = np.asarray(policy.state_normalizer.unnormalize(rolled.state))[0]
    assert np.abs(there[:3] - later[:3]).max() < 0.3 * np.abs(later[:3] - now[:3]).max() + 2e-3


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_every_strategy_plays_the_board_compiled_and_monitored(name, tmp_path):
    policy = load_policy(POLICY)
    motion = load_inputs(MIST, policy.spec.fingerprint).motion
    monitored = load_mist(MIST, policy)
    delayed = Delayed.around(monitored, name, 2, motion)
    plan = EpisodePlan(
        episodes=2, first_seed=7_100_000, num_envs=2, compiled=True, max_steps=24, sensor_noise=True
    )
    run = collect(delayed, tmp_path / "run", plan)
    for trace in run.traces():
        length = delayed.spec.execute_steps
        assert set(np.diff(trace.inference_step)) == {length}
        assert np.isfinite(trace.actions).all()


def evaluated(out, *words):
    """The trace of one episode of `mistjax eval` under a delay of 2."""
    options = ["--delay", "2", "--strategy", "naive", "--episodes", "1", "--max-steps", "10"]
    assert main(["eval", *map(str, words), *options, "--out", str(out)]) == 0
    (trace,) = load_run(out / "bare").traces()
    return trace


@pytest.mark.slow
def test_the_command_plays_the_board_under_a_delay(tmp_path):
    trace = evaluated(tmp_path, POLICY)
    assert list(trace.inference_step) == [0, 4, 8]
    assert (trace.actions[:2, :3] == 0).all() and (trace.actions[2:4, :3] != 0).any()


@pytest.mark.slow
@pytest.mark.skipif(not FOUND, reason="needs LIBERO and its assets")
def test_the_command_plays_libero_under_a_delay(tmp_path):
    trace = evaluated(tmp_path, SHIPPED / "libero_pi0", "--suite", "libero_object", "--tasks", "3")
    assert list(trace.inference_step) == [0, 5]
    assert (trace.actions[:2, :6] == 0).all() and (trace.actions[2:5, :6] != 0).any()
