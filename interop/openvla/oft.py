"""OpenVLA-OFT: a chunk of actions in one pass, without decoding.

The prompt is followed by one zeroed embedding for each number of the chunk, attention sees in both
directions, and a small head reads continuous actions off the last hidden states. Several cameras,
a token for the robot's state and FiLM are the other additions.

Written from the published source and never compared with real OFT weights. The discrete variant is
not implemented, nor is the diffusion head: its noise schedule alone does not say how noisy actions
and the diffusion time enter the network, and nothing recorded could tell a wrong guess.

Source: OpenVLA-OFT, arXiv 2502.19645, section 4.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from interop.openvla.config import OpenVLAConfig
from interop.openvla.generation import Embedded, Inputs, see
from interop.openvla.hooks import Call, Hooks
from interop.openvla.model import OpenVLA
from interop.taps import last_valid


class ResidualBlock(nn.Module):
    """A layer with norm and ReLU, added to its input."""

    def __init__(self, dim: int):
        super().__init__()
        self.ffn = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, dim), nn.ReLU())

    def forward(self, x: Float[Tensor, "*b d"]) -> Float[Tensor, "*b d"]:
        return x + self.ffn(x)


class HeadMlp(nn.Module):
    """Residual blocks between two layers, each with a norm before it."""

    def __init__(self, inputs: int, hidden: int, outputs: int, blocks: int = 2):
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(inputs)
        self.fc1 = nn.Linear(inputs, hidden)
        self.mlp_resnet_blocks = nn.ModuleList(ResidualBlock(hidden) for _ in range(blocks))
        self.layer_norm2 = nn.LayerNorm(hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Float[Tensor, "*b i"]) -> Float[Tensor, "*b o"]:
        x = F.relu(self.fc1(self.layer_norm1(x)))
        for block in self.mlp_resnet_blocks:
            x = block(x)
        return self.fc2(self.layer_norm2(x))


class L1Head(nn.Module):
    """Hidden states of one action's numbers, side by side, to that action."""

    def __init__(self, text_dim: int, action_dim: int, hidden: int | None = None):
        super().__init__()
        self.action_dim = action_dim
        self.model = HeadMlp(text_dim * action_dim, hidden or text_dim, action_dim)

    def forward(self, hidden: Float[Tensor, "b n d"]) -> Float[Tensor, "b c a"]:
        return self.model(hidden.unflatten(1, (-1, self.action_dim)).flatten(2))


class ProprioProjector(nn.Module):
    """The robot's state to one token."""

    def __init__(self, text_dim: int, state_dim: int):
        super().__init__()
        self.fc1 = nn.Linear(state_dim, text_dim)
        self.fc2 = nn.Linear(text_dim, text_dim)

    def forward(self, state: Float[Tensor, "b s"]) -> Float[Tensor, "b d"]:
        return self.fc2(F.gelu(self.fc1(state)))


@dataclasses.dataclass(frozen=True)
class OFTParts:
    """What OFT adds to the network.

    Attributes:
        head: reads the actions.
        chunk: actions of one inference (LIBERO 8, ALOHA 25, Bridge 5).
        proprio: puts the state behind the patches; None for a policy without state.
    """

    head: L1Head
    chunk: int
    proprio: ProprioProjector | None = None

    @classmethod
    def empty(cls, config: OpenVLAConfig, action_dim: int) -> OFTParts:
        """Fresh parts of a model whose configuration has `oft`."""
        if config.oft is None:
            raise ValueError("config.oft is None: this OpenVLA decodes token by token.")
        width, state = config.text.hidden_size, config.oft.state_dim
        proprio = None if state is None else ProprioProjector(width, state)
        return cls(L1Head(width, action_dim), config.oft.chunk, proprio)

    @property
    def numbers(self) -> int:
        """Numbers in one chunk: the tokens that carry actions."""
        return self.chunk * self.head.action_dim

    def read(self, hidden: Float[Tensor, "b s d"], embedded: Embedded) -> Float[Tensor, "b c a"]:
        """Normalised actions from `hidden_states`.

        The state that predicts a number is the one a position earlier, so the first is the empty
        token's, and the last placeholder only serves as context.
        """
        prefix = embedded.valid.shape[1]
        return self.head(hidden[:, prefix : prefix + self.numbers]).float()


def embed(model: OpenVLA, parts: OFTParts, inputs: Inputs, hooks: Hooks) -> Embedded:
    """[BOS][patches of every image][state][rest of the prompt]."""
    patches, seen = see(model, inputs, hooks, instruction(model, inputs))
    if parts.proprio is not None:
        state = parts.proprio(inputs.state.to(patches.dtype))[:, None]
        patches = torch.cat([patches, state], dim=1)
        seen = F.pad(seen, (0, 1), value=True)
    return Embedded(*model.assemble(inputs.text, inputs.text_mask, patches, seen))


def hidden_states(
    model: OpenVLA, parts: OFTParts, embedded: Embedded, hooks: Hooks
) -> Float[Tensor, "b s d"]:
    """One pass over prefix, empty token, a placeholder for each number, and stop token."""
    batch, prefix = embedded.valid.shape
    numbers, config = parts.numbers, model.config
    fixed = torch.tensor([config.empty_token, config.text.eos_token_id], device=model.device)
    empty, stop = model.embed_tokens(fixed[None]).expand(batch, -1, -1).split(1, dim=1)
    blank = torch.zeros_like(empty).expand(-1, numbers, -1)
    embeds = torch.cat([embedded.embeds, empty, blank, stop], dim=1)
    valid = F.pad(embedded.valid, (0, numbers + 2), value=True)
    after = torch.arange(1, numbers + 3, device=valid.device)
    positions = torch.cat([embedded.positions, last_valid(embedded.valid)[:, None] + after], dim=1)
    hooks.expect(Call(prefix, range(1), width=numbers), embedded.valid)
    return model.hidden(embeds, _both_ways(valid, embeds.dtype), positions)


def _both_ways(valid: Bool[Tensor, "b s"], dtype: torch.dtype) -> Float[Tensor, "b 1 s s"]:
    """An additive mask under which every token sees every real token."""
    mask = torch.zeros(valid.shape, dtype=dtype, device=valid.device)
    mask = mask.masked_fill(~valid, torch.finfo(dtype).min)
    return mask[:, None, None].expand(-1, -1, valid.shape[1], -1).contiguous()


def instruction(model: OpenVLA, inputs: Inputs) -> Float[Tensor, "b d"] | None:
    """Mean embedding of the text around the actions (prompt, empty token and stop token) for a
    model with FiLM; None for others.
    """
    config = model.config
    if not config.film:
        return None
    fixed = torch.tensor([[config.empty_token, config.text.eos_token_id]], device=model.device)
    around = model.embed_tokens(fixed).sum(dim=1)
    real = inputs.text_mask[..., None]
    total = torch.where(real, inputs.text, 0).sum(dim=1) + around
    return total / (real.sum(dim=1) + 2).to(total.dtype)
