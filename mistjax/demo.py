"""`mistjax demo`: the main study on the shipped board policy; and where shipped files are."""

from __future__ import annotations

from pathlib import Path

from mistjax.studies.run import StudyPlan

_PACKAGE = Path(__file__).resolve().parent
_INSTALLED = _PACKAGE / "checkpoints"
SHIPPED = _INSTALLED if _INSTALLED.is_dir() else _PACKAGE.parent / "checkpoints"
"""The shipped checkpoints: inside an installed package, beside it in a clone."""
POLICY, MIST = SHIPPED / "board_pi0", SHIPPED / "board_mist"
"""The board policy, and its monitors and remedies."""

DEMO_ARMS = ("bare", "always_all", "wrong_input", "mist")
DEMO_SEED = 5_000_000


def shipped_demo(out: Path, episodes: int = 24, *, retry_errors: bool = False) -> StudyPlan:
    """The shipped board policy under the mixture of faults, clean episodes among them, on video.

    Raises:
        FileNotFoundError: the installation has lost its checkpoints.
        ValueError: fewer than one episode.
    """
    check_shipped()
    return StudyPlan(
        "full_mist",
        policy=POLICY,
        mist=MIST,
        out=out,
        episodes=episodes,
        first_seed=DEMO_SEED,
        arms=DEMO_ARMS,
        conditions=("mixture",),
        videos=6,
        retry_errors=retry_errors,
        title="mistjax demo",
    )


def check_shipped() -> None:
    """FileNotFoundError where the installation has lost its checkpoints."""
    if not (SHIPPED / "board_mist").is_dir():
        raise FileNotFoundError(f"{SHIPPED} lacks the shipped checkpoints: install mistjax again.")
