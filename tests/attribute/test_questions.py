"""What is asked of a moment becomes a readout that says it."""

import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.attribute.questions import Question, raw_observation
from mistjax.attribute.readouts import TokenLogProbability
from mistjax.policies.protocol import Sample


def test_an_action_dimension_is_its_mean_over_the_executed_steps(linear, linear_obs, raw, key):
    readout = Question("z").readout(linear, raw, linear_obs, key, None)
    sample = linear.sample(linear_obs, key)
    np.testing.assert_allclose(readout(sample), sample.actions[:, 0, 0], rtol=1e-6)
    assert readout.name == "z"


def test_a_chunk_has_not_moved_from_itself(linear, linear_obs, raw, key):
    readout = Question("action").readout(linear, raw, linear_obs, key, None)
    assert not readout(linear.sample(linear_obs, key)).any()


def test_the_difference_to_another_prompt_is_its_length_here_and_nothing_there(
    linear, linear_obs, raw, key
):
    other = [{**row, "prompt": "move left slowly"} for row in raw]
    readout = Question("prompt", "move left slowly").readout(linear, raw, linear_obs, key, None)
    here, there = linear.sample(linear_obs, key), linear.sample(linear.prepare(other), key)
    length = jnp.sqrt(((here.actions - there.actions) ** 2).sum((1, 2)))
    np.testing.assert_allclose(readout(here), length, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(readout(there), 0, atol=1e-6)
    assert length[0] > 0 and not length[1]


@pytest.mark.parametrize(
    ("question", "methods", "says"),
    [
        (Question("dx"), ("iss",), "nothing is called 'dx': explain one of score, action"),
        (Question("prompt"), ("iss",), "needs one"),
        (Question("z", "move"), ("iss",), "nothing else does"),
        (Question(), ("iss",), "a detector's"),
        (Question("action"), ("iss", "saliency"), "saliency: how far a chunk moves"),
    ],
)
def test_what_cannot_be_asked_is_refused(question, methods, says, linear):
    with pytest.raises(ValueError, match=says):
        question.check(linear, methods, monitored=False)


def test_what_is_written_as_tokens_is_asked_about_as_tokens(linear, monkeypatch):
    with pytest.raises(ValueError, match="nothing is called 'tokens'"):
        Question("tokens").check(linear, ["iss"], monitored=False)
    monkeypatch.setattr(type(linear), "saying", lambda *_: linear, raising=False)
    with pytest.raises(ValueError, match="saliency: an action that is written as tokens has no"):
        Question("z").check(linear, ["iss", "saliency"], monitored=False)
    Question("tokens").check(linear, ["saliency"], monitored=False)
    with pytest.raises(ValueError, match="writes no tokens"):
        TokenLogProbability()(Sample(jnp.zeros((1, 1, 1)), {}, {}))


def test_an_episode_without_pictures_cannot_be_shown_again(linear):
    from tests.report.conftest import make_trace

    with pytest.raises(ValueError, match="collect it with --videos"):
        raw_observation(linear, make_trace(images={}), 0)
    with pytest.raises(ValueError, match="inferences 0 to 3, not 9"):
        raw_observation(linear, make_trace(), 9)
