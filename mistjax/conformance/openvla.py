"""Compares this port with outputs recorded from the original OpenVLA implementation."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import torch

from interop.edits import EditSite
from interop.openvla import actions, generation, processing
from interop.openvla.recordings import (
    Recordings,
    error,
    levels,
    recorded_model,
    wrong,
)
from mistjax.conformance.rows import Row
from mistjax.hooks.edits import Add, SetNeurons
from mistjax.hooks.sites import Tap
from mistjax.untrusted import read_npz

TOLERANCE = {"sdpa": 1e-5, "eager": 2e-5}
"""For float32."""

LEVELS = {"jpeg_levels": 17.0, "resized_levels": 1.0}
"""Picture steps that cannot be repeated exactly, in levels of 255."""


def conformance_openvla(folder: str | Path, attention: str = "sdpa") -> list[Row]:
    """The largest error of each recorded output; its group is the file it was recorded in.

    Errors are relative to the scale of an output: max |got - expected| / max(1, max |expected|).
    Absolute errors reach 1.8e-5 on logits of size 12, and so does the distance of the recordings
    from the same network in float64: on another processor float32 gets no closer.

    Args:
        folder: recordings.
        attention: "sdpa" or "eager".

    Raises:
        FileNotFoundError: not a folder of recordings, or one without outputs.
        ValueError: weights that do not fit.
    """
    folder = Path(folder)
    recorded = Recordings(folder, recorded_model(folder, attention))
    rows: list[Row] = []
    for file, compare in COMPARISONS.items():
        if (folder / file).exists():
            errors = compare(recorded, read_npz(folder / file))
            rows += [
                Row(file.removesuffix(".npz"), output, error, tolerance(output, attention))
                for output, error in errors.items()
            ]
    if not rows:
        raise FileNotFoundError(f"{folder} holds no recorded output of OpenVLA to compare with.")
    return rows


def tolerance(output: str, attention: str) -> float:
    """How large the error of an output may be; 0 for what counts mismatches."""
    if output.startswith("wrong_") or output == "cropped_levels":
        return 0.0
    return LEVELS.get(output, TOLERANCE[attention])


Arrays = dict[str, np.ndarray]
Compare = Callable[[Recordings, Arrays], dict[str, float]]


def compare_pictures(run: Recordings, inputs: Arrays) -> dict[str, float]:
    """Pictures as the towers read them."""
    statistics = [(tower.mean, tower.std) for tower in run.model.config.towers]
    return {
        f"pixel_values_{i}": error(
            processing.pixel_values(processing.square(inputs[f"image_{i}"]), statistics)[None],
            inputs[f"pixel_values_{i}"],
        )
        for i in (0, 1)
    }


def compare_libero_pictures(run: Recordings, golden: Arrays) -> dict[str, float]:
    """LIBERO's pictures after each step of their preparation, in grey levels."""
    jpeg = processing.jpeg_roundtrip(processing.rotate_180(golden["camera"]))
    resized = processing.lanczos3(golden["jpeg_roundtrip"])
    cropped = processing.center_crop(golden["resized"])
    return {
        "jpeg_levels": levels(jpeg, golden["jpeg_roundtrip"]),
        "resized_levels": levels(resized, golden["resized"]),
        "cropped_levels": levels(cropped, golden["center_cropped"]),
    }


def compare_action_tokens(run: Recordings, golden: Arrays) -> dict[str, float]:
    """Actions to token ids and back."""
    return {
        "wrong_ids": wrong(actions.encode(golden["encode_in"]), golden["encode_ids"]),
        "decoded": error(actions.decode(golden["decode_ids"]), golden["decode_out"]),
    }


def compare_forward(example: int) -> Compare:
    """One pass over prompt and image, every layer's activations."""

    @torch.no_grad()
    def compare(run: Recordings, golden: Arrays) -> dict[str, float]:
        model = run.model
        vision = model.vision_backbone(run.pixels(example))
        errors = {
            "vision_patches": error(vision, golden["vision_patches"]),
            "projector_out": error(model.projector(vision), golden["projector_out"]),
        }
        points = {"attn_out": "attn_out", "mlp_act": "mlp_neurons", "mlp_out": "mlp_out"}
        sites = ("resid", *points.values())
        taps = [Tap(f"{stack}.{site}") for stack in ("vlm", "action") for site in sites]
        with run.hooks(example, taps) as hooks:
            embedded = run.embedded(example, example, hooks)
            one = torch.zeros(1, 1, dtype=torch.long)
            logits = generation.follow(model, embedded, one, hooks)
        found = hooks.values()
        whole = {
            site: torch.cat(
                [found[f"vlm.{site}@all/all/tokens"], found[f"action.{site}@all/all/tokens"][0]],
                dim=2,
            )
            for site in sites
        }
        expected: dict[str, torch.Tensor] = {
            f"{name}_{layer}": value
            for name, site in points.items()
            for layer, value in enumerate(whole[site])
        }
        *inner, last = whole["resid"]
        expected |= {f"hidden_states_{k}": value for k, value in enumerate(inner, start=1)}
        expected["resid_post_last"] = last
        expected[f"hidden_states_{len(inner) + 1}"] = model.language_model.model.norm(last)
        start = model.embed_tokens(torch.full((1, 1), model.config.empty_token))
        expected["hidden_states_0"] = torch.cat([embedded.embeds, start], dim=1)
        expected["logits_last"] = logits[0, 0]
        for name in golden.keys() & expected.keys():
            errors[name] = error(expected[name], golden[name])
        if "logits_action" in golden:
            final = model.language_model.lm_head(expected[f"hidden_states_{len(inner) + 1}"])
            errors["logits_action"] = error(run.action_logits(final[0]), golden["logits_action"])
        return errors

    return compare


@torch.no_grad()
def compare_batch(run: Recordings, golden: Arrays) -> dict[str, float]:
    """Two prompts of different length, padded on the right."""
    model, real = run.model, golden["attention_mask"].astype(bool)
    pixels = torch.cat([run.pixels(0), run.pixels(1)])
    logits = model(torch.tensor(golden["input_ids"]), pixels, torch.tensor(real))
    got = run.action_logits(logits[:, model.config.num_patches :])
    return {"logits_action": error(got[real], golden["logits_action"][real])}


def compare_generated(run: Recordings, golden: Arrays) -> dict[str, float]:
    """Greedy decoding of every prompt with every image."""
    worst: dict[str, float] = {}
    for prompt in (0, 1):
        for image in (0, 1):
            here = {name: array[prompt, image] for name, array in golden.items()}
            errors = run.check_decoded(run.decode(prompt, image), here)
            libero = actions.libero_gripper(here["actions"])
            errors["libero_actions"] = error(libero, here["libero_actions"])
            if "actions_nomask_key" in here:
                stats = actions.statistics(run.norm_stats, "lab_nomask", "action")
                got = actions.unnormalise(here["normalized_actions"], stats)
                errors["actions_nomask_key"] = error(got, here["actions_nomask_key"])
            worst = {name: max(value, worst.get(name, 0.0)) for name, value in errors.items()}
    return worst


def compare_steered(run: Recordings, golden: Arrays) -> dict[str, float]:
    """Some neurons of two layers set to a value, in the prefix and at every decoding step."""
    text = run.model.config.text
    mask = np.zeros((text.num_hidden_layers, text.intermediate_size), np.float32)
    for layer in golden["layers"]:
        mask[layer, golden[f"neurons_layer{layer}"]] = 1.0
    value = np.full_like(mask, golden["coef"])
    edits = [
        SetNeurons(f"{s}.mlp_neurons", mask=jnp.asarray(mask), value=jnp.asarray(value))
        for s in ("vlm", "action")
    ]
    errors = run.check_decoded(run.decode(0, 0, edits), golden)
    with torch.no_grad(), run.hooks(0, edits=edits) as hooks:
        embedded = run.embedded(0, 0, hooks)
        logits = generation.follow(run.model, embedded, torch.zeros(1, 1, dtype=torch.long), hooks)
    return {**errors, "logits_last": error(logits[0, 0], golden["logits_last"])}


def compare_gradients(run: Recordings, golden: Arrays) -> dict[str, float]:
    """Gradients of the greedy token's logit: to the embeddings, and to the last token's neurons."""
    model = run.model
    with torch.no_grad(), run.hooks(0) as hooks:
        embeds = run.embedded(0, 0, hooks).embeds
    start = model.embed_tokens(torch.full((1, 1), model.config.empty_token))
    embeds = torch.cat([embeds, start], dim=1).requires_grad_()
    nudge = torch.zeros(golden["mlp_act_lastpos"].shape, requires_grad=True)
    site = EditSite(Add, "action.mlp_neurons", "all")
    edits = [(site, {"strength": 1.0, "vector": nudge})]
    valid = torch.ones(embeds.shape[:2], dtype=torch.bool)
    with run.hooks(0, [Tap("action.mlp_neurons")], edits) as hooks:
        hooks.expect(generation.Call(embeds.shape[1] - 1, range(1)), valid[:, 1:])
        hidden = model.hidden(embeds, valid, torch.arange(embeds.shape[1])[None])
    neurons = hooks.values()["action.mlp_neurons@all/all/tokens"][0, :, 0, 0]
    logit = model.language_model.lm_head(hidden[0, -1])[int(golden["target_token"])]
    to_embeds, to_neurons = torch.autograd.grad(logit, [embeds, nudge])
    return {
        "mlp_act_lastpos": error(neurons, golden["mlp_act_lastpos"]),
        "grad_inputs_embeds": error(to_embeds, golden["grad_inputs_embeds"]),
        "grad_mlp_act_lastpos": error(to_neurons, golden["grad_mlp_act_lastpos"]),
    }


@torch.no_grad()
def compare_value_vectors(run: Recordings, golden: Arrays) -> dict[str, float]:
    """The vocabulary entries that each neuron's output column points at."""
    llama = run.model.language_model
    scores = run.model.value_vectors() @ llama.lm_head.weight.T
    named = scores.gather(-1, torch.tensor(golden["top10_ids"]).long())
    return {
        "top10_scores": error(scores.topk(10).values, golden["top10_scores"]),
        "scores_of_top10_ids": error(named, golden["top10_scores"]),
    }


COMPARISONS: dict[str, Compare] = {
    "inputs.npz": compare_pictures,
    "libero_image.npz": compare_libero_pictures,
    "action_tokenizer.npz": compare_action_tokens,
    "forward_0.npz": compare_forward(0),
    "forward_1.npz": compare_forward(1),
    "batch.npz": compare_batch,
    "generate.npz": compare_generated,
    "steer_pos.npz": compare_steered,
    "steer_zero.npz": compare_steered,
    "grad_0.npz": compare_gradients,
    "value_vectors.npz": compare_value_vectors,
}
