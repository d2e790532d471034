"""A SmolVLA of 0.2 M random parameters on the board's robot, built offline.

Where LeRobot is not installed nothing in this folder can even be imported: none of it is collected.
"""

import importlib.util
import os

import numpy as np
import pytest

if importlib.util.find_spec("lerobot") is None:
    collect_ignore_glob = ["*"]
else:
    os.environ["HF_HUB_OFFLINE"] = "1"  # of this environment alone: other tests ask a local hub
    import interop.lerobot  # noqa: F401 (goes before lerobot itself, see there)

CAMERAS = ("observation.images.image", "observation.images.wrist_image")
WORDS = ["place", "the", "black", "stone", "white", "at", "row", "column", "one", "two", "three"]
SIDE, STATE, ACTIONS = 32, 5, 4


@pytest.fixture(scope="session")
def backbone(tmp_path_factory):
    from experiments.train.board_smolvla_model import write_backbone

    folder = tmp_path_factory.mktemp("backbone")
    words = ["<pad>", "</s>", "<s>", "<unk>", "▁\n", *(f"▁{word}" for word in WORDS)]
    write_backbone(folder, words, width=48, layers=3, vision_layers=2, patch=8, side=SIDE)
    return folder


@pytest.fixture(scope="session")
def parts(backbone):
    """LeRobot's own policy and processors, with statistics that are not 0 and 1."""
    import torch
    from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
    from lerobot.policies.smolvla.processor_smolvla import make_smolvla_pre_post_processors

    from experiments.train.board_smolvla_model import smolvla_config

    torch.manual_seed(0)
    sizes = {"layers": 3, "side": SIDE, "state": STATE, "actions": ACTIONS}
    config = smolvla_config(backbone, CAMERAS, **sizes)
    config.num_steps = 3
    policy = SmolVLAPolicy(config)
    for value in policy.parameters():  # so that every path matters
        torch.nn.init.normal_(value, std=value.shape[-1] ** -0.5 if value.ndim > 1 else 0.5)
    stats = {
        name: {"mean": torch.linspace(-0.2, 0.3, size), "std": torch.linspace(0.5, 2, size)}
        for name, size in (("observation.state", STATE), ("action", ACTIONS))
    }
    return policy, *make_smolvla_pre_post_processors(config, stats)


@pytest.fixture(scope="session")
def policy(parts):
    from interop.lerobot.policy import LeRobotPolicy
    from mistjax.policies import BOARD

    return LeRobotPolicy(*parts, BOARD)


@pytest.fixture(scope="session")
def folder(parts, backbone, tmp_path_factory):
    """The policy as LeRobot saves it, its backbone beside it."""
    import shutil

    folder = tmp_path_factory.mktemp("policies") / "tiny"
    policy, *pipelines = parts
    shutil.copytree(backbone, folder / "backbone")
    policy.save_pretrained(folder)
    for pipeline in pipelines:
        pipeline.save_pretrained(folder)
    file = folder / "config.json"
    file.write_text(file.read_text().replace(str(backbone), "backbone"))
    return folder


@pytest.fixture(scope="session")
def raw():
    """Two raw observations with larger pictures than the policy's and prompts of two lengths."""
    rng, shape = np.random.default_rng(0), (2 * SIDE, 2 * SIDE, 3)
    return [
        {
            "observation/image": rng.integers(0, 256, shape, np.uint8),
            "observation/wrist_image": rng.integers(0, 256, shape, np.uint8),
            "observation/state": rng.normal(size=STATE),
            "prompt": prompt,
        }
        for prompt in ("place the black stone", "place the white stone at row three column two")
    ]
