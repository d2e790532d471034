"""OpenVLA: [BOS][patches][rest of the prompt] through a Llama.

Parameters carry their published names. The Llama is `transformers`' own; its generation code is
not used (see `generation`).

Source: OpenVLA, arXiv 2406.09246, section 3.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache, LlamaConfig, LlamaForCausalLM

from interop.openvla.config import LlamaDims, OpenVLAConfig
from interop.openvla.vision import Projector, VisionBackbone


def llama_config(dims: LlamaDims, attention: str) -> LlamaConfig:
    """The same sizes, as Transformers says them."""
    config = LlamaConfig(
        vocab_size=dims.vocab_size,
        hidden_size=dims.hidden_size,
        intermediate_size=dims.intermediate_size,
        num_hidden_layers=dims.num_hidden_layers,
        num_attention_heads=dims.num_attention_heads,
        num_key_value_heads=dims.num_key_value_heads,
        max_position_embeddings=dims.max_position_embeddings,
        rms_norm_eps=dims.rms_norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": dims.rope_theta},
        bos_token_id=dims.bos_token_id,
        eos_token_id=dims.eos_token_id,
        pad_token_id=dims.pad_token_id,
        tie_word_embeddings=False,
    )
    config._attn_implementation = attention
    return config


class OpenVLA(nn.Module):
    """The network alone: images and token ids in, hidden states and logits out.

    Args:
        config: sizes.
        attention: "sdpa" or "eager", for the language model.
    """

    def __init__(self, config: OpenVLAConfig, attention: str = "sdpa"):
        super().__init__()
        self.config = config
        self.vision_backbone = VisionBackbone(config)
        self.projector = Projector(config)
        self.language_model = LlamaForCausalLM(llama_config(config.text, attention))

    @property
    def device(self) -> torch.device:
        return self.projector.fc1.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.projector.fc1.weight.dtype

    def embed_tokens(self, ids: Int[Tensor, "b t"]) -> Float[Tensor, "b t d"]:
        return self.language_model.model.embed_tokens(ids)

    def embed_images(
        self,
        pixel_values: Float[Tensor, "b c h w"],
        instruction: Float[Tensor, "b d"] | None = None,
    ) -> Float[Tensor, "b p d"]:
        """Normalised images, six channels each, to tokens of the language model.

        Args:
            pixel_values: [B,6n,224,224].
            instruction: mean text embedding; given exactly when the model has FiLM.
        """
        if (instruction is not None) != self.config.film:
            raise ValueError(
                f"film is {self.config.film}: pass `instruction` exactly when the towers have FiLM."
            )
        return self.projector(self.vision_backbone(pixel_values.to(self.dtype), instruction))

    def assemble(
        self,
        text: Float[Tensor, "b t d"],
        text_mask: Bool[Tensor, "b t"],
        patches: Float[Tensor, "b p d"],
        seen: Bool[Tensor, "b p"],
    ) -> tuple[Float[Tensor, "b s d"], Bool[Tensor, "b s"]]:
        """Puts the patches, of which only the `seen` are real, after the first text token."""
        embeds = torch.cat([text[:, :1], patches, text[:, 1:]], dim=1)
        return embeds, torch.cat([text_mask[:, :1], seen, text_mask[:, 1:]], dim=1)

    def hidden(
        self,
        embeds: Float[Tensor, "b s d"],
        mask: Bool[Tensor, "b k"] | Float[Tensor, "b 1 s k"],
        positions: Int[Tensor, "b s"],
        cache: Cache | None = None,
    ) -> Float[Tensor, "b s d"]:
        """The Llama, to its final norm.

        Args:
            embeds: new tokens.
            mask: over all K keys, cached ones first: which are real (attention is causal), or an
                additive mask that says everything.
            positions: of the new tokens.
            cache: keys and values of earlier tokens, extended in place.
        """
        if mask.ndim == 2:
            mask = mask.long()
        output = self.language_model.model(
            inputs_embeds=embeds,
            attention_mask=mask,
            position_ids=positions,
            past_key_values=cache,
            use_cache=cache is not None,
        )
        return output.last_hidden_state

    def value_vectors(self) -> Float[Tensor, "l f d"]:
        """What each neuron of each layer's FFN adds to the residual stream; a copy."""
        layers: Any = self.language_model.model.layers
        return torch.stack([layer.mlp.down_proj.weight.T for layer in layers])

    def forward(
        self,
        input_ids: Int[Tensor, "b t"],
        pixel_values: Float[Tensor, "b c h w"],
        text_mask: Bool[Tensor, "b t"] | None = None,
    ) -> Float[Tensor, "b s v"]:
        """Logits at every position. Costs a [S, vocabulary] product: generation avoids it."""
        if text_mask is None:
            text_mask = torch.ones_like(input_ids, dtype=torch.bool)
        patches = self.embed_images(pixel_values)
        seen = torch.ones_like(patches[..., 0], dtype=torch.bool)
        embeds, mask = self.assemble(self.embed_tokens(input_ids), text_mask, patches, seen)
        positions = torch.arange(embeds.shape[1], device=embeds.device).expand(len(embeds), -1)
        return self.language_model.lm_head(self.hidden(embeds, mask, positions))
