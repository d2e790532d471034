"""What a detector reads: of a sample and of its recording, the same numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.detect.inputs import DEFAULT_TAPS, PARTS, ChunkLayout, Input, declare
from mistjax.detect.methods.tokens import TokenUncertainty
from mistjax.hooks import Tap
from mistjax.policies.protocol import Sample
from mistjax.rollouts.trace import Trace

ROWS, LAYOUT, ONE = 5, ChunkLayout(3, 4, 7), ChunkLayout(1, 4, 7)
TAPS = {
    Tap("vlm.resid", None, "text", "mean"): (2, ROWS, 6),
    Tap("vlm.attn_heads", (0,), "text", "mean"): (1, ROWS, 3, 4),
    Tap("action.resid", None, "action", "mean"): (10, 2, ROWS, 6),
    Tap("action.resid", (-1,), "action"): (10, 1, ROWS, 4, 6),
    Tap("action.attn_heads", (-1,), "action"): (10, 1, ROWS, 4, 3, 2),
}


@pytest.fixture(scope="module")
def sample():
    """Rows of which the last decoded fewer tokens."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(1, 9, (ROWS, 6)).astype(np.int32)
    tokens[-1, 4:] = 0
    aux = {
        "sampled_actions": rng.normal(size=(ROWS, 3, 4, 7)),
        "sensitivity": rng.uniform(1, 2, ROWS),
        "velocity": rng.normal(size=(ROWS, 3, 4, 9)),
        "grounding": rng.normal(size=(ROWS, 10)),
        "token_log_prob": np.where(tokens == 0, 0, -rng.uniform(0, 3, tokens.shape)),
        "token_entropy": np.where(tokens == 0, 0, rng.uniform(0, 3, tokens.shape)),
    }
    return Sample(
        jnp.asarray(rng.normal(size=(ROWS, 4, 9)), jnp.float32),
        {str(tap): jnp.asarray(rng.normal(size=shape), jnp.float32) for tap, shape in TAPS.items()},
        {name: jnp.asarray(value, jnp.float32) for name, value in aux.items()}
        | {"tokens": jnp.asarray(tokens)},
    )


@pytest.fixture(scope="module")
def trace(sample):
    """The same rows as inferences of an episode."""
    return Trace(
        seed=0,
        env_id="known",
        task="t",
        prompt="t",
        policy="p",
        policy_fingerprint="p",
        success=True,
        state=np.zeros((ROWS, 1), np.float32),
        actions=np.zeros((ROWS, 7), np.float32),
        chunks=np.random.default_rng(1).normal(size=(ROWS, 4, 7)).astype(np.float32),
        inference_step=np.arange(ROWS, dtype=np.int32),
        timings_ms=np.zeros(ROWS, np.float32),
        features={str(tap): np.asarray(tap.batch_first(sample.taps[str(tap)])) for tap in TAPS},
        aux={name: np.asarray(value) for name, value in sample.aux.items()},
    )


def reads(*parts, **more):
    features = tuple(str(tap) for tap in TAPS) if "hidden" in parts else ()
    layout = {"chunk": ONE, "samples": LAYOUT, "positions": LAYOUT, "velocity": LAYOUT}
    found = next((layout[part] for part in parts if part in layout), None)
    return Input(parts, features, layout=found, **more)


EVERY = [
    reads("hidden"),
    reads("hidden", pool="1.0"),
    reads("hidden", pool="concat"),
    reads("hidden", pool="concat-2"),
    *(reads(part) for part in PARTS if part != "hidden"),
    reads("tokens", pad=0),
    reads("positions", displacements=False),
    reads("hidden", "positions"),
    reads("hidden", "chunk"),
    reads(),
]


@pytest.mark.parametrize("what", EVERY, ids=str)
def test_a_recorded_episode_is_read_as_it_was_live(what, sample, trace):
    live = jax.jit(what.live)(sample)
    np.testing.assert_array_equal(live, what.recorded(trace))
    assert live.dtype == jnp.float32 and live.shape[0] == ROWS


@pytest.mark.parametrize("what", EVERY, ids=str)
def test_a_declaration_survives_json(what):
    again = Input.from_json(what.to_json())
    assert again == what and hash(again) == hash(what)


def test_fewer_samples_than_were_recorded_are_the_first_ones(sample):
    two = dataclasses.replace(reads("samples"), layout=ChunkLayout(2, 4, 7))
    np.testing.assert_array_equal(
        two.live(sample), np.asarray(sample.aux["sampled_actions"])[:, :2].reshape(ROWS, -1)
    )


def test_a_token_that_was_not_decoded_does_not_count(sample):
    kind = ("probability", "mean"), ("entropy", "mean"), ("probability", "max"), ("entropy", "max")
    vectors = reads("tokens", pad=0).live(sample)
    shorter = {k: v[-1:, :4] for k, v in sample.aux.items() if k.startswith("token")}
    short = Sample(sample.actions[-1:], {}, shorter)
    for quantity, statistic in kind:
        detector = TokenUncertainty(quantity, statistic)
        padded = detector.logit(None, vectors)[-1:]
        np.testing.assert_allclose(
            padded, detector.logit(None, reads("tokens", pad=0).live(short)), rtol=1e-6
        )
        assert not np.allclose(padded, detector.logit(None, reads("tokens").live(sample))[-1:]) or (
            statistic == "max"
        )


def test_a_token_that_is_almost_impossible_counts(sample):
    low = sample.aux["token_log_prob"].at[0, 0].set(-200.0)
    sample = dataclasses.replace(sample, aux={**sample.aux, "token_log_prob": low})
    worst = TokenUncertainty("probability", "max").logit(None, reads("tokens").live(sample))
    assert 80 < worst[0] < np.inf


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"parts": ("smell",)}, "smell"),
        ({"parts": ("samples",)}, "needs layout"),
        ({"parts": ("hidden",)}, "needs features"),
        ({"parts": ("chunk",), "layout": LAYOUT}, "one chunk"),
        ({"parts": ("velocity",)}, "needs layout"),
        ({"parts": ("velocity", "chunk"), "layout": ONE}, "layouts of their own"),
        ({"features": ("a",), "pool": "median"}, "unknown pooling"),
    ],
)
def test_a_declaration_that_says_nothing_is_refused(wrong, why):
    with pytest.raises(ValueError, match=why):
        Input(**wrong)


def test_a_document_that_is_no_declaration_is_refused():
    with pytest.raises(ValueError, match="does not say what a detector reads"):
        Input.from_json({"parts": ["hidden"], "colour": 3})


def test_what_is_missing_or_of_another_shape_is_named(sample, trace):
    with pytest.raises(ValueError, match="token_log_prob"):
        reads("tokens").live(Sample(sample.actions, {}, {}))
    with pytest.raises(ValueError, match=r"vlm\.resid@all/text/mean"):
        reads("hidden").recorded(dataclasses.replace(trace, features={}))
    more = dataclasses.replace(reads("samples"), layout=ChunkLayout(4, 4, 7))
    with pytest.raises(ValueError, match="reads 4 chunks of 4 x 7 numbers; there are 3 of 4 x 7"):
        more.recorded(trace)
    longer = dataclasses.replace(reads("velocity"), layout=ChunkLayout(4, 4, 7))
    with pytest.raises(ValueError, match="velocities of 4 flow steps, 4 x 7; there are 3 of 4 x 9"):
        longer.recorded(trace)
    short = {**trace.aux, "sensitivity": trace.aux["sensitivity"][1:]}
    with pytest.raises(ValueError, match="another number of sensitivity"):
        reads("sensitivity").recorded(dataclasses.replace(trace, aux=short))


def test_what_runs_hold_is_declared_of_them(trace):
    name = str(next(iter(TAPS)))
    hidden = declare(("hidden",), [trace], features=[name], pool="1.0")
    assert hidden == Input(features=(name,), pool="1.0")
    assert declare(("samples",), [trace]).layout == LAYOUT
    assert declare(("chunk",), [trace]) == Input(("chunk",), layout=ONE)
    assert declare(("velocity",), [trace]).layout == ChunkLayout(3, 4, 7)
    assert declare(("tokens",), [trace]).pad == 0
    imported = dataclasses.replace(trace, aux={}, features={"encoded": np.zeros((ROWS, 2, 3, 4))})
    alone = declare(("hidden", "chunk"), [imported])
    assert alone.features == ("encoded",) and alone.robot_units
    assert alone.recorded(imported).shape == (ROWS, 4 + 28)
    assert "imported run" in alone.not_live
    default = {str(tap): np.zeros((ROWS, 1, 2), np.float32) for tap in DEFAULT_TAPS}
    assert declare(("hidden",), [dataclasses.replace(trace, features=default)]).taps == DEFAULT_TAPS
    with pytest.raises(ValueError, match="Choose with --features"):
        declare(("hidden",), [trace])
    with pytest.raises(ValueError, match="not recorded: aux token_entropy"):
        declare(("tokens",), [dataclasses.replace(trace, aux={"token_log_prob": np.zeros((5, 2))})])
