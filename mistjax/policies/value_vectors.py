"""What each FFN neuron writes, in words: value vectors read through the output of their stream.

Row j of a layer's down projection is what neuron j adds to the residual stream per unit of its
activation. The final norm's scale and the output matrix turn such a direction into names: the
vocabulary for the VLM; for the action expert, which has no vocabulary, the signed action dimensions
("+dz" is up, in the env's units). A direction's names are right up to a positive factor, because
the final norm divides by the size of the whole stream.

Source: Geva et al., arXiv 2012.14913 and 2203.14680; for VLAs Häon et al., arXiv 2509.00328.
"""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float


@dataclasses.dataclass(frozen=True, eq=False)
class ValueVectors:
    """The value vectors of one stack and how to read them.

    Attributes:
        stack: `vlm` or `action`.
        policy: fingerprint of the policy.
        vectors: [L,F,D], neuron j of layer l writes `vectors[l, j]`.
        scale: what the final norm multiplies each width dimension by [D].
        rows: output direction of each name [V,D].
        names: of the rows.
        actions: which names are actions, in place of words [V]; None where none is.
    """

    stack: str
    policy: str
    vectors: Float[Array, "l f d"]
    scale: Float[Array, " d"]
    rows: Float[Array, "v d"]
    names: tuple[str, ...]
    actions: Bool[np.ndarray, " v"] | None = None

    def decode(self, directions: Float[Array, "*n d"]) -> Float[Array, "*n v"]:
        """How much each name is written per unit of a direction; float32, all names at once."""
        scale = self.scale[(None,) * (directions.ndim - 1)]
        scaled = (directions * scale).astype(self.rows.dtype)
        return jnp.matmul(scaled, self.rows.T, preferred_element_type=jnp.float32)
