"""LeRobot's policy folders: `config.json`, `model.safetensors` and the processors' JSON.

The backbone (its sizes and its tokenizer) is not in such a folder: `config.json` names it. A name
inside the folder is taken first, then whatever `transformers` makes of it, which may ask the hub.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeAlias

from lerobot.configs.policies import PreTrainedConfig
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.policies.smolvla.modeling_smolvla import SmolVLAPolicy
from lerobot.processor import PolicyProcessorPipeline
from lerobot.processor.converters import (
    batch_to_transition,
    policy_action_to_transition,
    transition_to_batch,
    transition_to_policy_action,
)

from mistjax.files import read_json

KINDS: dict[str, type[PreTrainedPolicy]] = {"smolvla": SmolVLAPolicy}
PREPROCESSOR, POSTPROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json"

Pipeline: TypeAlias = "PolicyProcessorPipeline[Any, Any]"


def read(
    folder: Path, backbone: str | Path | None, rename_map: dict[str, str] | None, device: str
) -> tuple[Any, Pipeline, Pipeline]:
    """The policy and what LeRobot puts before and behind it.

    Args:
        folder: LeRobot's.
        backbone: folder or hub name of the VLM; None takes the configuration's.
        rename_map: of observations; None takes the folder's.
        device: of the weights.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a policy of another kind, weights that do not fit, or a processor step that is
            none of LeRobot's.
    """
    for name in ("config.json", "model.safetensors", PREPROCESSOR, POSTPROCESSOR):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} has no {name}: expected a LeRobot policy's folder.")
    check_kind(read_json(folder / "config.json").get("type"), folder)
    for name in (PREPROCESSOR, POSTPROCESSOR):
        _check_steps(folder / name)
    config: Any = PreTrainedConfig.from_pretrained(folder)
    named = str(backbone or config.vlm_model_name)
    inside = folder / named
    named = str(inside) if backbone is None and inside.is_dir() else named
    config.vlm_model_name, config.device = named, device
    config.load_vlm_weights = config.compile_model = False
    try:
        policy = KINDS[config.type].from_pretrained(folder, config=config, strict=True)
    except RuntimeError as error:
        raise ValueError(f"{folder} and its backbone {named} do not fit: {error}") from None
    except OSError as error:
        raise ValueError(
            f"the backbone {named!r} of {folder} can't be read: give its folder as `backbone`, or "
            f"put it where config.json says ({str(error).splitlines()[0]})."
        ) from None
    overrides: dict[str, Any] = {
        "tokenizer_processor": {"tokenizer_name": named},
        "device_processor": {"device": device},
    }
    if rename_map is not None:
        overrides["rename_observations_processor"] = {"rename_map": rename_map}
    before = PolicyProcessorPipeline.from_pretrained(
        folder,
        config_filename=PREPROCESSOR,
        overrides=overrides,
        to_transition=batch_to_transition,
        to_output=transition_to_batch,
    )
    after = PolicyProcessorPipeline.from_pretrained(
        folder,
        config_filename=POSTPROCESSOR,
        to_transition=policy_action_to_transition,
        to_output=transition_to_policy_action,
    )
    return policy, before, after


def check_kind(kind: Any, where: Any) -> None:
    """ValueError for a policy whose modules nobody has described here."""
    if kind not in KINDS:
        raise ValueError(
            f"{where} is a LeRobot policy of type {kind!r}: hooks are described for "
            f"{', '.join(KINDS)}; see docs/another_vla.md."
        )


def _check_steps(file: Path) -> None:
    """A step may also name any class of any module, which would be imported."""
    for step in read_json(file).get("steps", ()):
        if "registry_name" not in step:
            raise ValueError(
                f"{file} has the step {step.get('class')!r}, which is none of LeRobot's registered "
                "ones: code of a checkpoint is not run."
            )
