"""Another chunk at an alarm: of what it promises, and that it does what it says."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.attribute.readouts import FailureScore
from mistjax.demo import MIST, POLICY
from mistjax.detect.artifact import FingerprintError
from mistjax.detect.fitted import save_fitted
from mistjax.detect.inputs import Input
from mistjax.envs.board.env import BoardEnv
from mistjax.hooks import Add, Tap
from mistjax.hooks.hooks import Hooks
from mistjax.models.sampling import denoise, draw_noise
from mistjax.policies import load_policy
from mistjax.policies.wrapper import Wrapper
from mistjax.recover.artifact import load_monitor
from mistjax.recover.elites import TAPS, Elites, load_elites, spread, write_where_it_changes
from mistjax.recover.mist import MistPolicy
from mistjax.recover.redraw import BestOf, Elite, Guided, Moment, Steered
from mistjax.recover.redrawn import Redrawn
from mistjax.steer.artifact import load_steering
from mistjax.steer.feedback import FEEDBACK

KEY = jax.random.key(3)


def elites(policy, obs, limit=1e9, chunk=0.7):
    """One situation: that of the first element."""
    sample = policy.sample(obs, KEY, taps=TAPS)
    parts = [sample.taps[str(tap)][0][0] for tap in TAPS]
    here = jnp.concatenate([*parts, jnp.asarray(obs.state)[0, :5]])
    shape = (1, policy.config.action_horizon, policy.config.action_dim)
    return Elites(here, 1 + 0 * here, 0 * here[None], jnp.full(shape, chunk), jnp.float32(limit))


def redraws(policy, obs):
    return {
        "best_of": BestOf(4),
        "guided": Guided(0.5),
        "elite": Elite(elites(policy, obs), 0.5),
        "steered": Steered(Add("action.resid", vector=0.3 * jnp.ones((3, 16)))),
    }


EVERY = ["best_of", "guided", "elite", "steered"]


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_without_an_alarm_the_actions_are_the_bare_ones_bit_for_bit(policy, obs, monitor, name):
    redrawn = Redrawn.of(MistPolicy(policy, monitor), redraws(policy, obs)[name], 0.5)
    sample = redrawn.sample(obs, KEY)
    np.testing.assert_array_equal(sample.actions, policy.sample(obs, KEY).actions)
    assert not sample.aux["edited"].any()


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_at_an_alarm_another_chunk_goes_out_within_the_cap(policy, obs, always, name):
    redraw, bare = redraws(policy, obs)[name], policy.sample(obs, KEY).actions
    for cap in (0.01, 1.0):
        redrawn = Redrawn.of(MistPolicy(policy, always), redraw, cap)
        sample = redrawn.sample(obs, KEY)
        moved = np.abs(np.asarray(sample.actions - bare))[..., :3]
        assert (moved <= np.asarray(redrawn.limits.cap)[:3] + 1e-5).all()
        assert sample.aux["edited"].any()
        assert (moved.max((1, 2)) > 0).tolist() == sample.aux["edited"].tolist()
    assert redrawn.spec.fingerprint != policy.spec.fingerprint


@pytest.mark.slow
def test_always_needs_no_alarm_and_a_broken_chunk_none_of_it(policy, obs, monitor):
    redrawn = Redrawn.of(MistPolicy(policy, monitor), BestOf(4), 1.0, when="always")
    assert redrawn.sample(obs, KEY).aux["edited"].any()
    lost = dataclasses.replace(obs, state=jnp.asarray(obs.state).at[0].set(jnp.nan))
    sample = redrawn.sample(lost, KEY)
    assert sample.aux["fallback"].tolist() == [True, False, False]
    assert not sample.aux["edited"][0]


def moment(policy, obs, monitor):
    score = FailureScore(monitor.detector, monitor.detector.init_state(3), monitor.reads)
    taps = (*score.taps, *TAPS)
    prefix = policy.prefill(obs, taps=taps)
    plain = policy.sample(obs, KEY, taps=taps, prefix=prefix)
    return Moment(policy, obs, KEY, (), prefix, plain, score)


@pytest.mark.slow
def test_the_best_of_some_chunks_has_the_lowest_score_of_them(policy, obs, monitor):
    """A score that is known from the chunk: each further chunk is drawn once more, and scored."""
    now, drawn = moment(policy, obs, monitor), []

    class Watching(Wrapper):
        """The policy, with what it draws kept."""

        def __init__(self):
            self.policy = policy

        def sample(self, obs, key, **options):
            sample = policy.sample(obs, key, **options)
            jax.debug.callback(
                lambda *pair: drawn.append(pair), sample.actions, now.score(sample), ordered=True
            )
            return sample

    chunk, other = BestOf(6).draw(dataclasses.replace(now, policy=Watching()))
    jax.effects_barrier()
    chunks = np.stack([now.plain.actions, *(actions for actions, _ in drawn)])
    scores = np.stack([now.score(now.plain), *(score for _, score in drawn)])
    assert len(chunks) == 6
    best = scores.argmin(axis=0)
    np.testing.assert_array_equal(other, best > 0)
    np.testing.assert_array_equal(chunk, chunks[best, np.arange(3)])
    assert other.any()


@pytest.mark.slow
def test_guidance_lowers_the_score_and_more_of_it_lowers_it_more(policy, obs, monitor):
    """Down the gradient of what it is guided by: the score of the sample from the same noise."""
    now = moment(policy, obs, monitor)
    taps = tuple(tap for tap in now.score.taps if tap.stack == "action")

    @jax.jit
    def scored(chunk):
        """Of the flow's end: activations at the chunk itself."""
        config = policy.config
        _, found, _ = denoise(
            policy.model,
            policy.variables,
            now.prefix,
            jnp.asarray(obs.state),
            chunk,
            Hooks.of((), taps),
            num_steps=config.num_steps,
            first=config.num_steps - 1,
        )
        plain = dataclasses.replace(now.plain, taps={**now.prefix.taps, **found})
        return now.score(plain)

    drawn = jax.jit(lambda size: Guided(size).draw(now)[0])
    before, some, more = (scored(drawn(size)) for size in (0.0, 0.2, 1.0))
    assert (some < before).all() and (more < some).all()
    np.testing.assert_allclose(drawn(0.0), now.plain.actions, atol=1e-5)


def test_guidance_needs_a_score_of_the_action(policy, monitor):
    blind = monitor.replace(reads=Input.of_taps(Tap("vlm.resid", (0,), "image", "mean")))
    with pytest.raises(ValueError, match="a tap of the action stack"):
        Redrawn.of(MistPolicy(policy, blind), Guided(), 0.5)
    last = monitor.replace(reads=dataclasses.replace(monitor.reads, pool="1.0"))
    with pytest.raises(ValueError, match="one flow step"):
        Redrawn.of(MistPolicy(policy, last), Guided(), 0.5)


@pytest.mark.slow
def test_the_flow_starts_from_the_elite_and_ends_near_it(policy, obs, monitor):
    now, memory = moment(policy, obs, monitor), elites(policy, obs)
    late, early = (Elite(memory, start).draw(now)[0] for start in (0.25, 1.0))
    np.testing.assert_allclose(early, now.plain.actions, atol=1e-5)
    away = [float(jnp.abs(chunk - 0.7).mean()) for chunk in (late, early)]
    assert away[0] < 0.7 * away[1]
    noise = draw_noise(policy.config, KEY, 3)
    assert noise.shape == late.shape


@pytest.mark.slow
def test_a_control_does_as_much_and_knows_nothing(policy, obs, monitor):
    """A blind direction moves the chunk about as far; chance picks other chunks than the score, and
    other situations than the nearest.
    """
    now = moment(policy, obs, monitor)
    seen, blind = (jax.jit(lambda b=b: Guided(0.3, b).draw(now)[0])() for b in (False, True))
    moved = [float(jnp.abs(chunk - now.plain.actions).mean()) for chunk in (seen, blind)]
    assert 0.3 < moved[1] / moved[0] < 3
    assert float(jnp.abs(seen - blind).mean()) > 0.3 * moved[0]
    best, lucky = (
        jax.jit(lambda b=b: BestOf(4, b).draw(dataclasses.replace(now, key=KEY)))()
        for b in (False, True)
    )
    assert not np.array_equal(best[0], lucky[0])
    one = elites(policy, obs)
    chunks = jnp.arange(5.0)[:, None, None] * 100 * jnp.ones_like(one.chunks)
    memory = one.replace(situations=jnp.repeat(one.situations, 5, axis=0), chunks=chunks)
    nearest, random = (
        jax.jit(lambda b=b: Elite(memory, 0.3, b).draw(now)[0])() for b in (False, True)
    )
    assert jnp.abs(nearest).max() < 50  # the first of equally near ones
    assert len(set(np.round(np.asarray(random).mean((1, 2)) / 67))) > 1


def test_an_unknown_situation_has_no_elite(policy, obs, monitor):
    now = moment(policy, obs, monitor)
    _, near = Elite(elites(policy, obs, limit=1e-6)).draw(now)
    assert near.tolist() == [True, False, False]


def test_what_cannot_be_is_refused(policy, obs, monitor):
    with pytest.raises(ValueError, match="at least 2"):
        BestOf(1)
    with pytest.raises(ValueError, match=r"in \(0, 1\]"):
        Elite(elites(policy, obs), 0.0)
    edit = Add("vlm.resid", vector=jnp.ones((3, 32)))
    with pytest.raises(ValueError, match="one of the action stack"):
        Redrawn.of(MistPolicy(policy, monitor), Steered(edit), 0.5)


def test_only_what_the_memory_answers_otherwise_is_written():
    """Situations on a line: one that the nearest written chunk would do for is not written."""
    situations = np.array([[0.0], [1.0], [1.1], [0.1], [1.0]])
    chunks = np.array([0.0, 1.0, 1.04, 0.2, 1.0])[:, None, None]
    written = write_where_it_changes(situations, chunks, np.array([0.05]))
    assert written.tolist() == [0, 1, 3]
    assert spread(np.arange(10), 4).tolist() == [0, 3, 6, 9]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["best_of", "guided", "elite", "feedback"])
def test_the_shipped_policy_redraws_at_an_alarm(name):
    policy = load_policy(POLICY)
    redraw = {
        "best_of": lambda: BestOf(3),
        "guided": lambda: Guided(0.3),
        "elite": lambda: Elite(load_elites(MIST, policy.spec.fingerprint)),
        "feedback": lambda: Steered(
            load_steering(MIST, policy.spec).directions[FEEDBACK].to_edit()
        ),
    }[name]()
    monitor = load_monitor(MIST, policy)
    loud = monitor.replace(
        threshold=monitor.threshold.replace(upper=jnp.full_like(monitor.threshold.upper, -jnp.inf))
    )
    obs = policy.prepare([BoardEnv().reset(seed=seed)[0] for seed in (1, 2)])
    bare = policy.sample(obs, KEY).actions
    redrawn = Redrawn.of(MistPolicy(policy, loud), redraw, 0.25)
    sample = redrawn.sample(obs, KEY)
    quiet = Redrawn.of(MistPolicy(policy, monitor), redraw, 0.25).sample(obs, KEY)
    np.testing.assert_array_equal(quiet.actions, bare)
    edited = np.asarray(sample.aux["edited"])
    assert edited.any()
    assert not np.array_equal(sample.actions[edited], bare[edited])


def test_elites_come_back_from_disk_and_refuse_another_policy(policy, obs, tmp_path):
    mine = elites(policy, obs)
    save_fitted(tmp_path, "elites", mine, "mine", {})
    back = load_elites(tmp_path, "mine")
    for a, b in zip(jax.tree.leaves(back), jax.tree.leaves(mine), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(FingerprintError, match="not of yours"):
        load_elites(tmp_path, "yours")
