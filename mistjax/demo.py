"""`mistjax demo`: the main job on the shipped board policy."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mistjax.recover.study import StudyConfig
from mistjax.rollouts.plan import EpisodePlan

SHIPPED = Path(__file__).resolve().parents[1] / "checkpoints"
PERTURBATION = {"table_texture": 0.4}


def shipped_study(
    *,
    out: Path,
    episodes: int,
    first_seed: int,
    title: str,
    perturbation: Mapping[str, float | str] | None = None,
    videos: int = 6,
    retry_errors: bool = False,
) -> StudyConfig:
    """The shipped board policy in all four arms, under a perturbation that it often fails under.

    Raises:
        FileNotFoundError: the checkpoints are not beside the package: they come with the
            repository, not with an installed wheel.
    """
    if not (SHIPPED / "board_mist").is_dir():
        raise FileNotFoundError(
            "the shipped checkpoints are missing: run from a clone of the repository, installed "
            "with `pip install -e .`."
        )
    return StudyConfig(
        policy=SHIPPED / "board_pi0",
        mist=SHIPPED / "board_mist",
        out=out,
        plan=EpisodePlan(
            episodes=episodes,
            first_seed=first_seed,
            perturbation=PERTURBATION if perturbation is None else perturbation,
            videos=videos,
            retry_errors=retry_errors,
        ),
        title=title,
    )
