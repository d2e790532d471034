"""What every policy promises, and what pi0 and pi0-FAST promise beyond."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mistjax.attribute.readouts import TokenLogProbability
from mistjax.hooks import Add, Tap
from mistjax.models.checkpoints import fingerprint
from mistjax.models.fast import next_token_loss
from mistjax.models.fast_language import pad_actions
from mistjax.policies import BOARD, FastPolicy, LanguagePolicy, PiPolicy, Policy, Sample

KEY = jax.random.key(5)
TAPS = (Tap("vlm.resid", (1,), "text", "mean"), Tap("action.resid", (-1,), "action", "mean"))


@pytest.fixture(params=["pi_policy", "fast_policy"])
def policy(request):
    return request.getfixturevalue(request.param)


def continuous(sample):
    """What depends smoothly on everything: actions, or log-probabilities of the tokens."""
    return sample.aux.get("token_log_prob", sample.actions)


def test_a_policy_satisfies_the_protocol(policy, lacking):
    assert isinstance(policy, Policy) and not lacking(policy, Policy)
    assert isinstance(policy, LanguagePolicy) and not lacking(policy, LanguagePolicy)
    spec = policy.spec
    assert spec.action_names == ("dx", "dy", "dz", "gripper") and spec.action_dim == 4
    assert spec.stacks["vlm"].layout.select("text")[1] == policy.config.prefix_len
    assert spec.stacks["action"].depth == 3 and spec.num_steps == policy.config.num_steps
    assert len(spec.fingerprint) == 64


def test_a_sample_is_the_same_for_the_same_key_row_by_row(policy, raw):
    obs = policy.prepare(raw)
    whole = policy.sample(obs, KEY, taps=TAPS)
    assert whole.actions.shape == (2, policy.spec.action_horizon, policy.config.action_dim)
    assert set(whole.taps) == {str(tap) for tap in TAPS}
    again = policy.sample(obs, jax.random.split(KEY, 2), taps=TAPS)
    np.testing.assert_array_equal(continuous(whole), continuous(again))
    swapped = policy.prepare(raw[::-1])
    other = policy.sample(swapped, jax.random.split(KEY, 2)[::-1], taps=TAPS)
    np.testing.assert_allclose(continuous(other)[::-1], continuous(whole), atol=1e-5)


@pytest.mark.parametrize(
    "policy", ["pi_policy", pytest.param("fast_policy", marks=pytest.mark.slow)]
)
def test_a_sample_does_not_depend_on_how_jax_is_set(request, policy, raw):
    policy = request.getfixturevalue(policy)
    if isinstance(policy, FastPolicy):
        policy = policy.replace(temperature=1.0)
    usual = policy.sample(policy.prepare(raw), KEY, taps=TAPS)
    with jax.enable_x64(True), jax.threefry_partitionable(False):
        other = policy.sample(policy.prepare(raw), KEY, taps=TAPS)
        jax.tree.map(np.testing.assert_array_equal, other, usual)
        assert jax.tree.map(lambda x: x.dtype, other) == jax.tree.map(lambda x: x.dtype, usual)


def test_a_prefix_serves_many_samples(policy, raw):
    obs = policy.prepare(raw)
    prefix = policy.prefill(obs, taps=TAPS)
    reused, whole = (
        policy.sample(obs, KEY, prefix=prefix, taps=TAPS),
        policy.sample(obs, KEY, taps=TAPS),
    )
    np.testing.assert_allclose(continuous(reused), continuous(whole), atol=1e-5)
    assert set(reused.taps) == set(whole.taps)


def test_finished_actions_are_the_robots_and_inside_its_bounds(policy, raw):
    horizon = policy.spec.action_horizon
    model = jnp.linspace(-9, 9, 2 * horizon * policy.config.action_dim)
    sample = Sample(model.reshape(2, horizon, -1), {}, {})
    actions = policy.finish(sample, raw)
    assert actions.shape == (2, horizon, 4) and actions.dtype == np.float32
    assert actions.min() == -1 and actions.max() == 1
    middle = policy.finish(Sample(jnp.zeros((2, horizon, policy.config.action_dim)), {}, {}), raw)
    np.testing.assert_allclose(
        middle[0, 0], policy.action_normalizer.unnormalize(np.zeros(4)), atol=1e-6
    )


def test_an_objective_has_gradients_for_words_pictures_and_edits(policy, raw):
    obs = policy.embed_prompt(jax.tree.map(jnp.asarray, policy.prepare(raw)))
    vector = jnp.zeros((3, 32))

    def total(words, images, vector):
        edit = Add(site="vlm.mlp_out", vector=vector)
        seen = obs.replace(prompt_embedding=words, images=images)
        values = policy.objective(
            seen, KEY, lambda s: continuous(s).reshape(2, -1).sum(axis=1), edits=[edit]
        )
        return values.sum()

    gradients = jax.grad(total, argnums=(0, 1, 2))(obs.prompt_embedding, obs.images, vector)
    for leaf in jax.tree.leaves(gradients):
        assert np.isfinite(leaf).all() and np.abs(leaf).max() > 0


def test_a_saved_policy_acts_as_before(policy, raw, tmp_path):
    policy.save(tmp_path / "policy")
    loaded = type(policy).load(tmp_path / "policy", policy.preset)
    assert loaded.spec.fingerprint == policy.spec.fingerprint
    before, after = (p.prepare(raw) for p in (policy, loaded))
    jax.tree.map(np.testing.assert_array_equal, before, after)
    np.testing.assert_array_equal(
        continuous(policy.sample(before, KEY, taps=TAPS)),
        continuous(loaded.sample(after, KEY, taps=TAPS)),
    )


def test_a_raw_observation_of_another_robot_is_refused(policy, raw):
    with pytest.raises(ValueError, match="has 6 entries; preset 'board' has 5"):
        policy.prepare([{**raw[0], "observation/state": np.zeros(6)}])
    with pytest.raises(ValueError, match="observation/wrist_image"):
        policy.prepare([{k: v for k, v in raw[0].items() if k != "observation/wrist_image"}])


STATE, PICTURE = "observation/state", "observation/image"
WRONG = {
    "NaN": ({STATE: [0, np.nan, 0, 0, 0]}, r"observation/state.* holds \[1\] nan"),
    "Inf": ({STATE: [0, 0, 0, -np.inf, 0]}, r"observation/state.* holds \[3\] -inf"),
    "beyond float32": ({STATE: [0, 0, 1e300, 0, 0]}, r"observation/state.* holds \[2\] inf"),
    "beyond its units": ({STATE: np.full(5, 3e38)}, "too large to be normalised|no bins"),
    "None": ({STATE: [0, None, 0, 0, 0]}, "observation/state"),
    "a batch of states": ({STATE: np.zeros((1, 5))}, r"observation/state is .*\[1, 5\]"),
    "text for a state": ({STATE: "12345"}, "observation/state"),
    "float pictures": ({PICTURE: np.full((8, 8, 3), 127.0)}, "observation/image is float64"),
    "no prompt": ({"prompt": None}, "no 'prompt'"),
    "an empty prompt": ({"prompt": " "}, "prompt is ' '"),
    "bytes": ({"prompt": b"go"}, "prompt is bytes"),
}


@pytest.mark.parametrize(("wrong", "message"), WRONG.values(), ids=WRONG)
def test_what_no_robot_sends_is_refused_by_its_name(policy, raw, wrong, message):
    with pytest.raises(ValueError, match=message):
        policy.prepare([raw[0], {**raw[1], **wrong}])


def test_an_observation_says_the_same_in_any_form(policy, raw):
    flat = policy.prepare(raw[:1])
    nested = {"observation": {k.split("/")[1]: v for k, v in raw[0].items() if "/" in k}}
    for other in (
        {**nested, "prompt": np.array(raw[0]["prompt"])},
        {**raw[0], PICTURE: raw[0][PICTURE].transpose(2, 0, 1), "prompt": np.str_("place it")},
        {**raw[0], STATE: raw[0][STATE].tolist(), "prompt": np.array("place it", object)},
    ):
        jax.tree.map(np.testing.assert_array_equal, policy.prepare([other]), flat)


def test_a_default_prompt_stands_in_for_one_that_is_missing(policy, raw):
    preset = dataclasses.replace(policy.preset, default_prompt="place it")
    said = policy.prepare(raw[:1]).tokenized_prompt
    for prompt in ({}, {"prompt": None}):
        silent = {**{k: v for k, v in raw[0].items() if k != "prompt"}, **prompt}
        seen = policy.replace(preset=preset).prepare([silent]).tokenized_prompt
        np.testing.assert_array_equal(seen, said)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_whatever_a_model_says_goes_out_finite_and_inside_the_bounds(policy, raw, bad):
    chunks = np.zeros((2, policy.spec.action_horizon, policy.config.action_dim), np.float32)
    chunks[1, 1, 2] = bad
    stats = jax.tree.map(lambda numbers: 9 * numbers, policy.norm_stats)
    actions = policy.replace(norm_stats=stats).finish(Sample(jnp.asarray(chunks), {}, {}), raw)
    assert np.isfinite(actions).all() and np.abs(actions).max() <= 1
    held = np.clip(policy.preset.fallback(raw[1][STATE]), -1, 1)
    np.testing.assert_array_equal(actions[1], np.tile(held, (len(actions[1]), 1)))


def test_chunks_of_other_observations_or_another_robot_are_refused(policy, raw):
    for shape in ((1, 4, 4), (2, 4, 3)):
        with pytest.raises(ValueError, match=r"for 2 observations of preset 'board"):
            policy.finish(Sample(jnp.zeros(shape), {}, {}), raw)


def test_an_absent_camera_is_black_and_only_fast_attends_to_it(pi_policy, fast_policy, raw):
    first, second = BOARD.cameras
    cameras = {**BOARD.cameras, second: None}
    for policy, mask in ((pi_policy, False), (fast_policy, True)):
        preset = dataclasses.replace(policy.preset, cameras=cameras)
        obs = policy.replace(preset=preset).prepare(raw)
        assert obs.image_masks[first].all() and (obs.image_masks[second] == mask).all()
        assert (obs.images[second] == -1).all()


def test_pi05_writes_the_state_into_the_prompt(pi_policy, raw, letters):
    preset = dataclasses.replace(BOARD, state_in_prompt=True, normalizer="quantile")
    tokenizer = dataclasses.replace(pi_policy.tokenizer, max_tokens=64)
    obs = pi_policy.replace(preset=preset, tokenizer=tokenizer).prepare(raw)
    text = tokenizer.decode(obs.tokenized_prompt[0])
    assert text.startswith("Task: place it, State: ") and text.rstrip().endswith("Action:")


def test_velocities_of_pi0_sum_to_its_actions(pi_policy, raw):
    sample = pi_policy.sample(pi_policy.prepare(raw), KEY, taps=TAPS)
    keys = jax.random.split(KEY, 2)
    noise = jax.vmap(lambda k: jax.random.normal(k, sample.actions.shape[1:]))(keys)
    np.testing.assert_allclose(
        noise - sample.aux["velocity"].mean(axis=1), sample.actions, atol=1e-5
    )


def test_fast_prompts_hold_the_state_and_no_padding_of_it(fast_policy, raw):
    obs = fast_policy.prepare(raw)
    assert obs.state.shape == (2, 5)
    text = fast_policy.tokenizer.prompts.decode(obs.tokenized_prompt[0])
    assert "place it" in text and text.count(" ") >= 6


def test_tokens_that_are_no_action_are_reported(fast_policy, raw):
    sample = fast_policy.sample(fast_policy.prepare(raw), KEY, taps=TAPS)
    assert sample.aux["decode_ok"].tolist() == [False, False]
    assert not sample.actions.any()
    assert sample.aux["tokens"].shape == (2, fast_policy.config.max_decoding_steps)


def test_with_the_grammar_random_weights_write_whole_actions(fast_policy, raw):
    tokenizer = fast_policy.tokenizer
    steps = len(tokenizer.grammar.forced)
    config = dataclasses.replace(fast_policy.config, whole_actions=True, max_decoding_steps=steps)
    policy = fast_policy.replace(config=config)
    sample = policy.sample(policy.prepare(raw), KEY)
    assert sample.aux["decode_ok"].all() and (sample.actions != 0).any()


def test_fast_reads_the_actions_that_it_was_taught(fast_policy):
    rng = np.random.default_rng(1)
    chunks = np.cumsum(rng.normal(0, 0.2, (3, 4, 4)), axis=1)
    written = [fast_policy.tokenizer.encode_actions(chunk) for chunk in chunks]
    decoded, ok = fast_policy.tokenizer.decode_actions(jnp.asarray(pad_actions(written, 64)))
    assert ok.all()
    np.testing.assert_allclose(decoded, chunks, atol=0.15)


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_tokens_from_logits_that_are_no_numbers_are_no_action(fast_policy, raw, whole, temperature):
    steps = len(fast_policy.tokenizer.grammar.forced)
    config = dataclasses.replace(fast_policy.config, whole_actions=True, max_decoding_steps=steps)
    policy = fast_policy.replace(temperature=temperature)
    policy = policy.replace(config=config) if whole else policy
    obs = policy.prepare(raw)
    for image in obs.images.values():
        image[1, 0, 0, 0] = np.nan
    sample = policy.sample(obs, KEY, taps=() if whole else TAPS)
    assert sample.aux["decode_ok"].tolist() == [whole, False]
    held = policy.finish(sample, raw)[1]
    np.testing.assert_array_equal(held[:, :3], 0)


def test_a_temperature_or_a_vocabulary_that_none_has_is_refused(fast_policy, pi_policy):
    for bad in (np.nan, -1.0, np.inf):
        with pytest.raises(ValueError, match="temperature is"):
            fast_policy.replace(temperature=bad)
    with pytest.raises(ValueError, match="the model embeds 20"):
        pi_policy.replace(config=dataclasses.replace(pi_policy.config, vocab_size=20))


def test_action_tokens_of_another_shape_are_refused(fast_policy):
    config = dataclasses.replace(fast_policy.config, action_horizon=9)
    with pytest.raises(ValueError, match=r"chunks of \(4, 4\), the configuration for \(9, 4\)"):
        fast_policy.replace(config=config)


def test_too_few_decoding_steps_for_any_action_are_refused(fast_policy):
    config = dataclasses.replace(fast_policy.config, max_decoding_steps=10)
    with pytest.raises(ValueError, match="11 tokens around an action"):
        fast_policy.replace(config=config)


@dataclasses.dataclass(frozen=True)
class Halved:
    """A robot with half of the model's units."""

    def to_robot_actions(self, actions):
        return actions / 2

    def to_model_state(self, state):
        return state * 2


def test_the_fingerprint_covers_all_that_a_policy_does(policy, monkeypatch):
    board = policy.preset
    before = fingerprint(
        policy.variables["params"],
        policy.config.to_json(),
        policy.norm_stats,
        policy.tokenizer.serialized,
    )
    assert policy.spec.fingerprint == before  # what was made with it goes on to load
    first, second = board.cameras.values()
    changes = {
        "normalizer": {"zscore": "quantile", "quantile": "zscore"}[board.normalizer],
        "cameras": dict(zip(board.cameras, (second, first), strict=True)),
        "state_key": ("observation/state",),
        "state_in_prompt": True,
        "delta": (True, False, False, False),
        "units": Halved(),
        "default_prompt": "go",
        "execute_steps": 2,
        "action_low": (-2.0,) * 4,
        "fallback": None,
    }
    others = [
        policy.replace(preset=dataclasses.replace(board, **{name: value}))
        for name, value in changes.items()
    ]
    steps = "max_decoding_steps" if isinstance(policy, FastPolicy) else "num_steps"
    others.append(policy.replace(config=dataclasses.replace(policy.config, **{steps: 13})))
    if isinstance(policy, FastPolicy):
        others += [policy.replace(temperature=t) for t in (0.5, jnp.float32(0.7))]
    prints = [p.spec.fingerprint for p in others]
    monkeypatch.setattr("mistjax.policies.pi.FORMAT", 2)
    prints.append(policy.replace(name="later").spec.fingerprint)
    assert len({before, *prints}) == len(prints) + 1
    renamed = dataclasses.replace(board, name="mine", env_options={"image_size": 8})
    monkeypatch.undo()
    assert policy.replace(preset=renamed).spec.fingerprint == before


def test_policies_are_pytrees_whose_weights_are_arguments(policy):
    leaves, structure = jax.tree.flatten(policy)
    assert isinstance(jax.tree.unflatten(structure, leaves), PiPolicy)
    assert isinstance(policy, FastPolicy) == ("fast" in policy.name)
    assert sum(leaf.size for leaf in jax.tree.leaves(policy.variables)) > 10_000


@pytest.mark.slow
def test_given_tokens_are_scored_as_the_training_loss_scores_them(fast_policy, raw):
    config = dataclasses.replace(fast_policy.config, decoding_gap=0)  # where the loss sees them
    fast_policy = fast_policy.replace(config=config)
    prepared = [fast_policy.prepare(rows) for rows in (raw, raw[::-1])]
    here, there = jax.tree.map(jnp.asarray, prepared)
    own = fast_policy.sample(here, KEY).aux["tokens"]
    said = fast_policy.saying(here, KEY)
    found = said.sample(there, KEY).aux
    np.testing.assert_array_equal(found["tokens"], own)
    loss = next_token_loss(fast_policy.model, fast_policy.variables, there, own)
    np.testing.assert_allclose(
        found["token_log_prob"].sum(1), -np.asarray(loss) * (np.asarray(own) != 0).sum(1), rtol=1e-4
    )
    gradient = jax.grad(
        lambda words: said.objective(
            dataclasses.replace(there, prompt_embedding=words), KEY, TokenLogProbability()
        ).sum()
    )(fast_policy.embed_prompt(there).prompt_embedding)
    assert jnp.isfinite(gradient).all() and jnp.abs(gradient).max() > 1e-6
