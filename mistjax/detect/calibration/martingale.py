"""Is the calibration still valid? An online test that episodes look like those calibrated on.

Each finished successful episode gives one number (its largest standardised score). If it is
exchangeable with the earlier ones its rank is uniform; a bet against that grows a wealth that, by
Ville's inequality, ever exceeds 1 / delta with chance at most delta. When it does, the calibration
is stale. Update cost: one rank. Source: Vovk et al., "Retrain or not retrain: conformal test
martingales" (arXiv 2102.10439), the Simple Jumper.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from mistjax.ranges import between

BETS = np.array([-1.0, 0.0, 1.0])


@dataclasses.dataclass(frozen=True)
class ExchangeabilityMonitor:
    """Immutable state of the test.

    Attributes:
        values: numbers seen so far, calibration first.
        capital: wealth of each bet.
        delta: chance of a false "stale" verdict over an unlimited time.
        jump: share of the capital redistributed before each bet.
        seed: breaks ties between equal numbers.
        peak: largest wealth so far.

    Raises:
        ValueError: `delta` is outside (0, 1).
    """

    values: Float[np.ndarray, " n"]
    capital: Float[np.ndarray, " 3"] = dataclasses.field(default_factory=lambda: np.full(3, 1 / 3))
    delta: float = 0.01
    jump: float = 0.01
    seed: int = 0
    peak: float = 1.0

    def __post_init__(self) -> None:
        between("delta", self.delta, 0, 1)

    @property
    def wealth(self) -> float:
        """Evidence against exchangeability; 1 at the start."""
        return float(self.capital.sum())

    @property
    def stale(self) -> bool:
        """True once the wealth has reached 1 / delta."""
        return self.peak >= 1 / self.delta

    def update(self, value: float) -> ExchangeabilityMonitor:
        """The monitor after one more episode.

        Raises:
            ValueError: a NaN, which has no rank.
        """
        if np.isnan(value):
            raise ValueError(
                "got NaN for an episode's score; that is an alarm, not evidence of drift."
            )
        n = len(self.values)
        tie = np.random.default_rng((self.seed, n)).random()
        p = ((self.values > value).sum() + tie * ((self.values == value).sum() + 1)) / (n + 1)
        capital = (1 - self.jump) * self.capital + self.jump * self.wealth / 3
        capital = capital * (1 + BETS * (p - 0.5))
        return dataclasses.replace(
            self,
            values=np.append(self.values, value),
            capital=capital,
            peak=max(self.peak, float(capital.sum())),
        )

    def describe(self) -> str:
        """One sentence for reports."""
        verdict = "Calibration stale: collect and recalibrate" if self.stale else "No sign of drift"
        return f"{verdict} (evidence {self.peak:.3g}, stale at {1 / self.delta:.3g})."
