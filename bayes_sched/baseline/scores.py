"""How far point predictions of the latency are off."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_sched.numbers import number, percent
from bayes_sched.scoring import point_scores


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Scores of point predictions.

    Attributes
    ----------
    r2 : float
        Share of the latency's variance that is explained; NaN where all latencies are equal.
    rmse_ms, mae_ms : float
        Root mean square and mean absolute error.
    mape, ape_p95 : float
        Mean and 95th percentile of the absolute error relative to the observed latency, as shares.
    bias_ms : float
        Mean of predicted minus observed.
    num_steps : int
    """

    r2: float
    rmse_ms: float
    mae_ms: float
    mape: float
    ape_p95: float
    bias_ms: float
    num_steps: int

    @classmethod
    def of(cls, observed_ms: NDArray[np.float64], predicted_ms: NDArray[np.float64]) -> Scores:
        """Return the scores of predictions, dims (step,) both."""
        return cls(**point_scores(observed_ms, predicted_ms), num_steps=len(observed_ms))

    @property
    def table(self) -> pd.DataFrame:
        """One row with a column for each score."""
        return pd.DataFrame([asdict(self)])

    @property
    def text(self) -> str:
        """A sentence a person can paste."""
        return (
            f"Over {self.num_steps:,} steps: R² {number(self.r2)}, RMSE {number(self.rmse_ms)} ms, "
            f"MAE {number(self.mae_ms)} ms, MAPE {percent(self.mape, 1)}, bias {number(self.bias_ms)} ms."
        )
