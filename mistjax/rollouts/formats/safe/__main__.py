"""The converter's own process: `python -m mistjax.rollouts.formats.safe import|export JSON`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from mistjax.rollouts.formats.safe import REFUSED, reading, writing
from mistjax.rollouts.run import load_run
from mistjax.rollouts.store import RunWriter


def import_rollouts(folder: str, out: str, policy: str | None, pool: list[str]) -> None:
    source = reading.find_layout(Path(folder))
    name = policy or source.name
    config = None
    for number, episode in enumerate(source.episodes(Path(folder), pool)):
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
                "imported_from": f"SAFE rollouts, {source.name} layout",
            }
        with RunWriter.open(out, config) as writer:
            writer.add(trace)
        if episode.video is not None:
            target = Path(out) / "videos" / f"{trace.episode}.mp4"
            target.write_bytes(episode.video.read_bytes())


def export_rollouts(run: str, out: str, feature: str, layout: str) -> None:
    writing.write(load_run(run), Path(out), feature, layout)


def main(what: str, arguments: str) -> int:
    try:
        {"import": import_rollouts, "export": export_rollouts}[what](**json.loads(arguments))
    except (ValueError, FileNotFoundError, FileExistsError) as error:
        print(" ".join(str(error).split()), file=sys.stderr)
        return REFUSED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
