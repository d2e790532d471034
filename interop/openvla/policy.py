"""`OpenVLAPolicy`: OpenVLA and OpenVLA-OFT behind the `Policy` protocol.

Observations, taps, edits and samples are JAX's, as for any policy; the network runs in PyTorch. The
methods may be called eagerly or inside jit and grad (see `interop.bridge`). Sampling is greedy, so
the key changes nothing.
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

from interop.bridge import call_torch, differentiable
from interop.openvla import actions, robots
from interop.openvla.decoders import JAX_DTYPES, Decoder
from interop.openvla.folder import load_config, load_parts, save_parts
from interop.openvla.hooks import Hooks, token_layouts
from interop.openvla.model import OpenVLA
from interop.openvla.reader import PictureStep, Reader
from interop.openvla.spec import stack_specs
from interop.openvla.words import Words
from interop.spec import fingerprint, policy_spec
from interop.taps import tap_shapes
from interop.traced import Prefix, leaves, pick
from mistjax.hooks.edits import Edit
from mistjax.hooks.sites import Tap, TokenLayout
from mistjax.models.observation import Observation
from mistjax.models.transforms import flat_batch
from mistjax.policies.fingerprint import fingerprint as behaviour
from mistjax.policies.presets import RobotPreset
from mistjax.policies.protocol import Policy, PolicySpec, RawObs, Sample, StackSpec

ActionStep = Callable[[np.ndarray], np.ndarray]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True, eq=False)
class OpenVLAPolicy(Words, Policy):
    """A policy; a pytree without leaves, since its weights live in PyTorch.

    Attributes:
        model: the network, on its device and in its dtype.
        decoder: how actions come out of it.
        reader: pictures and prompts to model inputs.
        preset: the robot.
        unnorm_key: data set whose action statistics apply; None where there is only one.
        bounds: which of the statistics are -1 and 1.
        finish_steps: actions in the data set's units -> actions in the env's units.
        name: for tables.
    """

    model: OpenVLA
    decoder: Decoder
    reader: Reader
    preset: RobotPreset
    unnorm_key: str | None = None
    bounds: tuple[str, str] = ("q01", "q99")
    finish_steps: Sequence[ActionStep] = ()
    name: str = "openvla"

    @classmethod
    def load(
        cls,
        folder: str | Path,
        preset: RobotPreset,
        *,
        unnorm_key: str | None = None,
        dtype: torch.dtype | None = None,
        device: str | torch.device = "cpu",
        image_steps: Sequence[PictureStep] | None = None,
        finish_steps: Sequence[ActionStep] | None = None,
        bounds: tuple[str, str] = ("q01", "q99"),
    ) -> OpenVLAPolicy:
        """Reads a Hugging Face folder with `tokenizer.model`, of either kind (see `folder`).

        Args:
            folder: local path.
            preset: the robot. Token-by-token decoding sees its first camera, OFT all that it has.
            unnorm_key: data set whose action statistics apply; None takes the only one, or the only
                one of `dataset_statistics.json`, which is what a model was fine-tuned on.
            dtype: of the weights; None takes the one that `config.json` names, else the stored one.
            device: of the weights.
            image_steps: see `Reader`; None takes the robot's, see `robots.image_steps`.
            finish_steps: see the class; None takes the robot's, see `robots.finish_steps`.
            bounds: see the class; OFT on ALOHA has ("min", "max").

        Raises:
            FileNotFoundError: a file is missing.
            ValueError: weights that do not fit, another robot, or no such `unnorm_key`.
        """
        config, tuned_on = load_config(folder)
        unnorm_key = tuned_on if unnorm_key is None else unnorm_key
        robots.check_robot(folder, preset, config, unnorm_key, bounds)
        if len(config.norm_stats) == 1:
            unnorm_key = None  # however it was said, it is the same policy
        model, decoder, tokenizer = load_parts(folder, config, preset.action_dim, dtype, device)
        cameras = [(name, key) for name, key in preset.cameras.items() if key is not None]
        reader = Reader(
            tokenizer,
            dict(cameras if config.oft else cameras[:1]),
            robots.image_steps(preset, config) if image_steps is None else image_steps,
            config.prompt,
        )
        if finish_steps is None:
            stats = actions.statistics(config.norm_stats, unnorm_key, "action")
            finish_steps = robots.finish_steps(preset, stats, bounds)
        name = Path(folder).resolve().name
        return cls(model, decoder, reader, preset, unnorm_key, bounds, tuple(finish_steps), name)

    def save(self, folder: str | Path, *, shard_bytes: int = 5_000_000_000) -> None:
        """Writes what `load` reads; weights beyond `shard_bytes` in several files."""
        save_parts(folder, self.model, self.decoder, self.reader.tokenizer, shard_bytes)

    @functools.cached_property
    def layouts(self) -> dict[str, TokenLayout]:
        return token_layouts(
            self.model.config.num_patches,
            tuple(self.reader.cameras),
            self.reader.tokenizer.max_tokens,
            self.decoder.extra,
            self.decoder.width,
        )

    @functools.cached_property
    def stacks(self) -> dict[str, StackSpec]:
        return stack_specs(self.model.config, self.layouts)

    @functools.cached_property
    def spec(self) -> PolicySpec:
        """Computing the fingerprint reads every weight once: a minute for 7B."""
        zero = self._to_env(np.zeros(self.chunk_width))
        unit = self._to_env(np.ones(self.chunk_width)) - zero
        said = f"{self.unnorm_key} {self.bounds} {self.reader.template}".encode()
        steps = tuple(self.reader.image_steps), tuple(self.finish_steps)
        names = [getattr(step, "__name__", "") for step in steps[0]]
        if names not in (["resize"], ["square"]) or steps[1]:
            said += behaviour(*steps).encode()
        modules = [self.model, *self.decoder.extra_modules]
        written = fingerprint(
            self.model.config.to_json(), modules, said + self.tokenizer.serialized
        )
        return policy_spec(
            self.name,
            written,
            self.preset,
            self.reader.cameras,
            stacks=self.stacks,
            horizon=self.decoder.horizon,
            steps=self.decoder.steps,
            action_scale=tuple(unit.tolist()),
            action_offset=tuple(zero.tolist()),
        )

    def prepare(self, raw: Sequence[RawObs]) -> Observation:
        """See `Policy.prepare`; ValueError names a missing camera or a picture of another kind."""
        raw = flat_batch(raw)
        state = np.zeros((len(raw), 0), np.float32)
        if self.decoder.extra:
            values = np.stack([self.preset.state(r) for r in raw])
            stats = actions.statistics(self.model.config.norm_stats, self.unnorm_key, "proprio")
            state = actions.normalise(values, stats, self.bounds).astype(np.float32)
        instructions = [self.preset.prompt(r) for r in raw]
        return self.reader(raw, instructions, state, self.model.config)

    def embed_images(
        self, obs: Observation, *, edits: Sequence[Edit] = (), taps: Sequence[Tap] = ()
    ) -> tuple[Observation, dict[str, Array]]:
        """See `SeeingPolicy`; the taps of both towers. With FiLM, the patches are those of the
        prompt that the observation has.
        """
        taps, where, arrays = pick(("vision", "dino"), taps, edits)
        batch, config = obs.batch_size, self.model.config

        def run(obs, arrays):
            with torch.no_grad(), self._hooks(taps, where, arrays) as hooks:
                return self.decoder.see(self.reader.inputs(self.model, obs), hooks), hooks.values()

        size = (batch, self.layouts["vision"].length, config.text.hidden_size)
        seen = jax.ShapeDtypeStruct(size, JAX_DTYPES[self.model.dtype])
        shapes = seen, self._tap_shapes(batch, taps)
        patches, found = call_torch(run, shapes, leaves(obs), arrays)
        return dataclasses.replace(obs, image_embedding=patches), found

    def prefill(
        self, obs: Observation, *, edits: Sequence[Edit] = (), taps: Sequence[Tap] = ()
    ) -> Prefix:
        """See `Policy.prefill`: towers and, where nothing later changes them, keys and values."""
        stacks = self.decoder.read_stacks
        taps, where, arrays = pick(stacks, taps, edits)
        batch, length = obs.batch_size, self.layouts["vlm"].length

        def run(obs, arrays):
            with torch.no_grad(), self._hooks(taps, where, arrays) as hooks:
                return self.decoder.read(self.reader.inputs(self.model, obs), hooks), hooks.values()

        shapes = self.decoder.read_shapes(batch, length), self._tap_shapes(batch, taps)
        return Prefix(*call_torch(run, shapes, leaves(obs), arrays))

    def sample(
        self,
        obs: Observation,
        key: Array,
        *,
        state: Any = (),
        edits: Sequence[Edit] = (),
        taps: Sequence[Tap] = (),
        prefix: Prefix | None = None,
    ) -> Sample:
        """See `Policy.sample`.

        `aux` of token-by-token decoding: `tokens`, `token_log_prob`, `token_entropy` [B,A] and
        `decode_ok` [B], False where a token is no action and was clipped to one.
        """
        if prefix is None:
            prefix = self.prefill(obs, edits=edits, taps=taps)
        stacks = tuple(set(self.layouts) - set(self.decoder.read_stacks))
        taps, where, arrays = pick(stacks, taps, edits)
        batch = obs.batch_size

        def run(prefix, arrays):
            with torch.no_grad(), self._hooks(taps, where, arrays) as hooks:
                on_device = {k: v.to(self.model.device) for k, v in prefix.items()}
                chosen, report = self.decoder.act(on_device, hooks)
                return chosen, report, hooks.values()

        shapes = self._shapes(batch, taps)
        chosen, report, found = call_torch(run, shapes, prefix.arrays, arrays)
        return Sample(chosen, {**prefix.taps, **found}, report)

    def finish(self, sample: Sample, raw: Sequence[RawObs]) -> np.ndarray:
        """See `Policy.finish`; a token that is no action is the nearest one, as in the original."""
        flat, chosen = flat_batch(raw), np.asarray(sample.actions, np.float64)
        if chosen.ndim != 3 or (len(chosen), chosen.shape[-1]) != (len(flat), self.chunk_width):
            raise ValueError(
                f"chunks of {chosen.shape} for {len(flat)} observations: expected "
                f"[{len(flat)}, steps, {self.chunk_width}]."
            )
        broken = np.any(~np.isfinite(chosen), axis=(1, 2))
        return self.preset.bounded(self._to_env(chosen), broken, flat)

    def objective(
        self,
        obs: Observation,
        key: Array,
        readout: Callable[[Sample], Float[Array, " b"]],
        *,
        taps: Sequence[Tap] = (),
        edits: Sequence[Edit] = (),
    ) -> Float[Array, " b"]:
        """See `Policy.objective`; differentiable in the arrays of edits as well.

        The sample that `readout` gets is recomputed in one pass with the decoded tokens held fixed,
        and its actions are the mean of the action bins under their probabilities: a greedy choice
        has no gradient. Cost: sampling where there are tokens, and twice a pass over the whole
        sequence plus its backward.
        """
        taps, where, arrays = pick(tuple(self.layouts), taps, edits)
        batch = obs.batch_size
        shapes, chosen_by = self._shapes(batch, taps), {}
        if self.decoder.report_shapes(batch):
            held, held_edits = jax.lax.stop_gradient((obs, tuple(edits)))
            chosen_by = self.sample(held, key, edits=held_edits).aux

        def run(obs, arrays, report):
            with self._hooks(taps, where, arrays) as hooks:
                chosen, said = self.decoder.replay(
                    self.reader.inputs(self.model, obs), report, hooks
                )
                return chosen, said, hooks.values()

        rows = not taps and not arrays  # theirs have other axes first
        replayed = differentiable(run, shapes, rows=rows)
        chosen, said, found = replayed(leaves(obs), arrays, chosen_by)
        return readout(Sample(chosen, found, said))

    @property
    def chunk_width(self) -> int:
        """Numbers of one action in `Sample.actions`."""
        return len(self._statistics["q01"])

    def _hooks(self, taps, where, arrays) -> Hooks:
        edits = list(zip(where, arrays, strict=True))
        return Hooks(self.model, self.layouts, taps, edits)

    def _shapes(self, batch: int, taps: Sequence[Tap]):
        """What an inference returns: actions, report, taps."""
        size = (batch, self.decoder.horizon, len(self._statistics["q01"]))
        actions = jax.ShapeDtypeStruct(size, jnp.float32)
        return actions, self.decoder.report_shapes(batch), self._tap_shapes(batch, taps)

    def _tap_shapes(self, batch: int, taps: Sequence[Tap]):
        dtype = JAX_DTYPES[self.model.dtype]
        return tap_shapes(self.stacks, taps, batch, self.decoder.steps, dtype)

    @property
    def _statistics(self) -> Mapping[str, Any]:
        return actions.statistics(self.model.config.norm_stats, self.unnorm_key, "action")

    def _to_env(self, chosen: np.ndarray) -> np.ndarray:
        chosen = actions.unnormalise(chosen, self._statistics, self.bounds)
        for step in self.finish_steps:
            chosen = step(chosen)
        return chosen
