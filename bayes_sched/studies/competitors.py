"""Competing predictors by name: a line, least squares, boosted trees, and the project's own models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

from bayes_sched.arrays import Floats
from bayes_sched.checks.least_squares import ThroughputSaturationModel
from bayes_sched.checks.scores import LEVELS
from bayes_sched.model.protocol import ModelFile, all_parameters, load_model_file
from bayes_sched.posterior.fit import fit
from bayes_sched.posterior.prediction import Evaluator, StudentTMixture, as_threshold, component_log_density
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.studies.forecasts import Competitor, Forecast, Predict, from_distribution, from_quantiles
from bayes_sched.studies.names import BOOSTED, check_competitors, competitor_names
from bayes_sched.studies.splits import CONTEXT_COLUMNS, NO_LIMITS_MS

MAX_DRAWS = 200
"""Posterior draws that predictions use."""
_STEP = ("batch_size", "total_tokens")


@dataclass(frozen=True)
class Line:
    """Least squares on a plane in B and S, Gaussian noise as wide as its residuals."""

    name: str = "line"
    columns: tuple[str, ...] = _STEP

    def fit(self, train: pd.DataFrame, *, seed: int) -> Predict:
        """Fit the plane; nothing is random."""
        observed_ms = train["latency_ms"].to_numpy(np.float64)
        plane, *_ = np.linalg.lstsq(_design(train), observed_ms)
        noise = gaussian_noise(observed_ms - _design(train) @ plane)
        return lambda steps: from_distribution(noise(_design(steps) @ plane), steps)


def _design(steps: pd.DataFrame) -> Floats:
    columns = [steps[name].to_numpy(np.float64) for name in _STEP]
    return np.column_stack([np.ones(len(steps)), *columns])


@dataclass(frozen=True)
class Baseline:
    """The documented least-squares model with the noise of its own residuals.

    Gaussian where squares are minimised; Student-t where the loss is robust, since the few long steps that
    it disregards would else widen every band.
    """

    name: str = "baseline"
    loss: Literal["linear", "huber"] = "linear"
    columns: tuple[str, ...] = _STEP

    def fit(self, train: pd.DataFrame, *, seed: int) -> Predict:
        """Fit the equation; nothing is random."""
        low, high = NO_LIMITS_MS
        model = ThroughputSaturationModel(loss=self.loss, min_latency_ms=low, max_latency_ms=high)
        model.fit(train)

        def mean_ms(steps: pd.DataFrame) -> Floats:
            sizes = {name: steps[name].to_numpy(np.float64) for name in _STEP}
            return np.asarray(model.predict(**sizes), dtype=np.float64)

        spread = gaussian_noise if self.loss == "linear" else student_t_noise
        noise = spread(train["latency_ms"].to_numpy(np.float64) - mean_ms(train))
        return lambda steps: from_distribution(noise(mean_ms(steps)), steps)


def gaussian_noise(residual_ms: Floats) -> Callable[[Floats], Any]:
    """Return what turns means (ms, dims (row,)) into Gaussians as wide as the residuals."""
    scale = max(float(np.sqrt((residual_ms**2).mean())), 1e-6)
    return lambda mean_ms: stats.norm(mean_ms, scale)


def student_t_noise(residual_ms: Floats) -> Callable[[Floats], Any]:
    """Return what turns means (ms, dims (row,)) into Student-t distributions fitted to the residuals."""
    typical = max(float(np.median(np.abs(residual_ms))), 1e-6)

    def loss(logs: Floats) -> float:
        nu, scale = np.exp(logs)
        return -float(stats.t.logpdf(residual_ms, nu, scale=scale).sum())

    start = np.array([np.log(3.0), np.log(typical)])
    bounds = [(np.log(0.5), np.log(100.0)), (start[1] - 5.0, start[1] + 5.0)]
    nu, scale = np.exp(optimize.minimize(loss, start, method="Nelder-Mead", bounds=bounds).x)
    return lambda mean_ms: stats.t(nu, mean_ms, scale)


@dataclass(frozen=True)
class LightGBM:
    """One boosted model for each quantile level; crossing quantiles are sorted."""

    name: str = "lightgbm"
    columns: tuple[str, ...] = _STEP
    optional: tuple[str, ...] = ()
    num_trees: int = 200
    learning_rate: float = 0.1
    leaf_share: float = 0.025

    def fit(self, train: pd.DataFrame, *, seed: int) -> Predict:
        """Train a booster for each level."""
        lightgbm: Any = import_module("lightgbm")
        features = [*self.columns, *(name for name in self.optional if name in train)]
        settings = {
            "objective": "quantile",
            "learning_rate": self.learning_rate,
            "num_leaves": 31,
            "min_data_in_leaf": int(np.clip(self.leaf_share * len(train), 2, 20)),
            "min_data_in_bin": 1,
            "seed": seed,
            "deterministic": True,
            "num_threads": 1,
            "verbosity": -1,
        }

        def values(steps: pd.DataFrame) -> Floats:
            return steps[features].to_numpy(np.float64)

        # Binned once for all levels; the levels differ in nothing but their loss.
        label = train["latency_ms"].to_numpy(np.float64)
        data = lightgbm.Dataset(values(train), label=label, params=settings, free_raw_data=False)
        boosters = [
            lightgbm.train({**settings, "alpha": float(level)}, data, num_boost_round=self.num_trees)
            for level in LEVELS
        ]

        def predict(steps: pd.DataFrame) -> Any:
            crossing = np.column_stack([b.predict(values(steps), num_threads=1) for b in boosters])
            return from_quantiles(np.sort(np.maximum(crossing, 0.0), axis=1), steps)

        return predict


@dataclass(frozen=True)
class Bayesian:
    """A latency model, of a file with this digest, with one of its noise options, sampled by NUTS.

    The seed of `settings` is replaced by that of the fit.
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
        """Return the competitor of a loaded model."""
        columns = tuple(loaded.model.columns)
        return cls(name, columns, loaded.path, loaded.sha256, loaded.shipped, noise, settings)

    def fit(self, train: pd.DataFrame, *, seed: int) -> Predict:
        """Sample the posterior; whether it passed its gate goes with the forecasts."""
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

    `mean` and `scale` have dims (draw, cell), `x` has dims (cell,), all in ms.
    """
    each = component_log_density(mean, scale, mixture.nu[:, None], x)
    total: Floats = special.logsumexp(each, axis=0) - np.log(len(mixture.nu))
    return total


def competitors_by_name(
    names: Sequence[str] | None = None, *, settings: SamplerSettings
) -> tuple[tuple[Competitor, ...], tuple[str, ...]]:
    """Return competitors by name, and a sentence for each that cannot take part."""
    names = competitor_names() if names is None else tuple(names)
    check_competitors(names)
    missing = () if find_spec("lightgbm") else tuple(name for name in names if name in BOOSTED)
    chosen = tuple(_competitor(name, settings) for name in names if name not in missing)
    if not missing:
        return chosen, ()
    text = (
        f"{' and '.join(missing)} left out: LightGBM is not installed (pip install 'bayes-sched[validate]')"
    )
    return chosen, (text,)


def _competitor(name: str, settings: SamplerSettings) -> Competitor:
    simple: dict[str, Competitor] = {
        "line": Line(),
        "baseline": Baseline(),
        "baseline-huber": Baseline("baseline-huber", "huber"),
        "lightgbm": LightGBM(),
        "lightgbm-context": LightGBM("lightgbm-context", optional=CONTEXT_COLUMNS),
    }
    if name in simple:
        return simple[name]
    path, _, noise = name.partition(":")
    loaded = load_model_file(path)
    noise = noise or loaded.model.noises[0]
    all_parameters(loaded.model, noise)  # refuses an option that the model does not have
    return Bayesian.of(loaded, name=name, noise=noise, settings=settings)
