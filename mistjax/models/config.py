"""Sizes of the pi0 family, with the named variants that openpi ships and a `tiny` one for tests."""

from __future__ import annotations

import dataclasses
import numbers
from collections.abc import Mapping
from typing import Any, TypeVar

DTYPES = ("float32", "bfloat16", "float16")
IMAGE_KEYS = ("base_0_rgb", "left_wrist_0_rgb", "right_wrist_0_rgb")
FAST_IMAGE_KEYS = ("base_0_rgb", "base_1_rgb", "wrist_0_rgb")


def _check_counts(config: Any, *names: str) -> None:
    """ValueError unless these fields are whole numbers of at least 1."""
    for name in names:
        value = getattr(config, name)
        if not isinstance(value, numbers.Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(
                f"{type(config).__name__}.{name} is {value!r}: expected a whole number, at least 1."
            )


def _check_divides(config: Any, whole: str, part: str) -> None:
    """ValueError unless one field is a multiple of another."""
    if getattr(config, whole) % getattr(config, part):
        raise ValueError(
            f"{type(config).__name__}.{whole} is {getattr(config, whole)}: expected a multiple of "
            f"{part}, which is {getattr(config, part)}."
        )


@dataclasses.dataclass(frozen=True)
class SiglipConfig:
    """A SigLIP vision tower: square patches, pre-norm encoder, no pooling."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    patch_size: tuple[int, int] = (14, 14)

    def __post_init__(self):
        _check_counts(self, "width", "depth", "mlp_dim", "num_heads")
        _check_divides(self, "width", "num_heads")
        if len(self.patch_size) != 2 or min(self.patch_size) < 1:
            raise ValueError(
                f"patch_size is {self.patch_size}: expected (height, width) in pixels."
            )

    def num_tokens(self, image_size: int) -> int:
        """Patches of one square image."""
        return (image_size // self.patch_size[0]) * (image_size // self.patch_size[1])


@dataclasses.dataclass(frozen=True)
class GemmaConfig:
    """One Gemma expert. Experts that run together share depth, heads, kv heads and head_dim."""

    width: int
    depth: int
    mlp_dim: int
    num_heads: int
    num_kv_heads: int
    head_dim: int

    def __post_init__(self):
        _check_counts(self, *(field.name for field in dataclasses.fields(self)))
        _check_divides(self, "num_heads", "num_kv_heads")
        if self.head_dim % 2:
            raise ValueError(f"head_dim is {self.head_dim}: rotary embedding needs an even one.")


SO400M_14 = SiglipConfig(width=1152, depth=27, mlp_dim=4304, num_heads=16)
GEMMA_2B = GemmaConfig(2048, 18, 16_384, num_heads=8, num_kv_heads=1, head_dim=256)
GEMMA_300M = GemmaConfig(1024, 18, 4096, num_heads=8, num_kv_heads=1, head_dim=256)


# Not `Self`: the run-time checks of the tests decorate methods apart from their class.
_Config = TypeVar("_Config", bound="_PrefixConfig")


class _PrefixConfig:
    """What configurations of models with a prefix of cameras and a prompt have in common."""

    siglip: SiglipConfig
    image_size: int
    image_keys: tuple[str, ...]
    max_token_len: int
    dtype: str

    def __post_init__(self):
        sizes = "vocab_size", "image_size", "action_dim", "action_horizon", "max_token_len"
        _check_counts(self, *sizes)
        if any(self.image_size % side for side in self.siglip.patch_size):
            raise ValueError(
                f"image_size is {self.image_size}: patches of {self.siglip.patch_size} do not fill "
                "such a picture."
            )
        if not self.image_keys or len(set(self.image_keys)) < len(self.image_keys):
            raise ValueError(f"image_keys are {self.image_keys}: expected cameras, each once.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype!r}: expected one of {', '.join(DTYPES)}.")

    @property
    def num_image_tokens(self) -> int:
        """Tokens of all cameras together."""
        return len(self.image_keys) * self.siglip.num_tokens(self.image_size)

    @property
    def prefix_len(self) -> int:
        return self.num_image_tokens + self.max_token_len

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)  # type: ignore[call-overload]

    @classmethod
    def from_json(cls: type[_Config], data: Mapping[str, Any]) -> _Config:
        """The inverse of `to_json`.

        Raises:
            ValueError: an unknown or missing key, or a value of the wrong type.
        """
        data = {
            name: _KINDS[name](**_fields(_KINDS[name], value, name)) if name in _KINDS else value
            for name, value in _fields(cls, data, "model config").items()
        }
        return cls(**data)


def _fields(kind: type, data: Any, where: str) -> dict[str, Any]:
    """JSON values of a dataclass's fields, lists as tuples; ValueError for what they are not."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if not isinstance(data, Mapping):
        raise ValueError(f"{where} is {data!r}: expected a JSON object.")
    if surplus := sorted(set(data) - set(fields)):
        raise ValueError(f"{where} has unknown keys {surplus}; known: {sorted(fields)}.")
    required = {n for n, field in fields.items() if field.default is dataclasses.MISSING}
    if missing := sorted(required - set(data)):
        raise ValueError(f"{where} lacks {missing}.")
    values = {n: tuple(v) if isinstance(v, list) else v for n, v in data.items()}
    for name, value in values.items():
        if not _fits(value, str(fields[name].type)):
            raise ValueError(f"{where} has {name} {value!r}: expected {fields[name].type}.")
    return values


def _fits(value: Any, annotation: str) -> bool:
    """Whether a JSON value, lists as tuples, is what a field's annotation says."""
    if annotation.startswith("tuple["):
        kinds = annotation[len("tuple[") : -1].split(", ")
        if not isinstance(value, tuple) or (kinds[-1] != "..." and len(value) != len(kinds)):
            return False
        return all(_fits(part, kinds[0]) for part in value)
    wanted = {"int": int, "bool": bool, "str": str}.get(annotation)
    return wanted is None or type(value) is wanted


@dataclasses.dataclass(frozen=True)
class Pi0Config(_PrefixConfig):
    """pi0 (`pi05=False`) or pi0.5 (`pi05=True`).

    Attributes:
        action_dim: model width of states and actions; narrower robots are padded with zeros.
        max_token_len: prompt tokens after padding.
        dtype: compute dtype of both Gemma experts and the vision encoder.
        remat: recompute each layer in the backward pass (saves memory, costs a forward pass).
        num_steps: Euler steps of the sampler.
    """

    siglip: SiglipConfig = SO400M_14
    vlm: GemmaConfig = GEMMA_2B
    action_expert: GemmaConfig = GEMMA_300M
    vocab_size: int = 257_152
    image_size: int = 224
    image_keys: tuple[str, ...] = IMAGE_KEYS
    action_dim: int = 32
    action_horizon: int = 50
    max_token_len: int = 48
    num_steps: int = 10
    pi05: bool = False
    dtype: str = "bfloat16"
    remat: bool = True

    def __post_init__(self):
        super().__post_init__()
        _check_counts(self, "num_steps")
        if self.action_expert.width % 2:
            width = self.action_expert.width
            raise ValueError(f"action_expert.width is {width}: the time embedding needs it even.")
        shared = ("depth", "num_heads", "num_kv_heads", "head_dim")
        differ = [n for n in shared if getattr(self.vlm, n) != getattr(self.action_expert, n)]
        if differ:
            raise ValueError(
                f"vlm and action_expert must agree on {shared}; they differ in {differ}."
            )

    @property
    def experts(self) -> tuple[GemmaConfig, ...]:
        """The Gemma stacks that run together, VLM first."""
        return self.vlm, self.action_expert


@dataclasses.dataclass(frozen=True)
class FastConfig(_PrefixConfig):
    """pi0-FAST: the VLM itself writes the actions as tokens.

    Attributes:
        action_dim, action_horizon: shape of the chunk that the action tokens stand for.
        max_token_len: prompt tokens after padding, without the written action.
        max_decoding_steps: limit on the tokens of one action chunk.
        decoding_gap: positions left free between the prompt and the decoded tokens. openpi's
            sampler leaves 1, its training 0: a policy trained here decodes as it was trained.
        whole_actions: write only tokens with which the action can still become a whole chunk.
            False, as in openpi, allows any token, so that some actions cannot be decoded.
        dtype, remat: as in `Pi0Config`.
    """

    siglip: SiglipConfig = SO400M_14
    vlm: GemmaConfig = GEMMA_2B
    vocab_size: int = 257_152
    image_size: int = 224
    image_keys: tuple[str, ...] = FAST_IMAGE_KEYS
    action_dim: int = 32
    action_horizon: int = 32
    max_token_len: int = 250
    max_decoding_steps: int = 256
    decoding_gap: int = 1
    whole_actions: bool = False
    dtype: str = "bfloat16"
    remat: bool = True

    def __post_init__(self):
        super().__post_init__()
        _check_counts(self, "max_decoding_steps")
        if self.decoding_gap < 0:
            raise ValueError(f"decoding_gap is {self.decoding_gap}: expected 0 or more positions.")

    @property
    def experts(self) -> tuple[GemmaConfig, ...]:
        """The one Gemma stack."""
        return (self.vlm,)

    @property
    def num_steps(self) -> int:
        """Decoded tokens of one inference."""
        return self.max_decoding_steps


_KINDS = {"siglip": SiglipConfig, "vlm": GemmaConfig, "action_expert": GemmaConfig}

PI0 = Pi0Config()
PI05 = Pi0Config(pi05=True, max_token_len=200)
TINY = Pi0Config(
    siglip=SiglipConfig(width=32, depth=2, mlp_dim=64, num_heads=4, patch_size=(8, 8)),
    vlm=GemmaConfig(32, 3, 64, num_heads=4, num_kv_heads=1, head_dim=8),
    action_expert=GemmaConfig(16, 3, 32, num_heads=4, num_kv_heads=1, head_dim=8),
    vocab_size=96,
    image_size=16,
    image_keys=IMAGE_KEYS[:2],
    action_dim=5,
    action_horizon=4,
    max_token_len=8,
    num_steps=3,
    dtype="float32",
    remat=False,
)
TINY_FAST = FastConfig(
    siglip=TINY.siglip,
    vlm=TINY.vlm,
    vocab_size=640,
    image_size=TINY.image_size,
    image_keys=TINY.image_keys,
    action_dim=TINY.action_dim,
    action_horizon=TINY.action_horizon,
    max_token_len=TINY.max_token_len,
    max_decoding_steps=4,
    dtype="float32",
    remat=False,
)
