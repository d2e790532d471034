"""Subcommands on why an episode fails, and on what can be done about it."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from mistjax.files import atomic, refuse_file, refuse_folder
from mistjax.ranges import between, whole


def explain(
    run: Positional[Path],
    /,
    *,
    policy: str,
    detector: Path | None = None,
    seed: int | None = None,
    inference: int | Literal["all"] | None = None,
    method: tuple[str, ...] = ("integrated_gradients",),
    of: str = "score",
    prompt: str | None = None,
    memory: int | None = None,
    out: Path = Path("explanation.html"),
    preset: str | None = None,
    unnorm_key: str | None = None,
) -> None:
    """Say what a policy relied on in a recorded moment, episode or run, in sentences and pictures.

    Args:
        run: run folder, with episodes recorded as video.
        policy: checkpoint folder, gs://BUCKET/PATH, hf://OWNER/REPOSITORY@COMMIT, or
            MODULE:FUNCTION for one of your own.
        detector: a calibrated detector, whose failure score is explained.
        seed: which episode; all of the run by default.
        inference: which inference, or all; by default the first alarm, else the highest score
            (without a detector, the first inference).
        method: one or several, side by side: integrated_gradients, gradient_x_input, saliency,
            occlusion, iss (as published), iss_regression (its changes regressed on the masks),
            attention_mass, token_norm, cache_ablation or camera_masking.
        of: what is explained: score; action (how far it moves); an action dimension, such as dz;
            prompt (the difference from the action under another prompt); or tokens (how likely they
            are, where a policy writes its action as tokens).
        prompt: that other prompt.
        memory: MiB of temporary memory to stay within; by default 8 runs at a time.
        out: page to write.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
    """
    from mistjax.attribute.questions import SCORE, Question
    from mistjax.attribute.registry import ATTRIBUTIONS
    from mistjax.policies.load import load_policy
    from mistjax.recover.artifact import load_monitor
    from mistjax.report.methods import explain_run
    from mistjax.rollouts.run import load_run

    recorded = load_run(run)
    if seed is not None and seed not in recorded.seeds:
        raise ValueError(f"{run} has no episode with seed {seed}: it has {_few(recorded.seeds)}.")
    if isinstance(inference, int):
        whole("inference", inference, 0)
    budget = None if memory is None else whole("memory", memory, 1) * 2**20
    method = tuple(map(_current, method))
    unknown = [name for name in method if name not in ATTRIBUTIONS]
    if unknown or not method or len(set(method)) < len(method):
        raise ValueError(f"methods are {method}: choose some of {', '.join(ATTRIBUTIONS)}.")
    refuse_folder(out)
    bare = load_policy(policy, preset, unnorm_key=unnorm_key)
    monitor = None if detector is None else load_monitor(detector, bare)
    question = Question(of, prompt)
    print(
        explain_run(
            bare,
            recorded,
            question,
            method,
            out,
            monitor=monitor,
            seed=seed,
            inference=inference,
            memory=budget,
        )
    )
    then = f"mistjax vectors {policy} --run {run} --out {detector}"
    if detector is not None and (detector / "steering.json").exists():
        then = f"mistjax eval {policy} --mist {detector} --out STUDY"
    if of != SCORE:
        then = f"mistjax eval {policy} --out STUDY"
    print(
        f"{out}: the same in pictures. Shares are of what raises the readout: what it relies on, "
        f"which need not be what made the episode fail.\nNext: {then}"
    )


def patch(
    run: Positional[Path],
    /,
    *,
    policy: str,
    seed: int,
    inference: int = 0,
    corrupt: str = "word",
    prompt: str | None = None,
    restore: tuple[str, ...] = ("stacks", "layers", "heads", "tokens"),
    chunk: int = 8,
    out: Path = Path("patching.html"),
    preset: str | None = None,
    unnorm_key: str | None = None,
) -> None:
    """Corrupt a recorded moment, restore it unit by unit, and draw what carries the action.

    Args:
        run: run folder with the episode, recorded as video.
        policy: checkpoint folder, gs://BUCKET/PATH, hf://OWNER/REPOSITORY@COMMIT, or
            MODULE:FUNCTION for one of your own.
        seed: which episode.
        inference: which inference.
        corrupt: word or patch (the one that moves the action most), a camera by name, text or
            state.
        prompt: corrupt by this prompt instead.
        restore: some of stacks, layers, heads and tokens.
        chunk: number of restored runs at a time.
        out: page to write.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
    """
    from mistjax.attribute.restoration import UNITS
    from mistjax.policies.load import load_policy
    from mistjax.report.restoration import patch_run
    from mistjax.rollouts.run import load_run

    recorded = load_run(run)
    if seed not in recorded.seeds:
        raise ValueError(f"{run} has no episode with seed {seed}: it has {_few(recorded.seeds)}.")
    whole("inference", inference, 0)
    whole("chunk", chunk, 1)
    if set(restore) - set(UNITS) or not restore or len(set(restore)) < len(restore):
        raise ValueError(f"what is restored is {restore}: choose some of {', '.join(UNITS)}.")
    refuse_folder(out)
    bare = load_policy(policy, preset, unnorm_key=unnorm_key)
    print(
        patch_run(
            bare,
            recorded,
            seed,
            inference,
            corrupt,
            out,
            prompt=prompt,
            units=restore,
            chunk=chunk,
        )
    )
    print(
        f"{out}: heat maps. That a unit restores the action says that it suffices, given the rest "
        f"of the corrupted run, not that it is needed.\nNext: mistjax explain {run} --policy "
        f"{policy} --seed {seed} --of action --method occlusion"
    )


def nmr(
    runs: Positional[tuple[Path, ...]],
    /,
    *,
    policy: str,
    method: str = "iss",
    of: str = "action",
    top: float = 0.1,
    moments: int = 3,
    episodes: int | None = None,
    out: Path | None = None,
    preset: str | None = None,
    unnorm_key: str | None = None,
) -> None:
    """Say how much of what a policy relies on has nothing to do with its task (NMR@k).

    Args:
        runs: run folders of the board; episodes are replayed, so pictures need not be recorded.
        policy: checkpoint folder, gs://BUCKET/PATH, hf://OWNER/REPOSITORY@COMMIT, or
            MODULE:FUNCTION for one of your own.
        method: attribution, see `explain`.
        of: action, or an action dimension, such as dz.
        top: share of the patches that counts, the strongest ones.
        moments: of each episode.
        episodes: of each run, the first ones; all by default.
        out: JSON file to write, one row per episode.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
    """
    import dataclasses
    import json

    from mistjax.attribute.questions import Question
    from mistjax.attribute.registry import ATTRIBUTIONS
    from mistjax.policies.load import load_policy
    from mistjax.report.nuisance import correlation, ratios, summary
    from mistjax.report.study import format_table
    from mistjax.rollouts.run import load_run

    if not runs:
        raise ValueError("no run: give at least one run folder.")
    method = _current(method)
    if method not in ATTRIBUTIONS:
        raise ValueError(
            f"no method is called {method!r}; choose one of {', '.join(ATTRIBUTIONS)}."
        )
    if not 0 < top <= 1:
        raise ValueError(f"top is {top}: expected a share of the patches, above 0 and up to 1.")
    whole("moments", moments, 1)
    if episodes is not None:
        whole("episodes", episodes, 1)
    if out is not None:
        refuse_folder(out)
    loaded = {str(run): load_run(run) for run in runs}
    bare = load_policy(policy, preset, unnorm_key=unnorm_key)
    found = {
        name: ratios(
            bare,
            run,
            method=method,
            question=Question(of),
            moments=moments,
            top=top,
            episodes=episodes,
        )
        for name, run in loaded.items()
    }
    print(format_table([{"run": name} | summary(rows) for name, rows in found.items()]))
    if len(found) > 2:
        r, low, high = correlation(list(found.values()))
        print(f"Correlation with success over {len(found)} runs: {r:.2f} [{low:.2f}, {high:.2f}].")
    if out is not None:
        rows = {name: [dataclasses.asdict(e) for e in some] for name, some in found.items()}
        with atomic(out) as temporary:
            temporary.write_text(json.dumps(rows, indent=1) + "\n")
    print(
        f"NMR@{100 * top:g}: share of what {method} gives the strongest {top:.0%} of patches that "
        "lies on nuisance, with its 95% interval over episodes; chance is a map that knows "
        "nothing.\n"
        f"Next: mistjax explain {runs[0]} --policy {policy} --of {of} --method {method}"
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
        concepts: name and its words, comma-separated; those of the board by default.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
    """
    from mistjax.policies.load import load_policy
    from mistjax.rollouts.run import load_run
    from mistjax.steer.build import parse_concepts, write_vectors

    words = parse_concepts(concepts)
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
    """Set how far and how long to steer after an alarm along the directions in a folder.

    Args:
        folder: what `vectors` wrote; with a calibrated detector in it, it is what `eval --mist`
            takes.
        strengths: share of each direction's own strength at the first, second ... inference after
            the alarm; the last one holds, and a last 0 ends the remedy until the next alarm.
        cap: largest change of an action, as a share of its range.
        weight: share of the steered chunk in the executed one.
        method: attribution that finds the attributed input; see `explain`.
    """
    from mistjax.recover.artifact import RemedyConfig, save_remedy

    save_remedy(folder, RemedyConfig(strengths, cap, weight, _current(method)))
    shares = ", ".join(f"{strength:.0%}" for strength in strengths)
    print(
        f"{folder}/remedy.json: after an alarm, steer at {shares} of each direction's own "
        f"strength, one share per inference; the last one holds.\n"
        f"An action changes by at most {cap:.0%} of its range, and {weight:.0%} of the steered "
        "chunk is executed: that bounds the change, and does not say that it helps.\n"
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
    """Fit to clean runs what stands in for an unsound camera; other inputs do without.

    Args:
        runs: run folders of clean episodes, recorded with `collect --inputs`; no faulty ones.
        policy: the recorded one: checkpoint folder, gs://BUCKET/PATH or hf://OWNER/REPOSITORY@COMMIT.
        out: folder of a monitor of inputs, see `fit-inputs`.
        cap: largest change of an action, as a share of its range; at 1 no bare chunk is drawn
            beside the repaired one.
        patience: consecutive inferences in which a sensor must agree with what stands in for it
            before it is trusted again.
        budget: largest number of inferences of an episode for which an input is repaired.
        components: largest number of principal components of each camera's image tokens.
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
        f"{out}/repairs.json: the numbers are of held-out clean episodes; how much a repair helps "
        f"is another matter.\nNext: mistjax eval {policy} --mist {out} --arms bare monitor mist "
        "--faults MIXTURE --out STUDY"
    )


def fit_reckoning(
    runs: Positional[tuple[Path, ...]],
    /,
    *,
    policy: str,
    out: Path,
    reckoned: tuple[Path, ...] = (),
    seed: int = 0,
    preset: str | None = None,
    unnorm_key: str | None = None,
) -> None:
    """Fit to clean runs how the robot moves and how the cameras see it, to reckon its state by.

    Args:
        runs: run folders of clean episodes, recorded with `collect --inputs`; no faulty ones.
        policy: the recorded one: checkpoint folder, gs://BUCKET/PATH or hf://OWNER/REPOSITORY@COMMIT.
        out: folder of a monitor of inputs, see `fit-inputs`.
        reckoned: run folders of episodes in which the policy acted on a reckoned state, recorded
            with `collect --inputs --reckoned`: a robot that strays moves and looks otherwise.
        seed: of the networks.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
    """
    from mistjax.policies.load import load_policy
    from mistjax.rollouts.run import load_run
    from mistjax.steer.remedies.build import build_reckoning
    from mistjax.steer.remedies.fit_sighted import HORIZON, KEPT

    whole("seed", seed, 0)
    refuse_file(out)
    clean, astray = ([load_run(run) for run in part] for part in (runs, reckoned))
    bare = load_policy(policy, preset, unnorm_key=unnorm_key)
    found, alone = build_reckoning(bare, clean, out, reckoned=astray, seed=seed)

    def listed(limits: Iterable[float]) -> str:
        return ", ".join(f"{limit:.2f}" for limit in limits)

    print(
        f"In {KEPT:.0%} of the {HORIZON} looks after a good one, in the median held-out clean\n"
        f"episode, the reckoned state is within {listed(found.usual.tolist())} of a sound\n"
        "sensor, entry by entry in the model's units; by commands alone within "
        f"{listed(alone)}.\n"
        f"{out}/reckoning.json: from now on the state is reckoned with it.\n"
        + (
            f"Next: mistjax study full_mist --policy {policy} --mist {out} --arms bare "
            "commands_only mist --conditions state_frozen --out STUDY"
            if (out / "repairs.json").exists()
            else f"Next: mistjax fit-imputer {runs[0]} --policy {policy} --out {out}"
        )
    )


def fit_remedies(
    runs: Positional[tuple[Path, ...]],
    /,
    *,
    policy: str,
    out: Path,
    preset: str | None = None,
    unnorm_key: str | None = None,
) -> None:
    """Measure in clean runs what picture gain, paste and the correction of words go by.

    Args:
        runs: run folders of clean episodes, recorded with `collect --inputs`; no faulty ones.
        policy: the recorded one: checkpoint folder, gs://BUCKET/PATH or hf://OWNER/REPOSITORY@COMMIT.
        out: folder of a monitor of inputs, see `fit-inputs`.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
    """
    import numpy as np

    from mistjax.policies.load import load_policy
    from mistjax.rollouts.run import load_run
    from mistjax.steer.remedies.clean import CELL, LIGHT, build_clean

    refuse_file(out)
    loaded = [load_run(run) for run in runs]
    found = build_clean(load_policy(policy, preset, unnorm_key=unnorm_key), loaded, out)
    for camera, light, cell in zip(found.cameras, found.light, found.cell, strict=True):
        print(
            f"{camera}: from look to look its light changes by a factor of at most "
            f"{float(np.exp(light)):.2f} in {LIGHT:.0%} of clean looks; its strangest cell is "
            f"within {float(cell):.1f} standard deviations in {CELL:.0%}"
        )
    print(
        f"{out}/clean.json, with {len(found.words)} known words.\nNext: mistjax study full_mist "
        f"--policy {policy} --mist {out} --arms bare mist gain paste first_sound corrected "
        "--out STUDY"
    )


def fit_elites(
    runs: Positional[tuple[Path, ...]],
    /,
    *,
    policy: str,
    out: Path,
    size: int = 500,
    tolerance: float = 0.1,
    preset: str | None = None,
    unnorm_key: str | None = None,
) -> None:
    """Remember what led to success in clean runs, for flows that start from it.

    Args:
        runs: run folders of clean episodes, recorded with `collect --inputs` and the taps
            vlm.resid@-1/image/mean and vlm.resid@-1/text/mean.
        policy: the recorded one: checkpoint folder, gs://BUCKET/PATH or hf://OWNER/REPOSITORY@COMMIT.
        out: folder to write the memory to, that of a monitor of failures.
        size: largest number of situations.
        tolerance: largest difference of an action that counts as none, as a share of its range: a
            situation that the memory answers alike is not written down; 0 writes down all.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
    """
    from mistjax.policies.load import load_policy
    from mistjax.recover.elites import build_elites
    from mistjax.rollouts.run import load_run

    refuse_file(out)
    whole("size", size, 2)
    loaded = [load_run(run) for run in runs]
    bare = load_policy(policy, preset, unnorm_key=unnorm_key)
    told = build_elites(bare, loaded, out, size=size, tolerance=tolerance)[1]
    print(
        f"{out}/elites.json: {told['pairs']} situations; of {told['inferences']} inferences of "
        f"{told['episodes']} successful episodes the memory answered "
        f"{1 - told['written'] / told['inferences']:.0%} within the tolerance.\n"
        f"Next: mistjax study baselines --policy {policy} --mist {out} "
        "--arms bare detect_only elite elite_always elite_random --out STUDY"
    )


def fit_feedback(
    run: Positional[Path],
    /,
    *,
    policy: str,
    out: Path,
    direction: str = "success@action.resid",
    effort: float = 0.1,
    episodes: int = 8,
    inferences: int = 16,
    seed: int = 0,
    preset: str | None = None,
    unnorm_key: str | None = None,
) -> None:
    """Solve for the feedback that holds a flow's activations to their clean mean along a direction.

    Args:
        run: run folder of clean episodes of the board, which are played again.
        policy: the recorded one: checkpoint folder, gs://BUCKET/PATH or hf://OWNER/REPOSITORY@COMMIT.
        out: folder with the direction, see `vectors`; the feedback goes beside it.
        direction: its name.
        effort: price of a change against that of being off the mean, above 0.
        episodes: of the run, the first ones.
        inferences: of these, evenly spread; the layers are taken as linear around their mean.
        seed: of the noise, and of the random directions of its control.
        preset: robot preset; the checkpoint's own by default.
        unnorm_key: whose action statistics apply, where an OpenVLA has several data sets'.
    """
    from mistjax.policies.load import load_policy
    from mistjax.rollouts.run import load_run
    from mistjax.steer.feedback import write_feedback

    refuse_file(out)
    whole("episodes", episodes, 1)
    whole("inferences", inferences, 1)
    whole("seed", seed, 0)
    between("effort", effort, 0, math.inf)
    loaded = load_run(run)
    bare = load_policy(policy, preset, unnorm_key=unnorm_key)
    said = write_feedback(
        bare,
        loaded,
        out,
        direction=direction,
        effort=effort,
        episodes=episodes,
        inferences=inferences,
        seed=seed,
    )
    print(
        f"{out}/steering.json: {said}\nNext: mistjax study baselines --policy {policy} "
        f"--mist {out} --arms bare detect_only feedback feedback_always feedback_random --out STUDY"
    )


def _current(method: str) -> str:
    """Today's name of an attribution; an old one works, and says what to write instead."""
    from mistjax.attribute.registry import RENAMED

    if method in RENAMED:
        print(f"mistjax: --method {method} is now --method {RENAMED[method]}", file=sys.stderr)
    return RENAMED.get(method, method)


def _few(seeds: Sequence[int]) -> str:
    """Some numbers in words."""
    if not seeds:
        return "none"
    return ", ".join(map(str, seeds[:5])) + f" and {len(seeds) - 5} more" * (len(seeds) > 5)
