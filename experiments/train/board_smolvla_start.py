"""The board's pi0 as what a SmolVLA starts from: its VLM exactly, its expert as far as it goes.

pi0's vision tower and VLM have the parts of a SmolVLM with other numbers in them, so the keys and
values of pictures and words are those of pi0 to rounding. The expert differs: every second layer
only looks at the VLM, and the state is a token of the VLM. What has no counterpart is left as it
was initialised.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from mistjax.policies import PiPolicy


def start_from(flow: Any, policy: PiPolicy) -> None:
    """Writes the weights of a pi0 into LeRobot's `VLAFlowMatching` of the same sizes."""
    params: Any = policy.variables["params"]
    two = flow.vlm_with_expert
    vlm, image, llm = two.get_vlm_model(), params["PaliGemma"]["img"], params["PaliGemma"]["llm"]
    with torch.no_grad():
        _tower(vlm.vision_model, vlm.connector.modality_projection.proj, image)
        table = llm["embedder"]["input_embedding"]
        for rows in (vlm.text_model.embed_tokens.weight, two.vlm.lm_head.weight):
            rows.zero_()[: len(table)].copy_(_tensor(table))
        write_language(vlm.text_model, llm, "", 1.0)
        write_language(two.lm_expert, llm, "_1", 1.0)
        for name in ("action_in_proj", "action_time_mlp_in", "action_time_mlp_out"):
            write_dense(getattr(flow, name), params[name])
        write_dense(flow.action_out_proj, params["action_out_proj"])


def _tower(tower: Any, connector: nn.Linear, image: Mapping[str, Any]) -> None:
    places = np.asarray(image["pos_embedding"])[0]
    side, stride = round(len(places) ** 0.5), tower.embeddings.num_patches_per_side
    at = (np.arange(side)[:, None] * stride + np.arange(side)).ravel()
    tower.embeddings.position_embedding.weight[torch.from_numpy(at)] = _tensor(places)
    write_blocks(tower, image)
    norm, kernel = image["Transformer"]["encoder_norm"], np.asarray(image["head"]["kernel"])
    # the connector has no bias, so the norm before it gets one that comes to the same
    shift = np.linalg.solve(kernel.T, np.asarray(image["head"]["bias"]))
    _copy(tower.post_layernorm.bias, np.asarray(norm["bias"]) + shift)
    # SmolVLA scales what comes out by the root of the width
    _copy(connector.weight, kernel / kernel.shape[1] ** 0.5, (1, 0))


def write_blocks(tower: Any, image: Mapping[str, Any]) -> None:
    """pi0's vision tower, but for the places of its patches."""
    _copy(tower.embeddings.patch_embedding.weight, image["embedding"]["kernel"], (3, 2, 0, 1))
    _copy(tower.embeddings.patch_embedding.bias, image["embedding"]["bias"])
    blocks = image["Transformer"]["encoderblock"]
    attention = blocks["MultiHeadDotProductAttention_0"]
    for i, layer in enumerate(tower.encoder.layers):
        for norm, name in ((layer.layer_norm1, "LayerNorm_0"), (layer.layer_norm2, "LayerNorm_1")):
            _copy(norm.weight, blocks[name]["scale"][i])
            _copy(norm.bias, blocks[name]["bias"][i])
        for name in ("query", "key", "value"):
            linear = getattr(layer.self_attn, f"{name[0]}_proj")
            kernel = np.asarray(attention[name]["kernel"][i])
            _copy(linear.weight, kernel.reshape(len(kernel), -1), (1, 0))
            _copy(linear.bias, np.ravel(attention[name]["bias"][i]))
        kernel = np.asarray(attention["out"]["kernel"][i])
        _copy(layer.self_attn.out_proj.weight, kernel.reshape(-1, kernel.shape[-1]), (1, 0))
        _copy(layer.self_attn.out_proj.bias, attention["out"]["bias"][i])
        for linear, name in ((layer.mlp.fc1, "Dense_0"), (layer.mlp.fc2, "Dense_1")):
            _copy(linear.weight, blocks["MlpBlock_0"][name]["kernel"][i], (1, 0))
            _copy(linear.bias, blocks["MlpBlock_0"][name]["bias"][i])
    _copy(tower.post_layernorm.weight, image["Transformer"]["encoder_norm"]["scale"])
    _copy(tower.post_layernorm.bias, image["Transformer"]["encoder_norm"]["bias"])


def write_language(model: Any, llm: Mapping[str, Any], expert: str, one: float) -> None:
    """One expert of pi0's language model: "" is the VLM, "_1" the action expert.

    Args:
        model: LeRobot's.
        llm: pi0's parameters of both.
        expert: which.
        one: 1 where the model's norms multiply by their weight, 0 where by one more.
    """
    layers = llm["layers"]
    attention, mlp = layers["attn"], layers[f"mlp{expert}"]
    for i, layer in enumerate(model.layers):
        _copy(layer.input_layernorm.weight, one + layers[f"pre_attention_norm{expert}"]["scale"][i])
        _copy(
            layer.post_attention_layernorm.weight, one + layers[f"pre_ffw_norm{expert}"]["scale"][i]
        )
        query = np.asarray(attention[f"q_einsum{expert}"]["w"][i])  # [heads, width, size]
        _copy(layer.self_attn.q_proj.weight, query.swapaxes(1, 2).reshape(-1, query.shape[1]))
        out = np.asarray(attention[f"attn_vec_einsum{expert}"]["w"][i])  # [heads, size, width]
        _copy(layer.self_attn.o_proj.weight, out.reshape(-1, out.shape[-1]), (1, 0))
        both = np.asarray(attention[f"kv_einsum{expert}"]["w"][i])[:, 0]  # [2, width, size]
        pair = layer.self_attn.k_proj, layer.self_attn.v_proj
        for linear, kernel in zip(pair, both, strict=True):
            if linear.in_features == len(kernel):
                _copy(linear.weight, kernel, (1, 0))
            else:  # it only looks at the VLM, whose keys and values are taken as they are
                nn.init.eye_(linear.weight)
        gating, down = np.asarray(mlp["gating_einsum"][i]), np.asarray(mlp["linear"][i])
        pair = layer.mlp.gate_proj, layer.mlp.up_proj
        for linear, kernel in zip(pair, gating, strict=True):
            linear.weight[: kernel.shape[1]] = _tensor(kernel.T)
        layer.mlp.down_proj.weight.zero_()[:, : len(down)] = _tensor(down.T)
    _copy(model.norm.weight, one + llm[f"final_norm{expert}"]["scale"])


def write_dense(linear: nn.Linear, params: Mapping[str, Any]) -> None:
    """A projection whose sides may be padded further here."""
    kernel = np.asarray(params["kernel"]).T
    linear.weight.zero_()[: kernel.shape[0], : kernel.shape[1]] = _tensor(kernel)
    linear.bias.zero_()[: kernel.shape[0]] = _tensor(params["bias"])


def _copy(to: Tensor, array: Any, axes: tuple[int, ...] | None = None) -> None:
    array = np.asarray(array)
    value = _tensor(array if axes is None else array.transpose(axes))
    if value.shape != to.shape:
        raise ValueError(f"pi0 has {tuple(value.shape)} where the SmolVLA has {tuple(to.shape)}.")
    to.copy_(value)


def _tensor(array: Any) -> Tensor:
    return torch.tensor(np.asarray(array))
