"""The board's pi0 in JAX and, with its weights, LeRobot's pi0 in PyTorch: the same actions."""

import dataclasses

import jax
import numpy as np
import pytest
import torch
from lerobot.policies.pi0 import modeling_pi0
from lerobot.policies.pi0.configuration_pi0 import PI0Config

from experiments.train.board_smolvla_start import write_blocks, write_dense, write_language
from mistjax.demo import SHIPPED
from mistjax.envs.board.env import BoardEnv
from mistjax.models.draws import element_keys, normal
from mistjax.policies import BOARD, PiPolicy


@pytest.fixture(scope="module")
def pi():
    return PiPolicy.load(SHIPPED / "board_pi0", BOARD)


@pytest.fixture(scope="module")
def flow(pi):
    """LeRobot's network in the board's sizes; its own are written into its code."""
    sizes, build = pi.config, modeling_pi0.PaliGemmaForConditionalGenerationWithPiGemma

    def small(config):
        tower = config.vision_config
        tower.hidden_size, tower.intermediate_size = sizes.siglip.width, sizes.siglip.mlp_dim
        tower.num_hidden_layers, tower.num_attention_heads = sizes.siglip.depth, 4
        tower.patch_size, tower.projection_dim = sizes.siglip.patch_size[0], sizes.vlm.width
        config.text_config.vocab_size = 64
        return build(config)

    experts = {"gemma_2b": sizes.vlm, "gemma_300m": sizes.experts[-1]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(modeling_pi0, "get_gemma_config", experts.get)
        patch.setattr(modeling_pi0, "PaliGemmaForConditionalGenerationWithPiGemma", small)
        config = PI0Config(
            chunk_size=sizes.action_horizon,
            n_action_steps=sizes.action_horizon,
            max_state_dim=sizes.action_dim,
            max_action_dim=sizes.action_dim,
            num_inference_steps=sizes.num_steps,
            image_resolution=(sizes.image_size, sizes.image_size),
            device="cpu",
        )
        network = modeling_pi0.PI0Pytorch(config).eval()
    params = pi.variables["params"]
    llm, image = params["PaliGemma"]["llm"], params["PaliGemma"]["img"]
    both = network.paligemma_with_expert
    vlm = both.paligemma.model
    tower = getattr(vlm.vision_tower, "vision_model", vlm.vision_tower)
    with torch.no_grad():
        write_blocks(tower, image)
        places = np.asarray(image["pos_embedding"])[0]
        tower.embeddings.position_embedding.weight.copy_(torch.tensor(places))
        write_dense(vlm.multi_modal_projector.linear, image["head"])
        table = torch.tensor(np.asarray(llm["embedder"]["input_embedding"]))
        vlm.language_model.embed_tokens.weight[: len(table)] = table
        write_language(vlm.language_model, llm, "", 0.0)
        write_language(both.gemma_expert.model, llm, "_1", 0.0)
        for name in ("state_proj", "action_in_proj", "action_time_mlp_in", "action_time_mlp_out"):
            write_dense(getattr(network, name), params[name])
        write_dense(network.action_out_proj, params["action_out_proj"])
    return network


def test_actions_are_the_same_for_the_same_noise(pi, flow):
    raw = [BoardEnv().reset(seed=seed)[0] for seed in range(3)]
    obs, key = pi.prepare(raw), jax.random.key(0)
    shape = pi.config.action_horizon, pi.config.action_dim
    noise = np.asarray(jax.vmap(lambda k: normal(k, shape))(element_keys(key, len(raw))))
    names = pi.config.image_keys
    ours = np.asarray(pi.sample(obs, key).actions)
    theirs = flow.sample_actions(
        [torch.tensor(np.asarray(obs.images[n])).permute(0, 3, 1, 2) for n in names],
        [torch.tensor(np.asarray(obs.image_masks[n])) for n in names],
        torch.tensor(np.asarray(obs.tokenized_prompt)).long(),
        torch.tensor(np.asarray(obs.tokenized_prompt_mask)),
        torch.tensor(np.asarray(obs.state)),
        noise=torch.tensor(noise),
    )
    np.testing.assert_allclose(theirs.numpy(), ours, atol=2e-5)
    assert np.abs(ours - noise).max() > 0.1
    other = dataclasses.replace(obs, state=obs.state + 0.1)
    assert np.abs(np.asarray(pi.sample(other, key).actions) - ours).max() > 1e-3
