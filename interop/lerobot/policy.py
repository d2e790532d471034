"""`LeRobotPolicy`: LeRobot's SmolVLA behind the `Policy` protocol.

Observations, taps, edits and samples are JAX's, as for any policy; what is computed is LeRobot's
own `sample_actions`, its processors before and behind. The methods may be called eagerly or inside
jit and grad (see `interop.bridge`).

    policy = LeRobotPolicy.load("outputs/train/my_smolvla/checkpoints/last/pretrained_model", BOARD)
    policy = LeRobotPolicy(smolvla, preprocessor, postprocessor, BOARD)  # objects that you have
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import torch
from jaxtyping import Array, Float
from torch import Tensor

from interop.arrays import to_numpy
from interop.bridge import call_torch, differentiable
from interop.lerobot import smolvla
from interop.lerobot.folder import Pipeline, check_kind, read
from interop.lerobot.hooks import Hooks
from interop.lerobot.words import Words
from interop.spec import fingerprint, policy_spec
from interop.taps import tap_shapes
from interop.traced import leaves, pick
from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap
from mistjax.models.draws import element_keys, normal
from mistjax.models.observation import Observation
from mistjax.models.transforms import flat_batch, rgb
from mistjax.policies.fingerprint import fingerprint as behaviour
from mistjax.policies.presets import RobotPreset
from mistjax.policies.protocol import Policy, PolicySpec, RawObs, Sample

STATE, ACTION = "observation.state", "action"
TOKENS, MASK = "observation.language.tokens", "observation.language.attention_mask"
PICTURE = "observation.images."

# Of a configuration: where things lie, and how it is trained; the policy acts the same.
ELSEWHERE = (
    *("vlm_model_name", "load_vlm_weights", "device", "use_amp", "pretrained_path", "repo_id"),
    *("private", "tags", "license", "push_to_hub", "freeze_vision_encoder", "use_peft"),
    *("train_expert_only", "train_state_proj", "compile_model", "compile_mode", "n_action_steps"),
)


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class LeRobotPolicy(Words, Policy):
    """A policy; a pytree without leaves, since its weights live in PyTorch.

    Attributes:
        policy: LeRobot's.
        preprocessor, postprocessor: LeRobot's; the first writes the prompt's tokens.
        preset: the robot. A camera that it calls `PATH/NAME` is LeRobot's `observation.images.NAME`
            before the preprocessor renames it.
        name: for tables.

    Raises:
        ValueError: a policy of another kind, or one that hooks do not reach, or of another robot.
    """

    policy: Any
    preprocessor: Pipeline
    postprocessor: Pipeline
    preset: RobotPreset
    name: str = "lerobot"

    def __post_init__(self):
        check_kind(self.policy.name, f"a {type(self.policy).__name__}")
        smolvla.check(self.policy)
        self._check_robot()
        self.policy.eval().requires_grad_(False)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        preset: RobotPreset,
        *,
        backbone: str | Path | None = None,
        rename_map: dict[str, str] | None = None,
        device: str = "cpu",
    ) -> LeRobotPolicy:
        """Reads a folder that LeRobot wrote.

        Args:
            folder: local path.
            preset: the robot.
            backbone: folder of the VLM's configuration and tokenizer; None takes the one that
                `config.json` names, inside the folder if it is there.
            rename_map: LeRobot's: the robot's names of observations to the policy's; None takes
                the preprocessor's.
            device: of the weights.

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: see the class and `folder.read`.
        """
        parts = read(Path(folder), backbone, rename_map, device)
        return cls(*parts, preset, Path(folder).resolve().name)

    @functools.cached_property
    def cameras(self) -> dict[str, str]:
        """The preset's camera -> the policy's feature, in the order in which it looks at them."""
        names = {}
        for name, key in self.preset.cameras.items():
            if key is not None:
                feature = PICTURE + key.split("/")[-1]
                names[self._renamed.get(feature, feature)] = name
        return {names[f]: f for f in self.policy.config.image_features if f in names}

    @functools.cached_property
    def pictures(self) -> tuple[str, ...]:
        """Names of all pictures that the policy looks at: its cameras, then the empty ones."""
        missing = len(self.policy.config.image_features) - len(self.cameras)
        return (*self.cameras, *(f"empty_camera_{i}" for i in range(missing)))

    @functools.cached_property
    def network(self) -> smolvla.Network:
        return smolvla.Network.of(self.policy, self.pictures)

    @functools.cached_property
    def spec(self) -> PolicySpec:
        zero = self._to_env(np.zeros((1, 1, self.chunk_width)))[0, 0]
        unit = self._to_env(np.ones((1, 1, self.chunk_width)))[0, 0] - zero
        config = self.policy.config
        return policy_spec(
            self.name,
            self._fingerprint(),
            self.preset,
            {name: self.preset.cameras[name] for name in self.cameras},
            stacks={name: stack.spec for name, stack in self.network.stacks.items()},
            horizon=config.chunk_size,
            steps=config.num_steps,
            action_scale=tuple(unit.tolist()),
            action_offset=tuple(zero.tolist()),
        )

    @property
    def num_parameters(self) -> int:
        return sum(value.numel() for value in self.policy.parameters())

    @property
    def patch(self) -> tuple[int, int]:
        """Pixels (height, width) of one image token."""
        return smolvla.pixels(self.policy)

    @property
    def chunk_width(self) -> int:
        return self.policy.config.action_feature.shape[0]

    def batch(self, raw: Sequence[RawObs]) -> dict[str, Any]:
        """Raw observations as the batch that LeRobot's `predict_action_chunk` takes.

        Raises:
            ValueError: names what an observation lacks or has wrong.
        """
        raw = flat_batch(raw)
        batch: dict[str, Any] = {
            STATE: torch.from_numpy(np.stack([self.preset.state(r) for r in raw])),
            "task": [self.preset.prompt(r) for r in raw],
        }
        for name in self.cameras:
            key = self.preset.cameras[name]
            assert key is not None
            if missing := [sorted(r) for r in raw if key not in r]:
                raise ValueError(f"the observation has no {key!r}: it has {missing[0]}.")
            seen = [rgb(r[key], key) for r in raw]
            if len({picture.shape for picture in seen}) > 1:
                raise ValueError(f"{key} has pictures of several sizes in one batch.")
            # Row-major, as LeRobot's own: a convolution rounds otherwise on channels that lie last.
            pixels = torch.from_numpy(np.stack(seen)).permute(0, 3, 1, 2).contiguous()
            batch[PICTURE + key.split("/")[-1]] = pixels.float() / 255
        return self.preprocessor(batch)

    def prepare(self, raw: Sequence[RawObs]) -> Observation:
        """See `Policy.prepare`; pictures and state are what LeRobot's policy makes of a `batch`."""
        batch = self.policy._prepare_batch(self.batch(raw))
        pictures, present = self.policy.prepare_images(batch)
        words = self.network.words
        tokens, real = (
            torch.nn.functional.pad(batch[key], (0, words - batch[key].shape[1]))
            for key in (TOKENS, MASK)
        )
        seen = dict(zip(self.pictures, pictures, strict=True))
        there = dict(zip(self.pictures, present, strict=True))
        return Observation(
            images={name: to_numpy(x.permute(0, 2, 3, 1)) for name, x in seen.items()},
            image_masks={name: to_numpy(x) for name, x in there.items()},
            state=to_numpy(self.policy.prepare_state(batch)),
            tokenized_prompt=to_numpy(tokens.int()),
            tokenized_prompt_mask=to_numpy(real.bool()),
        )

    def noise(self, key: Array, batch: int) -> Float[Array, "b h p"]:
        """The noise that `sample` starts from, padded as LeRobot's `noise` argument is."""
        config = self.policy.config
        shape = (config.chunk_size, config.max_action_dim)
        return jax.vmap(lambda k: normal(k, shape))(element_keys(key, batch))

    def sample(
        self,
        obs: Observation,
        key: Array,
        *,
        state: Any = (),
        edits: Sequence[Edit] = (),
        taps: Sequence[Tap] = (),
        prefix: Any = None,
        noise: Float[Array, "b h p"] | None = None,
    ) -> Sample:
        """See `Policy.sample`; `noise` stands in for what `key` gives, see `noise`."""
        taps, where, arrays = pick(tuple(self.network.stacks), taps, edits)
        noise = self.noise(key, obs.batch_size) if noise is None else noise

        def run(obs, noise, arrays):
            with torch.no_grad():
                return self._act(obs, noise, taps, where, arrays)

        chosen, found = call_torch(run, self._shapes(obs, taps), leaves(obs), noise, arrays)
        return Sample(chosen, found, {})

    def finish(self, sample: Sample, raw: Sequence[RawObs]) -> np.ndarray:
        """See `Policy.finish`: LeRobot's postprocessor, and the robot's bounds."""
        rows, chosen = flat_batch(raw), np.asarray(sample.actions, np.float32)
        if chosen.ndim != 3 or (len(chosen), chosen.shape[-1]) != (len(rows), self.chunk_width):
            raise ValueError(
                f"chunks of {chosen.shape} for {len(rows)} observations: expected "
                f"[{len(rows)}, steps, {self.chunk_width}]."
            )
        return self.preset.bounded(self._to_env(chosen), np.asarray(sample.broken), rows)

    def objective(
        self,
        obs: Observation,
        key: Array,
        readout: Callable[[Sample], Float[Array, " b"]],
        *,
        taps: Sequence[Tap] = (),
        edits: Sequence[Edit] = (),
    ) -> Float[Array, " b"]:
        """See `Policy.objective`; differentiable in the arrays of edits as well. A gradient costs
        two inferences and one backward pass."""
        taps, where, arrays = pick(tuple(self.network.stacks), taps, edits)

        def run(obs, noise, arrays):
            return self._act(obs, noise, taps, where, arrays)

        noise = self.noise(key, obs.batch_size)
        rows = not taps and not arrays  # theirs have other axes first
        replayed = differentiable(run, self._shapes(obs, taps), rows=rows)
        chosen, found = replayed(leaves(obs), noise, arrays)
        return readout(Sample(chosen, found, {}))

    def _act(self, obs: Mapping[str, Any], noise: Tensor, taps, where, arrays):
        """LeRobot's `sample_actions`: actions without their padding, and taps."""
        device = next(self.policy.parameters()).device
        obs = jax.tree.map(lambda tensor: tensor.to(device), dict(obs))
        words, real = obs["tokenized_prompt"].long(), obs["tokenized_prompt_mask"]
        longest = int(real.any(dim=0).nonzero().amax()) + 1 if self._trimmed else real.shape[1]
        masks = [obs["image_masks"][name] for name in self.pictures]
        embedding = obs.get("prompt_embedding")
        hooks = Hooks(
            self.network,
            taps,
            list(zip(where, arrays, strict=True)),
            self._valid(masks, real),
            longest,
            None if embedding is None else embedding[:, :longest],
        )
        with hooks:
            actions = self.policy.model.sample_actions(
                [obs["images"][name].permute(0, 3, 1, 2).contiguous() for name in self.pictures],
                masks,
                words[:, :longest].contiguous(),
                real[:, :longest].contiguous(),
                obs["state"],
                noise=noise.to(device),
            )
        return actions[:, :, : self.chunk_width], hooks.values()

    def _valid(self, masks: Sequence[Tensor], real: Tensor) -> dict[str, Tensor]:
        """Which tokens of the layouts are real."""
        valid = {}
        for name in ("vision", "vlm"):
            layout = self.network.stacks[name].spec.layout
            whole = torch.ones(len(real), layout.length, dtype=torch.bool, device=real.device)
            for camera, mask in zip(self.pictures, masks, strict=True):
                start, stop = layout.select(camera)
                whole[:, start:stop] = mask[:, None]
            valid[name] = whole
        start, stop = layout.select("text")
        valid["vlm"][:, start:stop] = real
        return valid

    def _shapes(self, obs: Observation, taps: Sequence[Tap]):
        config, rows = self.policy.config, obs.batch_size
        size = (rows, config.chunk_size, self.chunk_width)
        stacks = {name: stack.spec for name, stack in self.network.stacks.items()}
        found = tap_shapes(stacks, taps, rows, config.num_steps, jnp.float32)
        return jax.ShapeDtypeStruct(size, jnp.float32), found

    def _to_env(self, chosen: np.ndarray) -> np.ndarray:
        actions = torch.from_numpy(np.array(chosen, np.float32))
        if self.policy.config.adapt_to_pi_aloha:
            actions = self.policy._pi_aloha_encode_actions(actions)
        return self.postprocessor(actions).numpy()

    @functools.cached_property
    def _renamed(self) -> dict[str, str]:
        maps = [getattr(step, "rename_map", {}) for step in self.preprocessor.steps]
        return {old: new for names in maps for old, new in names.items()}

    @functools.cached_property
    def _trimmed(self) -> bool:
        """Whether a batch is padded to its longest prompt, which rounds otherwise than more."""
        steps: Sequence[Any] = self.preprocessor.steps
        return any(getattr(step, "padding", None) == "longest" for step in steps)

    def _check_robot(self) -> None:
        config, preset = self.policy.config, self.preset
        widths = {
            "state": (config.robot_state_feature.shape, preset.state_dim),
            "action": (config.action_feature.shape, preset.action_dim),
        }
        for what, (shape, width) in widths.items():
            if tuple(shape) != (width,):
                raise ValueError(
                    f"the policy's {what} is {tuple(shape)}, preset {preset.name!r} has {width} "
                    "numbers: is it of another robot?"
                )
        lacking = [f for f in config.image_features if f not in self.cameras.values()]
        if not self.cameras or len(lacking) > config.empty_cameras:
            shown = [PICTURE + key.split("/")[-1] for key in preset.cameras.values() if key]
            raise ValueError(
                f"the policy looks at {lacking}, preset {preset.name!r} shows {shown}: say which "
                "is which by `rename_map`, from the preset's names to the policy's."
            )

    def _fingerprint(self) -> str:
        """Of weights, sizes, statistics, tokenizer and robot; reads every weight."""
        config = {
            name: str(value)
            for name, value in vars(self.policy.config).items()
            if name not in ELSEWHERE and not name.startswith(("optimizer_", "scheduler_"))
        }
        vlm = _sizes(self.policy.model.vlm_with_expert.config.to_dict())
        places = smolvla.patch_positions(self.policy).tolist()
        steps = [
            (type(step).__name__, str(sorted(_told(step))), _arrays(step.state_dict()))
            for step in (*self.preprocessor.steps, *self.postprocessor.steps)
        ]
        said = behaviour(steps, self.tokenizer.serialized, self.preset.behaviour(self.pictures))
        sizes = {"config": config, "vlm": vlm, "places": places}
        return fingerprint(sizes, [self.policy], said.encode())


def _told(step: Any) -> list[tuple[str, str]]:
    """The options of a processor step, without where things lie."""
    options = step.get_config().items()
    return [(k, str(v)) for k, v in options if k not in ("device", "tokenizer_name")]


def _arrays(state: Mapping[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: to_numpy(value) for name, value in state.items()}


def _sizes(config: Mapping[Any, Any]) -> dict[str, Any]:
    """A configuration of transformers without its name and its version."""
    return {
        str(name): _sizes(value) if isinstance(value, dict) else str(value)
        for name, value in config.items()
        if name not in ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
    }
