"""What the converter's own process does, see `mistjax.isolation`."""

from __future__ import annotations

from pathlib import Path

from mistjax.rollouts.formats.safe import reading, writing
from mistjax.rollouts.run import load_run
from mistjax.rollouts.store import RunWriter
from mistjax.untrusted import open_file
from mistjax.untrusted import reading as named


def import_rollouts(source: str, out: str, policy: str | None, pool: list[str]) -> None:
    """See `import_safe`; runs in a process of its own."""
    layout = reading.find_layout(Path(source))
    name = policy or layout.name
    config = None
    for number, episode in enumerate(layout.episodes(Path(source), pool)):
        with named(source, "a folder of rollouts in SAFE's layout"):
            trace = reading.to_trace(episode, number, name)
        if config is None:
            config = {
                "policy": name,
                "policy_fingerprint": trace.policy_fingerprint,
                "env_id": trace.env_id,
                "execute_steps": episode.executed,
                "perturbation": {},
                "taps": [],
                "pool": pool,
                "imported_from": f"SAFE rollouts, {layout.name} layout",
            }
        with RunWriter.open(out, config) as writer:
            writer.add(trace)
        if episode.video is not None:
            with open_file(episode.video) as video:
                (Path(out) / "videos" / f"{trace.episode}.mp4").write_bytes(video.read())


def export_rollouts(source: str, out: str, feature: str, layout: str) -> None:
    """See `export_safe`; runs in a process of its own."""
    writing.write(load_run(source), Path(out), feature, layout)
