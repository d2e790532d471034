"""`FastPolicy`: pi0-FAST behind the Policy protocol, from cameras to actions in one program."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from mistjax.hooks.edits import Edit
from mistjax.hooks.hooks import Hooks
from mistjax.hooks.sites import Tap
from mistjax.models import fast
from mistjax.models.config import FastConfig
from mistjax.models.draws import element_keys
from mistjax.models.fast import Pi0Fast, write
from mistjax.models.fast_language import FastTokenizer
from mistjax.models.fast_tokenizer import ActionTokenizer
from mistjax.models.observation import Observation
from mistjax.models.sampling import Prefix, prefill
from mistjax.models.tokenizers import FAST_TAIL, PromptTokenizer, state_prompt
from mistjax.models.transforms import flat_batch
from mistjax.models.written_state import StateWriter
from mistjax.policies.families import Family, register
from mistjax.policies.pi import PiPolicy
from mistjax.policies.pi_values import fast_value_vectors
from mistjax.policies.presets.base import RobotPreset
from mistjax.policies.protocol import RawObs, Sample
from mistjax.policies.value_vectors import ValueVectors


@flax.struct.dataclass
class FastPolicy(PiPolicy):
    """A pi0-FAST policy; a pytree, as `PiPolicy`.

    Attributes:
        config: model sizes; `action_dim` and `action_horizon` are those of the action tokens.
        tokenizer: for prompts and actions.
        temperature: of the decoding; 0 is greedy.
        given: tokens that it writes in place of its own, [B,S]; see `saying`.
    """

    config: FastConfig = flax.struct.field(pytree_node=False)  # type: ignore[assignment]
    tokenizer: FastTokenizer = flax.struct.field(pytree_node=False)  # type: ignore[assignment]
    temperature: Float[Array, ""] | float = 0.0
    given: Int[Array, "b s"] | None = None

    config_type: ClassVar[Any] = FastConfig
    initialise: ClassVar[Callable[..., Any]] = staticmethod(fast.init)

    def __post_init__(self):
        super().__post_init__()
        if isinstance(self.temperature, float | np.floating) and not 0 <= self.temperature < np.inf:
            raise ValueError(f"temperature is {self.temperature}: expected 0 (greedy) or above.")
        actions, config = self.tokenizer.actions, self.config
        given = (actions.horizon, actions.action_dim)
        if given != (config.action_horizon, config.action_dim):
            raise ValueError(
                f"the action tokens stand for chunks of {given}, the configuration for "
                f"{(config.action_horizon, config.action_dim)}."
            )
        if config.max_decoding_steps < self.tokenizer.overhead:
            raise ValueError(
                f"max_decoding_steps is {config.max_decoding_steps}: expected more than the "
                f"{self.tokenizer.overhead} tokens around an action."
            )

    @classmethod
    def read_tokenizer(cls, folder: str | Path, config: FastConfig) -> FastTokenizer:
        """See `PiPolicy.read_tokenizer`; the action tokens are in `assets/fast`."""
        actions = ActionTokenizer.load(
            Path(folder) / "assets" / "fast", config.action_horizon, config.action_dim
        )
        return FastTokenizer(super().read_tokenizer(folder, config), actions, config.vocab_size)

    @property
    def reports(self) -> tuple[str, ...]:
        return ("decode_ok", "tokens", "token_log_prob", "token_entropy")

    @property
    def _settings(self) -> dict[str, float]:
        return {"temperature": float(self.temperature)}

    @property
    def model(self) -> Pi0Fast:
        return Pi0Fast(self.config)

    @property
    def prompt_tokenizer(self) -> PromptTokenizer:
        return self.tokenizer.prompts

    def save(self, folder: str | Path) -> None:
        """See `PiPolicy.save`."""
        super().save(folder)
        self.tokenizer.actions.save(Path(folder) / "assets" / "fast")

    def prepare(self, raw: Sequence[RawObs]) -> Observation:
        """See `Policy.prepare`; ValueError names what a raw observation lacks or has wrong."""
        raw = flat_batch(raw)
        state, encode = self._state(raw), self.tokenizer.encode_prompt
        prompts = [encode(self.preset.prompt(r), s) for r, s in zip(raw, state, strict=True)]
        return self._observation(raw, state, prompts)

    def _padded(self, state: Any) -> Any:
        return state

    def saying(self, obs: Observation, key: Array) -> FastPolicy:
        """See `WritingPolicy`."""
        return dataclasses.replace(self, given=self.sample(obs, key).aux["tokens"])

    def value_vectors(self, stack: str = "vlm") -> ValueVectors:
        """See `LanguagePolicy.value_vectors`. Both stacks are the same network: `vlm` names words
        alone, `action` also the tokens that actions are written in.
        """
        if stack == "action":
            return fast_value_vectors(self.spec.fingerprint, self.variables, self.tokenizer)
        return super().value_vectors(stack)

    _absent_mask = True
    _tail = FAST_TAIL

    @staticmethod
    def _state_prompt(prompt: str) -> str:
        return state_prompt(prompt.lower())

    @property
    def _writer(self) -> StateWriter:
        return StateWriter.of(self.prompt_tokenizer, self._tail)

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
        """See `Policy.sample`. `action` taps and edits are those of the decoded tokens.

        `aux` holds `decode_ok` [B], False where the tokens are not an action or were drawn from
        logits that are not finite (such actions must not be executed, and `finish` replaces them),
        `tokens` [B,S], their `token_log_prob` [B,S], which an objective can differentiate (actions
        have no gradient), and `token_entropy` [B,S].
        """
        return _sample(
            self.model,
            self.tokenizer,
            self.variables,
            obs,
            key,
            self.temperature,
            Hooks.of(edits, taps),
            prefix,
            self.given,
        )


@functools.partial(jax.jit, static_argnames=("model", "tokenizer"))
def _sample(model, tokenizer, variables, obs, key, temperature, hooks, prefix, given):
    if prefix is None:
        prefix = prefill(model, variables, obs, hooks)
    prefix.check(model.config, obs)
    written = write(
        model,
        variables,
        prefix,
        element_keys(key, obs.batch_size),
        hooks,
        temperature=temperature,
        grammar=tokenizer.grammar if model.config.whole_actions else None,
        given=given,
    )
    actions, ok = tokenizer.decode_actions(written.tokens)
    ok = ok & jnp.all(jnp.isfinite(written.log_probs), axis=1)
    aux = {
        "decode_ok": ok,
        "tokens": written.tokens,
        "token_log_prob": written.log_probs,
        "token_entropy": written.entropies,
    }
    return Sample(actions, {**prefix.taps, **written.taps}, aux)


def _reads(config: Mapping[str, Any] | None, preset: RobotPreset) -> bool:
    if config is None:
        return isinstance(preset.model, FastConfig)
    return "siglip" in config and "max_decoding_steps" in config


register(Family("pi0-FAST", _reads, FastPolicy.load, trees=True))
