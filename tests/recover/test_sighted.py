"""Dead reckoning that the cameras correct: by hand, and in clean episodes of the shipped policy."""

import dataclasses
import shutil

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies.clean import record_clean
from mistjax.cli import main
from mistjax.demo import MIST, POLICY
from mistjax.detect.artifact import FingerprintError
from mistjax.detect.novelty.artifact import load_inputs
from mistjax.detect.novelty.fit import Recorded, recorded_runs
from mistjax.detect.novelty.motion import MotionModel
from mistjax.detect.novelty.odometry import Odometer
from mistjax.detect.novelty.reading import Reading
from mistjax.models.observation import Observation
from mistjax.policies.load import load_policy
from mistjax.recover.reckoned import ReckonedPolicy
from mistjax.rollouts.collect import collect
from mistjax.rollouts.plan import EpisodePlan
from mistjax.steer.remedies.artifact import load_reckoning, load_repairs, save_reckoning
from mistjax.steer.remedies.build import build_reckoning
from mistjax.steer.remedies.dynamics import Dynamics, fit_dynamics
from mistjax.steer.remedies.fit_sighted import _held_out, fit_sighted
from mistjax.steer.remedies.reckoning import DeadReckoning
from mistjax.steer.remedies.remedy import Seen
from mistjax.steer.remedies.sighted import SightedReckoning
from mistjax.studies.arms import Subject, make_arm
from mistjax.studies.conditions import condition

WIDTH, STEPS = 3, 12
COMMAND = jnp.full((1, 2, WIDTH), 0.05)  # a look moves the robot by 0.1


def linear(slips=1.0):
    """Of a robot that goes where it is told, times a factor."""
    weights = jnp.concatenate([jnp.zeros((1, WIDTH)), jnp.eye(WIDTH), slips * jnp.eye(WIDTH)])
    wide = jnp.full(WIDTH, jnp.inf)
    return MotionModel(weights, jnp.full(WIDTH, 0.05), -wide, wide)


def motion(slips=1.0):
    """The same, with a network that adds nothing."""
    inputs = WIDTH + COMMAND.size + COMMAND.shape[1]  # state, commands, signs
    layer = jnp.zeros((1, inputs, WIDTH)), jnp.zeros((1, WIDTH))
    known = linear(slips)
    return Dynamics(known, jnp.zeros(inputs), jnp.ones(inputs), (layer,), known.scale)


def remedy(slips=1.0):
    """Whose two cameras show the state itself."""
    eye = jnp.broadcast_to(jnp.eye(WIDTH), (2, WIDTH, WIDTH))
    layer = jnp.concatenate([eye, -eye, 0 * eye], axis=1), jnp.zeros((2, WIDTH))
    odometer = Odometer(jnp.zeros((2, WIDTH)), eye, (layer,), eye)
    noise, usual = jnp.full((2, WIDTH), 0.02**2), jnp.full(WIDTH, 0.1)
    return SightedReckoning(motion(slips), odometer, noise, usual, jnp.ones(1))


def followed(reckoning, sensor=lambda state: state, seen=lambda tokens: tokens):
    """(the estimate after some looks at a robot that moves evenly, where it is)."""
    state = jnp.full((1, WIDTH), 0.5)
    note = reckoning.start(state, tokens_of(state))
    for _ in range(STEPS):
        state = state + COMMAND.sum(1)
        note = reckoning.step(note, sensor(state), seen(tokens_of(state)), COMMAND)
    return note, state


def tokens_of(state):
    return jnp.broadcast_to(state[:, None], (1, 2, WIDTH))


def test_cameras_keep_the_estimate_from_drifting():
    """A motion model that is a tenth off drifts by as much; the cameras hold it."""
    note, state = followed(remedy(slips=1.1))
    np.testing.assert_allclose(note.state, state, atol=2e-3)
    blind = dataclasses.replace(remedy(slips=1.1), noise=jnp.full((2, WIDTH), jnp.inf))
    note, state = followed(blind)
    np.testing.assert_allclose(note.state - state, 0.1 * 0.1 * STEPS, atol=1e-4)


@pytest.mark.parametrize("lie", [5.0, np.nan])
def test_a_camera_that_is_far_off_is_not_believed(lie):
    note, state = followed(remedy(slips=1.1), seen=lambda tokens: tokens.at[:, 0].set(lie))
    np.testing.assert_allclose(note.state, state, atol=3e-3)
    note, state = followed(remedy(slips=1.1), seen=lambda tokens: jnp.full_like(tokens, lie))
    np.testing.assert_allclose(note.state - state, 0.1 * 0.1 * STEPS, atol=1e-4)


def test_elements_of_a_batch_do_not_mix():
    """One whose sensor is off and whose first camera lies, beside one where all is sound."""
    off, lie = jnp.array([[0.3], [0.0]]), jnp.array([[jnp.nan], [0.0]])
    state, reckoning = jnp.full((2, WIDTH), 0.5), remedy(slips=1.1)
    tokens = jnp.concatenate([tokens_of(row[None]) for row in state])
    note = reckoning.step(
        reckoning.start(state, tokens),
        state + off,
        tokens.at[:, 0].add(lie),
        jnp.zeros((2, *COMMAND.shape[1:])),
    )
    np.testing.assert_allclose(note.state, state, atol=1e-6)
    assert note.disputed.all(axis=1).tolist() == [True, False]
    assert (note.variance[0] > note.variance[1]).all()


def seen(state, tokens=None):
    words = jnp.zeros((1, 1), jnp.int32)
    return Seen(Observation({}, {}, state, words, words > 0), COMMAND, None, tokens)


def test_entries_that_agree_keep_the_sensor():
    """The last entry is off by less than what is usual, the first by more and then by nothing: it
    stays disputed, while the sensor as a whole is said to agree."""
    off = jnp.array([[0.3, 0.0, 0.05]])
    reckoning = remedy()
    note, state = followed(reckoning, sensor=lambda state: state + off)
    found = reckoning.propose(note, seen(state + off), "state")
    np.testing.assert_allclose(found.obs.state - state, [[0, 0, 0.05]], atol=1e-5)
    np.testing.assert_allclose(found.residual, 3.0, rtol=1e-4)
    state = state + COMMAND.sum(1)
    note = reckoning.step(note, state, tokens_of(state), COMMAND)
    found = reckoning.propose(note, seen(state), "state")
    assert note.disputed.tolist() == [[True, False, False]] and found.residual[0] <= 1
    dead = reckoning.propose(note, seen(jnp.full_like(state, jnp.nan)), "state")
    assert dead.residual[0] == jnp.inf and dead.obs.state[0, 0] == note.state[0, 0]


def test_a_sensor_that_stands_still_is_not_said_to_agree():
    """Where the robot waits, a frozen sensor is as near as a sound one; then it is not."""
    reckoning, state = remedy(), jnp.full((1, WIDTH), 0.5)
    note = reckoning.start(state, tokens_of(state))
    for _ in range(3):
        note = reckoning.step(note, state, tokens_of(state), jnp.zeros_like(COMMAND))
        still = reckoning.propose(note, seen(state), "state")
        assert 1 < still.residual[0] < 1.1
    moved = state + COMMAND.sum(1)
    for sensor, agrees in ((moved, True), (state, False)):
        later = reckoning.step(note, sensor, tokens_of(moved), COMMAND)
        residual = reckoning.propose(later, seen(sensor), "state").residual[0]
        assert bool(residual <= 1) == agrees


def test_a_state_is_not_reckoned_without_tokens():
    with pytest.raises(ValueError, match="by sight"):
        remedy().note(seen(jnp.zeros((1, WIDTH))), "state")


def episodes(count=40, looks=30, noise=0.02, seed=0, away=0.0, slip=0.0):
    """Of the robot above, seen by cameras with noise; every second one ends early. Away from where
    it usually is, it does not heed the last command of a look; it may slip."""
    rng = np.random.default_rng(seed)
    commands = rng.normal(size=(count, looks, 2, WIDTH)) * 0.1
    moves = commands[:, :, 0] if away else commands.sum(2)
    states = away + np.cumsum(moves + slip * rng.normal(size=moves.shape), axis=1)
    states = np.concatenate([np.full((count, 1, WIDTH), away), states[:, :-1]], axis=1)
    tokens = np.repeat(states[:, :, None], 2, axis=2)
    tokens += noise * rng.normal(size=tokens.shape)
    mask = np.ones((count, looks), bool)
    mask[::2, looks // 2 :] = False
    tokens[~mask] = 1e6
    shape = (count, looks, 2)
    reading = Reading(
        tokens[..., None, :].astype(np.float32),
        np.zeros((*shape, 8, 8, 3), np.float32),
        np.zeros((*shape, 8, 8), np.float32),
        states.astype(np.float32),
        np.zeros((count, looks, 1), np.int32),
    )
    return Recorded(reading, commands.astype(np.float32), mask)


@pytest.fixture(scope="module")
def policy():
    return load_policy(POLICY)


@pytest.fixture(scope="module")
def monitor(policy):
    return load_inputs(MIST, policy.spec.fingerprint)


def of_width(width, monitor, **fields):
    """A monitor of a state of another width."""
    state = {"state_mean": jnp.zeros(width), "state_precision": jnp.eye(width)}
    return dataclasses.replace(monitor, **state, **fields)


@pytest.mark.slow
def test_where_the_network_does_not_help_the_linear_model_speaks():
    """Of two linear entries and one that is not, the network is asked for the third alone."""
    rng = np.random.default_rng(0)
    states = rng.uniform(-1, 1, (600, WIDTH)).astype(np.float32)
    commands = rng.uniform(-0.05, 0.05, (600, 2, WIDTH)).astype(np.float32)
    following = states + commands.sum(1) + rng.normal(0, 0.05, states.shape).astype(np.float32)
    following[:, 2] += np.abs(states[:, 2])
    held = np.arange(600) % 3 == 0
    made = fit_dynamics(linear(), states, commands, following, held, hidden=(32,), steps=500)
    rows = jnp.asarray(states[held]), jnp.asarray(commands[held])
    by = [np.asarray(model.predict(*rows)) for model in (made, made.linear)]
    np.testing.assert_array_equal(by[0][:, :2], by[1][:, :2])
    errors = [np.abs(found - following[held])[:, 2].mean() for found in by]
    assert errors[0] < 0.5 * errors[1]
    assert (np.asarray(made.scale)[:2] < 0.1).all()


@pytest.mark.slow
def test_cameras_are_asked_where_they_help(monitor):
    """Of a robot that goes where it is told, its commands say all; of one that slips, cameras that
    show where it is know better."""
    ours = of_width(WIDTH, monitor, motion=linear())
    found, alone = fit_sighted(ours, episodes())
    assert np.isinf(found.noise).all() and (alone < 0.1).all()
    assert (np.asarray(found.motion.scale) < 0.02).all() and 1 <= found.joint[0] < 3
    found, alone = fit_sighted(ours, episodes(slip=0.1))
    assert np.isfinite(found.noise).all() and (found.usual < 0.8 * alone).all()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (("--inputs", "--grounding"), "reckoned and grounding were given"),
        (("--inputs", "--steer", str(MIST), "up", "1.0"), "reckoned and steer were given"),
        ((), "add --inputs"),
    ],
)
def test_reckoned_episodes_are_recorded_with_inputs_alone(options, says, tmp_path, capsys):
    out = tmp_path / "run"
    asked = ["collect", str(POLICY), "--out", str(out), "--reckoned", str(MIST), *options]
    assert main(asked) == 2 and not out.exists()
    assert says in capsys.readouterr().err


def test_a_start_is_not_fitted_to_and_measured_on():
    clean, astray = [("a", n) for n in range(10)], [("a", n) for n in reversed(range(20))]
    rows = _held_out([clean, astray])
    first = {start for start, held in zip(clean, rows[0], strict=True) if held}
    second = {start for start, held in zip(astray, rows[1], strict=True) if held}
    assert len(second) == 6 and first == second & set(clean)


@pytest.mark.parametrize("short", ["clean", "reckoned"])
def test_too_few_looks_or_episodes_are_refused(monitor, short):
    ours = of_width(WIDTH, monitor, motion=linear())
    for few, says in ((episodes(looks=1), "one look"), (episodes(count=9), "9 episodes")):
        parts = {"clean": episodes(), "reckoned": episodes(), short: few}
        with pytest.raises(ValueError, match=says):
            fit_sighted(ours, **parts)


@pytest.mark.slow
def test_a_robot_that_strays_moves_otherwise(monitor):
    """Beyond where clean episodes went the last command does not count; where episodes on a
    reckoned state go there it is learned, and what is measured on clean ones stays."""
    ours, clean = of_width(WIDTH, monitor, motion=linear()), episodes()
    astray = episodes(seed=1, away=5.0)
    states, commands = jnp.asarray(astray.readings.state[:, 5]), jnp.asarray(astray.commands[:, 5])
    error = []
    for others in (None, astray):
        found, _ = fit_sighted(ours, clean, others)
        error.append(jnp.abs(found.motion.predict(states, commands) - astray.readings.state[:, 6]))
    there = np.asarray(astray.mask[:, 6])
    assert np.mean(error[1][there]) < 0.5 * np.mean(error[0][there])
    assert (np.asarray(found.usual) < 0.2).all()


def test_what_was_fitted_is_kept(tmp_path, policy, monitor):
    """Beside the monitor and the imputer of the same policy, whose remedy of the state it is."""
    name, shape = policy.spec.fingerprint, (len(monitor.cameras), len(monitor.state_mean))
    for file in ("inputs", "repairs"):
        for end in ("json", "safetensors"):
            shutil.copy(MIST / f"{file}.{end}", tmp_path)
    assert load_reckoning(tmp_path, name, monitor) is None
    assert isinstance(load_repairs(tmp_path, name, monitor)[0]["state"], DeadReckoning)
    made = of_the_board(monitor, noise=jnp.ones(shape), usual=jnp.linspace(1.0, 2.0, shape[1]))
    save_reckoning(tmp_path, made, name, {})
    found = load_repairs(tmp_path, name, monitor)[0]["state"]
    assert isinstance(found, SightedReckoning)
    assert found.motion.linear.gripper == monitor.motion.gripper
    chex.assert_trees_all_close(found, made, rtol=1e-3)
    with pytest.raises(FingerprintError, match="fit-reckoning"):
        load_reckoning(tmp_path, "of another policy", monitor)
    wider = dataclasses.replace(monitor, cameras=(*monitor.cameras, "third"))
    with pytest.raises(ValueError, match=r"of \(2, 5\) cameras and entries"):
        load_reckoning(tmp_path, name, wider)


def of_the_board(monitor, **fields):
    """What the monitor goes by, with a network that adds nothing."""
    width, command = len(monitor.state_mean), (monitor.execute, len(monitor.motion.low))
    inputs = width + command[0] * command[1] + command[0]
    layer = jnp.zeros((1, inputs, width)), jnp.zeros((1, width))
    known = monitor.motion
    dynamics = Dynamics(known, jnp.zeros(inputs), jnp.ones(inputs), (layer,), known.scale)
    return SightedReckoning(dynamics, monitor.odometer, joint=jnp.ones(1), **fields)


@pytest.mark.slow
def test_on_the_board_the_cameras_see_the_fingers(tmp_path, policy, monitor):
    """From the third look of episodes on a reckoned state that nothing was fitted to, ten looks and
    more later: what is held stops the fingers, which commands alone cannot know. (Where the hand
    is, the monitor's linear model knows as well: it does not tilt.)
    """
    shutil.copytree(MIST, tmp_path / "folder")
    lost = ReckonedPolicy.load(policy, MIST)
    clean, astray, held = (
        record_clean(
            acts,
            tmp_path / name,
            EpisodePlan(episodes=count, first_seed=first, num_envs=12, sensor_noise=True),
            (),
        )
        for acts, name, count, first in (
            (policy, "clean", 48, 22_900_000),
            (lost, "astray", 24, 22_900_100),
            (lost, "held", 12, 22_900_200),
        )
    )
    sighted, _ = build_reckoning(policy, [clean], tmp_path / "folder", reckoned=[astray])
    with pytest.raises(ValueError, match="another policy"):
        build_reckoning(policy, [astray], tmp_path / "folder")
    away = recorded_runs([held])
    states = jnp.asarray(away.readings.state)[..., : len(monitor.state_mean)]
    tokens = jnp.asarray(away.readings.flat)
    note, blind = sighted.start(states[:, 2], tokens[:, 2]), states[:, 2]
    errors = []
    for look in range(3, states.shape[1]):
        command = jnp.asarray(away.commands)[:, look - 1]
        note = sighted.step(note, states[:, look], tokens[:, look], command)
        blind = monitor.motion.predict(blind, command)
        there = np.asarray(away.mask)[:, look] & (look >= 12)
        both = np.stack([note.state, blind])[:, there, 3]
        errors.append(both - np.asarray(states)[there, look, 3])
    with_eyes, without = np.abs(np.concatenate(errors, axis=1)).mean(1)
    assert with_eyes < 0.8 * without


@pytest.mark.slow
def test_the_loop_reckons_with_the_cameras(tmp_path, policy, monitor):
    """A state that is scaled is named and repaired, with what `fit-reckoning` left and without it;
    the programs differ, and so do the actions."""
    shutil.copytree(MIST, tmp_path / "folder")
    width = len(monitor.state_mean)
    made = of_the_board(monitor, noise=jnp.full((2, width), 0.02), usual=jnp.full(width, 0.3))
    save_reckoning(tmp_path / "folder", made, policy.spec.fingerprint, {})
    faults, acted = condition("state_scaled"), []
    for arm in ("mist", "commands_only"):
        plan = EpisodePlan(episodes=2, first_seed=22_900_200, num_envs=2, **faults.plan)
        looped = make_arm(arm, Subject(policy, tmp_path / "folder"), faults.faults)
        for trace in collect(looped, tmp_path / arm, plan).traces():
            repaired = trace.aux["repaired"][:, monitor.inputs.index("state")]
            assert repaired.any()
            acted.append(trace.chunks[np.argmax(repaired)])
    assert not np.allclose(acted[:2], acted[2:])
    with pytest.raises(ValueError, match="fit-reckoning"):
        make_arm("commands_only", Subject(policy, MIST), faults.faults)
