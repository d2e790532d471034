"""Logs numbers of a training or a study to Weights & Biases and TensorBoard.

Nothing is sent anywhere unless it is asked for. With `WANDB_MODE=offline` Weights & Biases writes
to its folder only, and `wandb sync` sends that later.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import tyro

from mistjax.files import refuse_file

Log = Callable[[Mapping[str, float], int], None]
"""(numbers by name, step)."""


def silent(numbers: Mapping[str, float], step: int) -> None:
    """A `Log` that drops everything."""


@dataclasses.dataclass(frozen=True)
class Trackers:
    """Where numbers go; nowhere by default.

    Attributes:
        wandb: project of Weights & Biases to log to.
        tensorboard: folder to write TensorBoard's event files to.
    """

    wandb: str | None = None
    tensorboard: Path | None = None

    def check(self) -> None:
        """ImportError where a package is not installed, so that it is known before hours of
        training; ValueError for a project without a name; NotADirectoryError: see `refuse_file`.
        """
        if self.wandb is not None:
            if not self.wandb.strip():
                raise ValueError("the project of Weights & Biases has no name: give it one.")
            _installed("wandb", "wandb")
        if self.tensorboard is not None:
            refuse_file(self.tensorboard)
            _installed("tensorboard.summary", "tensorboard")

    @contextlib.contextmanager
    def open(self, name: str, settings: Mapping[str, Any]) -> Iterator[Log]:
        """Logs while the block lasts.

        Args:
            name: of the run.
            settings: what it was started with; JSON values.

        Raises:
            ImportError, ValueError, NotADirectoryError: see `check`.
        """
        self.check()
        with contextlib.ExitStack() as closed:
            logs: list[Log] = []
            if self.wandb is not None:
                run = _installed("wandb", "wandb").init(
                    project=self.wandb, name=name, config=dict(settings), reinit="create_new"
                )
                closed.callback(run.finish)
                run.define_metric("*", step_metric="step")  # its own step must never fall
                logs.append(lambda numbers, step: run.log({**numbers, "step": step}))
            if self.tensorboard is not None:
                summary = _installed("tensorboard.summary", "tensorboard")
                writer = summary.Writer(str(self.tensorboard / name))
                closed.callback(writer.close)

                def write(numbers: Mapping[str, float], step: int) -> None:
                    for key, value in numbers.items():
                        writer.add_scalar(key, value, step)

                logs.append(write)

            def log(numbers: Mapping[str, float], step: int) -> None:
                for one in logs:
                    one(numbers, step)

            yield log


Track = Annotated[Trackers, tyro.conf.arg(name="")]
"""As an option of a command, without a prefix."""


def _installed(module: str, extra: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f"{extra} is not installed, but numbers are to be logged to it: pip install "
            f"'mistjax[{extra}]', or leave out --{extra}."
        ) from error
