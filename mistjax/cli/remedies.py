"""Subcommands on why an episode fails, and on directions that change it."""

from __future__ import annotations

from pathlib import Path

from tyro.conf import Positional


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
    from mistjax.policies.load import load_policy
    from mistjax.report.explanation import explain_episode
    from mistjax.rollouts.run import load_run

    bare = load_policy(policy, preset, unnorm_key=unnorm_key)
    budget = None if memory is None else memory * 2**20
    print(explain_episode(bare, detector, load_run(run), seed, out, inference, method, budget))


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
    from mistjax.steer.build import write_vectors

    words = concepts and {name: text.split(",") for name, text in concepts.items()}
    print(
        write_vectors(
            load_policy(policy, preset, unnorm_key=unnorm_key), out, concepts=words, run=run
        )
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
    print(f"{folder}/remedy.json")
