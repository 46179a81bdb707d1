"""What is to be promised: a limit, the share that must keep it, and how sure one must be of that."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bayes_sched.errors import InputError
from bayes_sched.predictive import check_probability

DEFAULT_QUANTILE = 0.99
"""Share of the steps, or of the requests, that must keep a limit, unless told otherwise."""
DEFAULT_CONFIDENCE = 0.95
"""How sure one must be of that, unless told otherwise."""

_ROUNDING = 1e-12  # a share of draws such as 19/20 must count as 0.95

type Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Objective:
    """A service-level objective: a share `quantile` within `limit_ms`, known with `confidence`.

    Attributes
    ----------
    limit_ms : float
        Latency not to exceed, ms, positive.
    quantile : float
        Share of the steps (or requests) that must keep the limit, between 0 and 1.
    confidence : float
        Posterior probability with which they must, between 0 and 1.

    Raises
    ------
    InputError
        A value is outside its range.
    """

    limit_ms: float
    quantile: float = DEFAULT_QUANTILE
    confidence: float = DEFAULT_CONFIDENCE

    def __post_init__(self) -> None:
        if not 0.0 < self.limit_ms < math.inf:
            raise InputError(f"a limit of {self.limit_ms:g} ms: give a positive number of milliseconds")
        check_probability(self.quantile, name="quantile")
        check_probability(self.confidence, name="confidence")

    @property
    def text(self) -> str:
        """A phrase a person can paste."""
        return (
            f"{100 * self.quantile:g}% within {self.limit_ms:g} ms, with {100 * self.confidence:g}% "
            "confidence"
        )

    def confidence_of(self, quantile_ms: Floats) -> Floats:
        """Return the share of draws whose quantile keeps the limit, dims (draw, ...) -> (...)."""
        share: Floats = np.mean(quantile_ms <= self.limit_ms, axis=0)
        return share

    def is_confident(self, confidence: Floats | float) -> NDArray[np.bool_]:
        """Return whether confidences are as high as asked."""
        return np.asarray(confidence >= self.confidence - _ROUNDING)
