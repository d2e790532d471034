"""Subcommands on why an episode fails, and on directions that change it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tyro.conf import Positional

from mistjax.files import refuse_file
from mistjax.ranges import whole


def explain(
    run: Positional[Path],
    /,
    *,
    policy: str,
    detector: Path,
    seed: int,
    inference: int | None = None,
    method: str = "integrated_gradients",
    memory: int | None = None,
    out: Path = Path("explanation.html"),
    preset: str | None = None,
    unnorm_key: str | None = None,
) -> None:
    """Say what the failure score of a recorded episode relies on, in a sentence and pictures.

    Args:
        run: run folder with the episode, recorded as video.
        policy: checkpoint folder, gs://BUCKET/PATH, hf://OWNER/REPOSITORY@COMMIT, or
            MODULE:FUNCTION for one of your own.
        detector: a calibrated detector.
        seed: which episode.
        inference: which inference; the first alarm by default, else the highest score.
        method: integrated_gradients, gradient_x_input, saliency, occlusion or iss.
        memory: MiB of temporary memory to stay within; 8 runs at a time by default.
        out: page to write.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
    """
    from mistjax.attribute.registry import ATTRIBUTIONS
    from mistjax.policies.load import load_policy
    from mistjax.report.explanation import explain_episode
    from mistjax.rollouts.run import load_run

    recorded = load_run(run)
    if seed not in recorded.seeds:
        raise ValueError(f"{run} has no episode with seed {seed}: it has {_few(recorded.seeds)}.")
    if inference is not None:
        whole("inference", inference, 0)
    budget = None if memory is None else whole("memory", memory, 1) * 2**20
    if method not in ATTRIBUTIONS:
        raise ValueError(
            f"no method is called {method!r}; choose one of {', '.join(ATTRIBUTIONS)}."
        )
    refuse_file(out.parent)
    bare = load_policy(policy, preset, unnorm_key=unnorm_key)
    print(explain_episode(bare, detector, recorded, seed, out, inference, method, budget))
    print(
        f"{out}: the same in pictures. Shares are of what raises the score by {method}: what the "
        "score rests on, which need not be what made the episode fail.\n"
        f"Next: mistjax vectors {policy} --run {run} --out {detector}"
    )


def vectors(
    policy: Positional[str],
    /,
    *,
    out: Path,
    run: Path | None = None,
    concepts: dict[str, str] | None = None,
    preset: str | None = None,
    unnorm_key: str | None = None,
) -> None:
    """Build steering vectors: from words, and from failure to success in a recorded run.

    Args:
        policy: checkpoint folder, gs://BUCKET/PATH, hf://OWNER/REPOSITORY@COMMIT, or
            MODULE:FUNCTION for one of your own.
        out: folder to write them to.
        run: run folder of the policy.
        concepts: name and its words, comma-separated; the board's own by default.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
    """
    from mistjax.policies.load import load_policy
    from mistjax.rollouts.run import load_run
    from mistjax.steer.build import write_vectors

    words = concepts and {name: text.split(",") for name, text in concepts.items()}
    for name, some in (words or {}).items():
        if not all(word.strip() for word in some):
            raise ValueError(f"concept {name!r} is {','.join(some)!r}: expected words, WORD,WORD.")
    refuse_file(out)
    if run is not None:
        load_run(run)  # refuses, if it must, before a policy is loaded
    print(
        write_vectors(
            load_policy(policy, preset, unnorm_key=unnorm_key), out, concepts=words, run=run
        )
    )
    print(
        f"{out}/steering.json: these directions. That they separate what they were made from says "
        "nothing yet about steering along them.\n"
        f"Next: mistjax remedy {out}"
    )


def remedy(
    folder: Positional[Path],
    /,
    *,
    strengths: tuple[float, ...] = (1.0,),
    cap: float = 0.25,
    weight: float = 1.0,
    method: str = "gradient_x_input",
) -> None:
    """Say how far and how long to steer after an alarm along the directions of a folder.

    Args:
        folder: what `vectors` wrote; with a calibrated detector in it, it is what `eval --mist`
            takes.
        strengths: share of each direction's own strength at the first, second ... inference since
            the alarm; the last one holds. 0 as the last ends the remedy until the next alarm.
        cap: largest change of an action, as a share of its range.
        weight: share of the steered chunk in the executed one.
        method: attribution that finds the cause; see `explain`.
    """
    from mistjax.recover.artifact import RemedyConfig, save_remedy

    save_remedy(folder, RemedyConfig(strengths, cap, weight, method))
    shares = ", ".join(f"{strength:.0%}" for strength in strengths)
    print(
        f"{folder}/remedy.json: from an alarm on steer at {shares} of each direction's own "
        f"strength, an inference each, the last one on.\n"
        f"At most {cap:.0%} of an action's range is changed, and {weight:.0%} of the steered chunk "
        "is executed: that is bounded, not whether it helps.\n"
        f"Next: mistjax eval POLICY --mist {folder} --arms bare monitor random mist --out STUDY"
    )


def fit_imputer(
    runs: Positional[tuple[Path, ...]],
    /,
    *,
    policy: str,
    out: Path,
    cap: float = 1.0,
    patience: int = 2,
    budget: int = 200,
    components: int = 128,
    hidden: int = 384,
    steps: int = 5000,
    seed: int = 0,
    preset: str | None = None,
    unnorm_key: str | None = None,
) -> None:
    """Fit what stands in for a camera that is unsound to clean runs; the other inputs need no fit.

    Args:
        runs: run folders of clean episodes, recorded with `collect --inputs`; no faulty ones.
        policy: what was recorded: checkpoint folder, gs://BUCKET/PATH or hf://OWNER/REPOSITORY.
        out: folder of a monitor of inputs, see `fit-inputs`.
        cap: largest change of an action, as a share of its range; 1 draws no bare chunk beside the
            repaired one.
        patience: inferences in a row in which a sensor agrees with what stands in for it, until it
            is believed again.
        budget: inferences of an episode that an input is repaired for, at most.
        components: principal components of each camera's image tokens, at most.
        hidden: width of the two hidden layers.
        steps: of training.
        seed: of weights and pairs.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
    """
    from mistjax.policies.load import load_policy
    from mistjax.rollouts.run import load_run
    from mistjax.steer.remedies.artifact import RepairConfig
    from mistjax.steer.remedies.build import build_imputer

    config = RepairConfig(cap, patience, budget)
    sizes = {"components": components, "hidden": hidden, "steps": steps}
    sizes = {name: whole(name, value, 1) for name, value in sizes.items()}
    refuse_file(out)
    loaded = [load_run(run) for run in runs]
    said = build_imputer(
        load_policy(policy, preset, unnorm_key=unnorm_key),
        loaded,
        out,
        config=config,
        seed=whole("seed", seed, 0),
        **sizes,
    )
    for camera in said:
        print(camera)
    print(
        f"{out}/repairs.json: of held-out clean episodes; how much a repair helps is another "
        f"matter.\nNext: mistjax eval {policy} --mist {out} --arms bare monitor mist "
        "--faults MIXTURE --out STUDY"
    )


def _few(seeds: Sequence[int]) -> str:
    """Some numbers in words."""
    if not seeds:
        return "none"
    return ", ".join(map(str, seeds[:5])) + f" and {len(seeds) - 5} more" * (len(seeds) > 5)
