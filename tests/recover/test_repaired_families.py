"""The loop around policies that write actions as tokens, read the state in their prompt, or run in
PyTorch: what a repaired input's sensor says reaches none of them. On the shipped policies.
"""

import dataclasses
import importlib.util

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.detect.novelty.fit import Recorded, fit_inputs
from mistjax.detect.novelty.reading import COMMAND, FIELDS, Reading, Reads
from mistjax.policies import load_policy
from mistjax.recover.decision import NEVER, Decision, Scripted
from mistjax.recover.fusion import FusionLimits
from mistjax.recover.repaired import Repaired
from mistjax.rollouts.loop import beside
from mistjax.steer.remedies.artifact import RepairConfig
from mistjax.steer.remedies.prompt import LastPrompt
from mistjax.steer.remedies.reckoning import DeadReckoning
from mistjax.steer.remedies.remedy import Proposal


@flax.struct.dataclass
class Held:
    """A camera's last good tokens, to compare with what the policy does on a sound picture."""

    size: tuple[int, int] = flax.struct.field(pytree_node=False)

    def blank(self, batch):
        return jnp.zeros((batch, *self.size))

    def note(self, seen, name):
        return seen.obs.image_embedding[:, : self.size[0]]

    def advance(self, note, seen):
        return note

    def propose(self, note, seen, name):
        tokens = jnp.asarray(seen.obs.image_embedding).at[:, : self.size[0]].set(note)
        obs = dataclasses.replace(seen.obs, image_embedding=tokens)
        return Proposal(obs, jnp.ones(len(note), bool), jnp.full(len(note), 2.0))


PLACE = "place the black stone at row 2 column 3"
FAULTY = ("front", "state", "instruction", None)
KEYS = jax.random.split(jax.random.key(0), len(FAULTY))


@pytest.fixture(
    scope="module",
    params=[
        "board_fast",
        pytest.param(
            "board_openvla",
            marks=pytest.mark.skipif(
                not importlib.util.find_spec("transformers"), reason="needs the extra `openvla`"
            ),
        ),
    ],
)
def policy(request):
    return load_policy(f"checkpoints/{request.param}")


def looks(policy, episodes=20, looks=6):
    """What was read once, over and over with noise."""
    read = Reads(policy).sample(policy.prepare(moment(False)), KEYS).aux
    rng = np.random.default_rng(1)

    def often(name):
        value = np.asarray(read[name][0])
        value = np.broadcast_to(value, (episodes, looks, *value.shape))
        return value if name == "read/prompt" else value + 0.1 * rng.normal(size=value.shape)

    values = {name: often(name).astype(read[name].dtype) for name in FIELDS}
    command = values.pop(COMMAND)
    reading = Reading(**{name.removeprefix("read/"): value for name, value in values.items()})
    return Recorded(reading, command, np.ones((episodes, looks), bool))


@pytest.fixture(scope="module")
def mist(policy):
    """Told what to repair, from the second look on; the monitor never alarms."""
    monitor = fit_inputs(policy, looks(policy), components=4, hidden=(8,), steps=3)
    first, last = policy.spec.stacks["vision"].layout.select("base_0_rgb")
    remedies = {
        "base_0_rgb": Held((last - first, policy.spec.stacks["vlm"].width)),
        "state": DeadReckoning(monitor.motion),
        "text": LastPrompt(monitor.words),
    }
    config = RepairConfig()
    limits = FusionLimits.of(policy.spec, config.cap, policy.chunk_width)
    repaired = Repaired(
        policy, monitor, remedies, limits, config, Decision("script", "script"), "mist"
    )
    told = [(name, 1 if name else NEVER) for name in FAULTY]
    return Scripted(repaired, lambda seed: told[seed])


def moment(faulty):
    """Four raw observations; in the first three, one input says something else if `faulty`."""
    rng = np.random.default_rng(0)
    rows = []
    for name in FAULTY:
        pictures = rng.integers(0, 256, (2, 64, 64, 3), np.uint8)
        state = rng.uniform(-0.05, 0.05, 5)
        here = name if faulty else None
        rows.append(
            {
                "observation/image": pictures[0] // 4 if here == "front" else pictures[0],
                "observation/wrist_image": pictures[1],
                "observation/state": state + 0.03 * (here == "state"),
                "prompt": "place the white stone" if here == "instruction" else PLACE,
            }
        )
    return rows


def acted(sample):
    """What was decided, to the last bit: actions of few tokens are often the same."""
    return np.asarray(sample.aux.get("token_log_prob", sample.actions))


@pytest.mark.slow
def test_a_repaired_input_is_read_as_it_was_or_must_be(policy, mist):
    sound, faulty = (policy.prepare(moment(faulty)) for faulty in (False, True))
    first = mist.sample(sound, KEYS, state=beside(mist, mist.begin(range(4))))
    bare, misled = (acted(policy.sample(obs, KEYS)) for obs in (sound, faulty))
    np.testing.assert_array_equal(acted(first), bare)
    then = [mist.sample(obs, KEYS, state=first.state) for obs in (faulty, sound)]
    repaired = np.asarray(then[0].aux["repaired"])
    assert np.argwhere(repaired).tolist() == [[0, 0], [1, 2], [2, 3]]  # front, state, text
    on_faulty, on_sound = map(acted, then)
    np.testing.assert_array_equal(on_faulty, on_sound)
    for row in (0, 2, 3):  # in row 1 the state moved on
        np.testing.assert_array_equal(on_faulty[row], bare[row])
    for row in range(3):
        assert not np.array_equal(on_faulty[row], misled[row])
