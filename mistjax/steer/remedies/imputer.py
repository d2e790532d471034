"""Imputation: what a camera would show, from everything else that the policy knows.

A small network predicts how a camera's projected image tokens changed since they were last good:
from the other cameras' tokens now, its own last good tokens, and the state now and then (with
random Fourier features). All tokens are in a basis of principal components. It is fitted to clean
episodes alone, so it works for every fault of a camera, and knows no fault.

It says how sure it is: it also predicts its own squared error, and notices other cameras that look
like nothing it was fitted to. Nothing is repaired where its error, by the limit that it keeps in
95% of held-out inferences, may be as large as all that the camera's tokens vary, or where it is
asked about what it does not know.

Source of the random features: Rahimi and Recht, NeurIPS 2007. Cost: one product of a camera's
tokens with its basis for each camera, and three small layers.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from mistjax.steer.remedies.remedy import Proposal, Seen


class View(NamedTuple):
    """A camera's projected tokens and the state of the same inference."""

    tokens: Float[Array, "b t"]
    state: Float[Array, "b s"]


@flax.struct.dataclass
class Imputer:
    """The networks of all cameras, their arrays stacked; the remedy of each of them.

    Attributes:
        mean: tokens of each camera, on average.
        directions: principal components, over `scale`.
        scale: root of their mean variance.
        spread: standard deviation of each component.
        rest: mean squared length of what the components leave out.
        frequencies, phases: of the random features of the state.
        layers: weights [C,I,O] and biases [C,O]; the last output is the logarithm of the mean
            squared error of the others.
        usual: how far a sound camera is from its prediction, squared, over the predicted error:
            95% of clean inferences.
        familiar: largest mean squared component of the other cameras in clean episodes.
        cameras: names (static).
    """

    mean: Float[Array, "c t"]
    directions: Float[Array, "c t k"]
    scale: Float[Array, " c"]
    spread: Float[Array, "c k"]
    rest: Float[Array, " c"]
    frequencies: Float[Array, "s f"]
    phases: Float[Array, " f"]
    layers: tuple[tuple[Array, Array], ...]
    usual: Float[Array, " c"]
    familiar: Float[Array, " c"]
    cameras: tuple[str, ...] = flax.struct.field(pytree_node=False)

    def blank(self, batch: int) -> View:
        return View(
            jnp.zeros((batch, self.mean.shape[1])),
            jnp.zeros((batch, self.frequencies.shape[0])),
        )

    def note(self, seen: Seen, name: str) -> View:
        tokens = self._tokens(seen)[:, self.cameras.index(name)]
        return View(tokens, jnp.asarray(seen.obs.state)[:, : self.frequencies.shape[0]])

    def advance(self, note: View, seen: Seen) -> View:
        return note

    def propose(self, note: View, seen: Seen, name: str) -> Proposal:
        camera, tokens = self.cameras.index(name), self._tokens(seen)
        state = jnp.asarray(seen.obs.state)[:, : self.frequencies.shape[0]]
        codes = self.codes(tokens)
        before = self.code(note.tokens, camera)
        change, share = self.predict(camera, codes, before, state, note.state)
        imputed = self.decode(before + change, camera)
        strange = self.strangeness(codes, camera)
        error = share * before.shape[-1] * self.scale[camera] ** 2 + self.rest[camera]
        away = jnp.square(tokens[:, camera] - imputed).sum(-1)
        known = (share * self.usual[camera] < 1) & (strange <= self.familiar[camera])
        known &= jnp.isfinite(imputed).all(axis=1)
        residual = jnp.sqrt(away / (error * self.usual[camera]))
        repaired = tokens.at[:, camera].set(imputed.astype(tokens.dtype))
        embedding = jnp.asarray(seen.obs.image_embedding)
        obs = dataclasses.replace(seen.obs, image_embedding=repaired.reshape(embedding.shape))
        return Proposal(obs, known, jnp.where(jnp.isnan(residual), jnp.inf, residual))

    def _tokens(self, seen: Seen) -> Float[Array, "b c t"]:
        embedding = jnp.asarray(seen.obs.image_embedding)
        return embedding.reshape(len(embedding), len(self.cameras), -1)

    def code(self, tokens: Float[Array, "b t"], camera: int) -> Float[Array, "b k"]:
        """Tokens of a camera as components whose mean square is 1."""
        return (tokens - self.mean[camera][None]) @ self.directions[camera]

    def codes(self, tokens: Float[Array, "b c t"]) -> Float[Array, "b c k"]:
        """`code` of every camera."""
        return jnp.einsum("bct,ctk->bck", tokens - self.mean[None], self.directions)

    def decode(self, code: Float[Array, "b k"], camera: int) -> Float[Array, "b t"]:
        """The inverse of `code` within the components."""
        return self.mean[camera][None] + self.scale[camera] ** 2 * code @ self.directions[camera].T

    def predict(
        self,
        camera: int,
        codes: Float[Array, "b c k"],
        before: Float[Array, "b k"],
        state: Float[Array, "b s"],
        state_before: Float[Array, "b s"],
    ) -> tuple[Float[Array, "b k"], Float[Array, " b"]]:
        """(change of a camera's components since `before`, its predicted mean squared error)."""
        others = [codes[:, c] for c in range(len(self.cameras)) if c != camera]
        x = jnp.concatenate(
            [*others, before, self.features(state), self.features(state_before)], axis=-1
        )
        out = network([(w[camera], b[camera]) for w, b in self.layers], x)
        return out[:, :-1], jnp.exp(out[:, -1])

    def features(self, state: Float[Array, "b s"]) -> Float[Array, "b f"]:
        """The state and its random features."""
        return jnp.concatenate(
            [state, jnp.cos(state @ self.frequencies + self.phases[None])], axis=-1
        )

    def strangeness(self, codes: Float[Array, "b c k"], camera: int) -> Float[Array, " b"]:
        """Largest mean squared component of the other cameras, in standard deviations."""
        size = jnp.square(codes / self.spread[None]).mean(-1)
        return size.at[:, camera].set(0.0).max(axis=1)


def network(layers, x: Float[Array, "b i"]) -> Float[Array, "b o"]:
    """Dense layers with GELU in between."""
    for number, (weights, bias) in enumerate(layers):
        x = x @ weights + bias[None]
        if number + 1 < len(layers):
            x = jax.nn.gelu(x)
    return x
