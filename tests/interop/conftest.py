"""The small recorded OpenVLA, and a policy around it.

Without the extra `openvla` nothing in this folder can even be imported: none of it is collected.
"""

import importlib.util
from pathlib import Path

import numpy as np
import pytest

if not all(importlib.util.find_spec(name) for name in ("torch", "transformers")):
    collect_ignore_glob = ["*"]

GOLDENS = Path(__file__).parent.parent / "goldens" / "openvla"


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """On a busy machine a second thread is waited for longer than it saves."""
    if importlib.util.find_spec("torch"):  # openpi's environment has none
        import torch

        torch.set_num_threads(1)


@pytest.fixture(scope="session")
def goldens():
    return GOLDENS


@pytest.fixture(scope="session")
def model():
    from interop.openvla.recordings import recorded_model

    return recorded_model(GOLDENS)


@pytest.fixture(scope="session")
def recordings(model):
    from interop.openvla.recordings import Recordings

    return Recordings(GOLDENS, model)


@pytest.fixture(scope="session")
def tokenizer(tmp_path_factory):
    from mistjax.models.tokenizers import PromptTokenizer, train_word_tokenizer

    file = tmp_path_factory.mktemp("tokenizer") / "tokenizer.model"
    words = "In: What action should the robot take to pick up the black bowl? Out:"
    train_word_tokenizer([words], [], file)
    return PromptTokenizer.from_file(file, 24)


@pytest.fixture(scope="session")
def preset():
    from mistjax.policies.presets import RobotPreset

    return RobotPreset(
        name="lab",
        cameras={"base_0_rgb": "observation/image", "left_wrist_0_rgb": "observation/wrist"},
        state_key="observation/state",
        state_dim=3,
        action_names=("dx", "dy", "dz", "droll", "dpitch", "dyaw", "gripper"),
        action_low=(-1.0,) * 7,
        action_high=(1.0,) * 7,
        gripper_index=6,
        execute_steps=1,
    )


@pytest.fixture(scope="session")
def policy(model, tokenizer, preset):
    from interop.openvla.decoders import TokenDecoder
    from interop.openvla.policy import OpenVLAPolicy
    from interop.openvla.reader import Reader

    reader = Reader(tokenizer, {"base_0_rgb": "observation/image"})
    return OpenVLAPolicy(model, TokenDecoder(model, 7), reader, preset)


@pytest.fixture(scope="session")
def raw(recordings):
    """Two raw observations with pictures of different sizes."""
    return [
        {
            "observation/image": recordings.inputs[f"image_{i}"],
            "observation/wrist": recordings.inputs[f"image_{1 - i}"],
            "observation/state": np.array([0.1, -0.2, 0.9]),
            "prompt": prompt,
        }
        for i, prompt in enumerate(("pick up the black bowl", "pick up the bowl"))
    ]
