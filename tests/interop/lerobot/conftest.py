"""A SmolVLA of 0.15 M random parameters on a robot of the laboratory, built offline.

Where LeRobot is not installed nothing in this folder can even be imported: none of it is collected.
"""

import importlib.util
import os

import numpy as np
import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
if importlib.util.find_spec("lerobot") is None:
    collect_ignore_glob = ["*"]

CAMERAS = ("observation.images.image", "observation.images.wrist")
WORDS = ["place", "the", "black", "stone", "white", "at", "row", "column", "one", "two", "three"]
SIDE, STATE, ACTIONS = 32, 3, 4


@pytest.fixture(scope="session")
def preset():
    from mistjax.policies.presets import RobotPreset

    return RobotPreset(
        name="lab",
        cameras={"base_0_rgb": "observation/image", "left_wrist_0_rgb": "observation/wrist"},
        state_key="observation/state",
        state_dim=STATE,
        action_names=("dx", "dy", "dz", "gripper"),
        action_low=(-9.0,) * ACTIONS,
        action_high=(9.0,) * ACTIONS,
        gripper_index=3,
        execute_steps=4,
    )


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
def policy(parts, preset):
    from interop.lerobot.policy import LeRobotPolicy

    return LeRobotPolicy(*parts, preset)


@pytest.fixture(scope="session")
def raw():
    """Two raw observations whose prompts have different lengths, beside a real run's pictures."""
    rng = np.random.default_rng(0)
    return [
        {
            "observation/image": rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8),
            "observation/wrist": rng.integers(0, 256, (SIDE, SIDE, 3), np.uint8),
            "observation/state": rng.normal(size=STATE),
            "prompt": prompt,
        }
        for prompt in ("place the black stone", "place the white stone at row three column two")
    ]
