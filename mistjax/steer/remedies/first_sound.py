"""The gentlest remedy of a camera that is enough: several are tried, and an imputer is the judge.

A picture whose light or patch can be undone shows more than any imputation. Each remedy's picture
is taken if it knows, and if the imputer then finds the camera sound: as near to what everything
else says as it is in 95% of clean inferences. Where none passes, the imputer itself stands in.

Cost: that of all of them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import flax.struct

from mistjax.batches import choose
from mistjax.steer.remedies.imputer import Imputer
from mistjax.steer.remedies.remedy import InputRemedy, Proposal, Seen


@flax.struct.dataclass
class FirstSound:
    """See the module.

    Attributes:
        remedies: in the order of preference.
        judge: stands in where none of them passes.
    """

    remedies: tuple[InputRemedy, ...]
    judge: Imputer

    @property
    def _all(self) -> tuple[InputRemedy, ...]:
        return (*self.remedies, self.judge)

    def blank(self, batch: int) -> Any:
        return tuple(remedy.blank(batch) for remedy in self._all)

    def note(self, seen: Seen, name: str) -> Any:
        return tuple(remedy.note(seen, name) for remedy in self._all)

    def advance(self, note: Any, seen: Seen) -> Any:
        return tuple(r.advance(one, seen) for r, one in zip(self._all, note, strict=True))

    def propose(self, note: Any, seen: Seen, name: str) -> Proposal:
        *notes, last = note
        imputed = self.judge.propose(last, seen, name)
        chosen = obs, known = imputed.obs, imputed.known
        for remedy, one in reversed(list(zip(self.remedies, notes, strict=True))):
            found = remedy.propose(one, seen, name)
            after = self.judge.propose(last, dataclasses.replace(seen, obs=found.obs), name)
            passes = found.known & (after.residual <= 1)
            chosen = obs, known = choose(passes, (found.obs, found.known), chosen)
        return Proposal(obs, known, imputed.residual)
