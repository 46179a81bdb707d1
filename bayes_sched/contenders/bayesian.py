"""The project's own models as contenders, fitted as a person would fit them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import special

from bayes_sched.fitting import fit
from bayes_sched.model import ModelFile
from bayes_sched.prediction import Evaluator, as_threshold
from bayes_sched.predictive import StudentTMixture, component_log_density
from bayes_sched.scoring import LEVELS, Floats
from bayes_sched.settings import SamplerSettings
from bayes_sched.validation.contender import Predict
from bayes_sched.validation.forecast import Forecast, from_quantiles
from bayes_sched.validation.servers import NO_LIMITS_MS

MAX_DRAWS = 200
"""Posterior draws that predictions use."""


@dataclass(frozen=True)
class Bayesian:
    """A latency model with one of its noise options, sampled by NUTS.

    Attributes
    ----------
    name : str
    columns : tuple of str
    path : Path
        The model's file.
    sha256 : str
        Its digest.
    shipped : bool
    noise : str
    settings : SamplerSettings
        Their seed is replaced by that of the fit.
    """

    name: str
    columns: tuple[str, ...]
    path: Path
    sha256: str
    shipped: bool
    noise: str
    settings: SamplerSettings

    @classmethod
    def of(cls, loaded: ModelFile, *, name: str, noise: str, settings: SamplerSettings) -> Bayesian:
        """Return the contender of a loaded model."""
        columns = tuple(loaded.model.columns)
        return cls(name, columns, loaded.path, loaded.sha256, loaded.shipped, noise, settings)

    def fit(self, train: pd.DataFrame, *, seed: int) -> Predict:
        """Sample the posterior; whether it passed its gate goes with the forecasts."""
        from bayes_sched.model import load_model_file

        low, high = NO_LIMITS_MS
        fitted = fit(
            train,
            model=load_model_file(self.path.stem if self.shipped else self.path),
            noise=self.noise,
            settings=replace(self.settings, seed=seed),
            min_latency_ms=low,
            max_latency_ms=high,
            max_rows=len(train),
        ).fit

        def predict(steps: pd.DataFrame) -> Forecast:
            observed_ms = as_threshold(steps["latency_ms"])
            evaluator = Evaluator(fitted.model, fitted.posterior, max_draws=MAX_DRAWS)
            quantiles = fitted.quantile(steps, LEVELS, max_draws=MAX_DRAWS)
            return from_quantiles(
                quantiles.transpose("step", "quantile").to_numpy(),
                cdf=fitted.probability_below(steps, observed_ms, max_draws=MAX_DRAWS).to_numpy(),
                log_density=evaluator.over_draws(steps, log_density, threshold=observed_ms).to_numpy(),
                converged=fitted.converged,
            )

        return predict


def log_density(mixture: StudentTMixture, mean: Floats, scale: Floats, x: Floats) -> Floats:
    """Return the log density of equally weighted Student-t distributions, 1/ms, dims (cell,).

    Parameters
    ----------
    mixture : StudentTMixture
        Holds the degrees of freedom, dims (draw,).
    mean, scale : ndarray, dims (draw, cell)
        ms.
    x : ndarray, dims (cell,)
        ms.
    """
    each = component_log_density(mean, scale, mixture.nu[:, None], x)
    total: Floats = special.logsumexp(each, axis=0) - np.log(len(mixture.nu))
    return total
