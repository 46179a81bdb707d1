"""A time of a request: how it is distributed, and whether a limit on it may be promised."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayes_sched.numbers import number, span
from bayes_sched.sla.objective import Floats, Objective
from bayes_sched.sla.step_sums import SumDistribution
from bayes_sched.sla.words import chance, chances, sureness


@dataclass(frozen=True, kw_only=True, eq=False)
class RequestTime:
    """The time to the first token, the time per output token, or the whole time of a request.

    Attributes
    ----------
    key, name : str
        ``ttft``, ``tpot`` or ``e2e``, and in words.
    distribution : SumDistribution
        One for each posterior draw.
    quantile : float
        Share of the requests that a promise is about.
    probability : float
        Of credible intervals.
    objective : Objective or None
        What was asked for.
    """

    key: str
    name: str
    distribution: SumDistribution
    quantile: float
    probability: float
    objective: Objective | None

    def credible(self, draws: Floats) -> tuple[float, float]:
        """Return the credible interval of what has a value for each draw, dims (draw,)."""
        tail = 0.5 * (1.0 - self.probability)
        # Values of draws, not values between two: either may be infinite.
        lower, upper = np.quantile(draws, [tail, 1.0 - tail], method="inverted_cdf")
        return float(lower), float(upper)

    @property
    def confidence(self) -> float | None:
        """Share of the draws in which the asked share of requests keeps the limit; None without one."""
        if self.objective is None:
            return None
        return float(self.objective.confidence_of(self.distribution.quantile_draws(self.quantile)))

    @property
    def is_kept(self) -> bool | None:
        """Whether the limit may be promised, as far as numbers go; None without one."""
        if self.objective is None or self.confidence is None:
            return None
        return bool(self.objective.is_confident(self.confidence))

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON; None where a time is beyond all bounds."""
        risk: dict[str, Any] = dict.fromkeys(
            ("limit_ms", "probability", "lower", "upper", "confidence", "is_kept")
        )
        if self.objective is not None:
            limit = self.objective.limit_ms
            lower, upper = self.credible(self.distribution.cdf_draws(np.array([limit]))[:, 0])
            risk = {
                "limit_ms": limit,
                "probability": self.distribution.probability_below(limit),
                "lower": lower,
                "upper": upper,
                "confidence": self.confidence,
                "is_kept": self.is_kept,
            }
        lower_ms, upper_ms = self.credible(self.distribution.quantile_draws(self.quantile))
        return {
            "key": self.key,
            "name": self.name,
            "median_ms": _finite(self.distribution.quantile(0.5)),
            "quantile": self.quantile,
            "quantile_ms": _finite(self.distribution.quantile(self.quantile)),
            "quantile_lower_ms": _finite(lower_ms),
            "quantile_upper_ms": _finite(upper_ms),
            **risk,
        }

    @property
    def text(self) -> str:
        """Sentences a person can paste."""
        row = self.to_dict()
        share = f"{100 * self.quantile:g}%"
        ends = span(row["quantile_lower_ms"], row["quantile_upper_ms"])
        parts = [
            f"{self.name[0].upper()}{self.name[1:]}: half of the requests within {number(row['median_ms'])} "
            f"ms, {share} within {number(row['quantile_ms'])} ms ({ends})"
        ]
        if self.objective is not None:
            verdict = "may be promised" if self.is_kept else "may NOT be promised"
            parts.append(
                f"{row['limit_ms']:g} ms {verdict}: {chance(row['probability'])} of the requests keep it "
                f"({chances(row['lower'], row['upper'])}), and the confidence that at least {share} do is "
                f"{sureness(row['confidence'])}"
            )
        return "; ".join(parts) + "."


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
