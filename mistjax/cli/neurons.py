"""Subcommands on what single neurons and sparse features write and do."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional

from mistjax.files import refuse_file, refuse_folder
from mistjax.ranges import whole
from mistjax.tracking import Track, Trackers


def words(
    policy: Positional[str],
    /,
    *,
    run: Path | None = None,
    stack: str = "vlm",
    top: int = 1,
    clusters: int = 8,
    concepts: dict[str, str] | None = None,
    doses: tuple[float, ...] = (-1.0, -0.5, 0.5, 1.0),
    controls: int = 12,
    scenes: int = 32,
    statistics: tuple[str, ...] = (),
    seed: int = 0,
    out: Path = Path("words.html"),
    preset: str | None = None,
    unnorm_key: str | None = None,
) -> None:
    """Browse which neurons write which words, and measure what they do to the actions.

    Args:
        policy: checkpoint folder, gs://BUCKET/PATH, hf://OWNER/REPOSITORY@COMMIT, or
            MODULE:FUNCTION for one of your own.
        run: run folder with episodes recorded as video, on whose scenes effects are measured;
            without one nothing is measured.
        stack: vlm (words), or action (directions of motion).
        top: how many names of a neuron count when concepts are searched.
        clusters: of value vectors; 0 for none.
        concepts: name and its words, comma-separated; a word that begins with - is written [-]dz.
        doses: activations that a concept's neurons are set to, and raised by; 1 is what only one
            neuron in a hundred reaches.
        controls: number of sets of random neurons beside each concept.
        scenes: number of recorded observations.
        statistics: speed, or action dimensions such as dz.
        seed: of clusters, controls and noise.
        out: page to write.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
    """
    from mistjax.policies.load import load_policy
    from mistjax.report.words import WordsConfig, words_run
    from mistjax.rollouts.run import load_run
    from mistjax.steer.build import parse_concepts

    config = WordsConfig(
        stack=stack,
        top=whole("top", top, 1),
        clusters=whole("clusters", clusters, 0),
        concepts=parse_concepts(concepts) or {},
        doses=doses,
        controls=whole("controls", controls, 1),
        scenes=whole("scenes", scenes, 2),
        statistics=statistics,
        seed=whole("seed", seed, 0),
    )
    refuse_folder(out)
    recorded = None if run is None else load_run(run)
    print(words_run(load_policy(policy, preset, unnorm_key=unnorm_key), config, out, recorded))
    then = f"mistjax vectors {policy} --concepts NAME WORD,WORD --out VECTORS"
    if run is None:
        then = f"mistjax words {policy} --run RUN"
    print(
        f"{out}: all layers, names and clusters. What a neuron writes is read off the weights; "
        f"whether it does what it writes is another matter.\nNext: {then}"
    )


def train_sae(
    run: Positional[Path],
    /,
    *,
    policy: str,
    tap: str,
    out: Path,
    features: int = 512,
    k: int = 16,
    epochs: int = 20,
    batch: int = 512,
    learning_rate: float = 1e-3,
    cards: int = 6,
    episodes: int = 0,
    first_seed: int = 6_000_000,
    seed: int = 0,
    preset: str | None = None,
    unnorm_key: str | None = None,
    track: Track = Trackers(),
) -> None:
    """Find sparse features of recorded activations, and say what they tell and do.

    Args:
        run: run folder, recorded with the tap; cards have pictures where there are videos.
        policy: checkpoint folder, gs://BUCKET/PATH, hf://OWNER/REPOSITORY@COMMIT, or
            MODULE:FUNCTION for one of your own.
        tap: one layer's tokens, e.g. action.resid@-1/action/tokens.
        out: folder for the autoencoder, the directions of its features and the page.
        features: number of features.
        k: active features per token.
        epochs: of training.
        batch: tokens per update.
        learning_rate: of Adam.
        cards: number of features that are shown, and saved as directions.
        episodes: to play with the features in place of the tokens, and with every control; 0
            plays none.
        first_seed: of these episodes.
        seed: of weights and noise.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
    """
    from mistjax.hooks.sites import Tap
    from mistjax.policies.load import load_policy
    from mistjax.report.features import SparseConfig, train_features
    from mistjax.rollouts.run import load_run
    from mistjax.steer.artifact import load_steering

    sizes = {"features": features, "k": k, "epochs": epochs, "batch": batch, "cards": cards}
    config = SparseConfig(
        tap=Tap.parse(tap),
        **{name: whole(name, value, 1) for name, value in sizes.items()},
        learning_rate=learning_rate,
        episodes=whole("episodes", episodes, 0),
        first_seed=whole("first_seed", first_seed, 0),
        seed=whole("seed", seed, 0),
    )
    refuse_file(out)
    track.check()
    recorded = load_run(run)
    bare = load_policy(policy, preset, unnorm_key=unnorm_key)
    with track.open(out.name, {"run": str(run), "tap": tap, **sizes}) as log:
        print(train_features(bare, recorded, config, out, log))
    feature = next(iter(load_steering(out, bare.spec).directions), "feature_N")
    print(
        f"{out}/features.html: a card for each of the {cards} most telling features. That a "
        f"feature tells failures apart does not say that it makes them.\n"
        f"Next: mistjax collect {policy} --steer {out} {feature} 1.0 --out STEERED\n"
        f"      mistjax train-detector {run} --sae {out} --detector linear_probe --out DETECTOR"
    )
