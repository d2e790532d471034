"""SAFE's rollout files to run folders and back.

The format is pickle, which can run code when it is read. So reading and writing it happen in a
process of their own with limits (`mistjax.isolation`), which builds nothing but arrays, numbers,
text and containers of them (`mistjax.pickled`) and follows no link. It still opens the files with
your rights: import only what you trust.
Source: the released data loaders of SAFE (arXiv 2506.09937).
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from mistjax import isolation
from mistjax.rollouts.run import Run, load_run

WARNING = (
    "warning: SAFE's rollouts are pickle files, which can hold code. They are read in a process of "
    "its own that builds arrays, numbers and text only; still, import only files that you trust."
)
_CONVERTER = "mistjax.rollouts.formats.safe.converter"
Layout = Literal["pi0", "openvla"]


def import_safe(
    folder: str | Path, out: str | Path, *, policy: str | None = None, pool: Sequence[str] = ()
) -> Run:
    """Writes SAFE's rollouts as a run folder, and prints a warning about pickle.

    Args:
        folder: rollouts in SAFE's layout for OpenVLA (`task*--ep*--succ*.pkl` each with a csv) or
            for pi0 and pi0-FAST (`env_records/` and `policy_records/`).
        out: run folder to write.
        policy: name of the policy that made them; the layout's name if None.
        pool: pooling commands for the hidden states, each for the second-to-last axis that is left
            (see `pooling.pool`): SAFE's pi0 takes ("mean", "mean"). () keeps everything, which is
            2 MB per inference for pi0, and impossible where the number of tokens varies (pi0-FAST).

    Raises:
        ValueError: a pickle that holds more than data, a link, files that are not in such a layout,
            or that need more memory or time than their size explains.
    """
    print(WARNING, file=sys.stderr)
    isolation.call(
        f"{_CONVERTER}:import_rollouts",
        folder,
        out=os.path.abspath(out),
        policy=policy,
        pool=list(pool),
    )
    return load_run(out)


def export_safe(run: str | Path, out: str | Path, *, feature: str, layout: Layout = "pi0") -> Path:
    """Writes a run's finished episodes as SAFE's rollouts; returns the folder.

    Args:
        run: run folder.
        out: folder to write.
        feature: recorded feature to write as the hidden states: [N,steps,horizon,D] for pi0,
            [N,tokens,D] for openvla; a layer axis of one layer is left out.
        layout: openvla has one action of 7 numbers per inference, pi0 has chunks.

    Raises:
        ValueError: a feature or actions that do not fit the layout.
    """
    isolation.call(
        f"{_CONVERTER}:export_rollouts",
        run,
        out=os.path.abspath(out),
        feature=feature,
        layout=layout,
    )
    return Path(out)
