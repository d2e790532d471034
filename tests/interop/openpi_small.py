"""openpi at sizes of ours, here and in a process of its own that runs one of its scripts.

    OPENPI_SRC=openpi python -m tests.interop.openpi_small FOLDER SCRIPT ARGUMENTS...

openpi has no configuration as small as the checkpoint in FOLDER: there it is called `small`.
"""

import importlib.machinery
import importlib.util
import os
import runpy
import sys
import types

from experiments.bench import openpi_sizes
from mistjax.models.checkpoints import read_config
from mistjax.models.config import Pi0Config

LOADER = "lerobot.common.datasets.lerobot_dataset"


def resize(config, patch=setattr, put=dict.__setitem__):
    """openpi's sizes are these, and its data loader's packages are where they are not."""
    if openpi_sizes.SOURCE in os.environ:
        openpi_sizes.put_on_path()
    if importlib.util.find_spec("lerobot") is None:
        names = LOADER.split(".")
        for i in range(len(names)):
            name = ".".join(names[: i + 1])
            module = types.ModuleType(name)
            module.__spec__ = importlib.machinery.ModuleSpec(name, None)
            put(sys.modules, name, module)
            if i:
                setattr(sys.modules[".".join(names[:i])], names[i], module)
    openpi_sizes.resize(config, patch)


def settings_of(config):
    """openpi's training configuration of a pi0 or pi0.5 of these sizes, for LIBERO."""
    from openpi.training import config as training

    return training.TrainConfig(
        name="small",
        exp_name="small",
        model=openpi_sizes.model_config(config),
        data=training.LeRobotLiberoDataConfig(
            repo_id="libero", extra_delta_transform=not config.pi05
        ),
    )


def run(folder, script, *arguments):
    config = read_config(folder, Pi0Config)
    resize(config)
    from openpi.training import config as training

    training._CONFIGS_DICT["small"] = settings_of(config)
    sys.argv = [script, *arguments]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    run(*sys.argv[1:])
