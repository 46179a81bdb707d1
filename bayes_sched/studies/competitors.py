"""Who takes part: contenders by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
from scipy import optimize, special, stats

from bayes_sched.arrays import Floats
from bayes_sched.checks.scores import LEVELS
from bayes_sched.errors import InputError
from bayes_sched.model.protocol import ModelFile, shipped_models
from bayes_sched.posterior.fit import fit
from bayes_sched.posterior.prediction import Evaluator, StudentTMixture, as_threshold, component_log_density
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.studies.forecasts import Forecast, Predict, from_distribution, from_quantiles
from bayes_sched.studies.prediction import NO_LIMITS_MS

if TYPE_CHECKING:
    from bayes_sched.studies.forecasts import Contender

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
        from bayes_sched.checks.least_squares import ThroughputSaturationModel

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


def _design(steps: pd.DataFrame) -> Floats:
    columns = [steps[name].to_numpy(np.float64) for name in _STEP]
    return np.column_stack([np.ones(len(steps)), *columns])


def has_lightgbm() -> bool:
    """Return whether LightGBM is installed; it is an optional dependency (``bayes-sched[validate]``)."""
    return find_spec("lightgbm") is not None


@dataclass(frozen=True)
class LightGBM:
    """One boosted model for each quantile level; crossing quantiles are sorted.

    Attributes
    ----------
    name : str
    columns : tuple of str
        Features it cannot do without.
    optional : tuple of str
        Features that are used where the steps hold them.
    num_trees : int
    learning_rate : float
    leaf_share : float
        Of the training steps that a leaf holds at least, between 2 steps and 20: where steps are few, the 20
        that LightGBM asks for leave no room for a tree, and it would lose for want of one setting.
    """

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
        data = lightgbm.Dataset(
            values(train),
            label=train["latency_ms"].to_numpy(np.float64),
            params=settings,
            free_raw_data=False,
        )
        boosters = [
            lightgbm.train({**settings, "alpha": float(level)}, data, num_boost_round=self.num_trees)
            for level in LEVELS
        ]

        def predict(steps: pd.DataFrame) -> Any:
            crossing = np.column_stack([b.predict(values(steps), num_threads=1) for b in boosters])
            return from_quantiles(np.sort(np.maximum(crossing, 0.0), axis=1), steps)

        return predict


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
        from bayes_sched.model.protocol import load_model_file

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


BASELINES = ("line", "baseline", "baseline-huber")
BOOSTED = ("lightgbm", "lightgbm-context")
CONSTANT = "saturation:constant"


def contender_names() -> tuple[str, ...]:
    """Return the names of all contenders: baselines, every shipped model, and LightGBM."""
    return (*BASELINES, CONSTANT, *shipped_models(), *BOOSTED)


def check_names(names: Sequence[str]) -> None:
    """Check names of contenders, as far as that goes without loading a model.

    Raises
    ------
    InputError
        A name is unknown or given twice, or a file is missing.
    """
    for number, name in enumerate(names):
        if name in names[:number]:
            raise InputError(f"--models {name}: given twice")
        model = name.partition(":")[0]
        if model.endswith(".py") and not Path(model).is_file():
            raise InputError(f"--models {model}: no such file")
        if name not in contender_names() and model not in shipped_models() and not model.endswith(".py"):
            raise InputError(
                f"--models {name}: no such contender; give some of {', '.join(contender_names())}, "
                "MODEL:NOISE, or the path of a model's .py file"
            )


def contenders_by_name(
    names: Sequence[str] | None = None, *, settings: SamplerSettings
) -> tuple[tuple[Contender, ...], tuple[str, ...]]:
    """Return contenders by name, and a sentence for each that cannot take part.

    Parameters
    ----------
    names : sequence of str, optional
        Of `contender_names`, which is the default; or ``MODEL:NOISE``, or the path of a model's file, which
        is run.
    settings : SamplerSettings
        Of the models that are sampled.

    Raises
    ------
    InputError
        A name is unknown, or a model's file fails.
    """
    names = contender_names() if names is None else tuple(names)
    check_names(names)

    missing = () if has_lightgbm() else tuple(name for name in names if name in BOOSTED)
    chosen = tuple(_contender(name, settings) for name in names if name not in missing)
    if not missing:
        return chosen, ()
    text = (
        f"{' and '.join(missing)} left out: LightGBM is not installed (pip install 'bayes-sched[validate]')"
    )
    return chosen, (text,)


def _contender(name: str, settings: SamplerSettings) -> Contender:
    from bayes_sched.studies.prediction import CONTEXT_COLUMNS

    simple: dict[str, Contender] = {
        "line": Line(),
        "baseline": Baseline(),
        "baseline-huber": Baseline("baseline-huber", "huber"),
        "lightgbm": LightGBM(),
        "lightgbm-context": LightGBM("lightgbm-context", optional=CONTEXT_COLUMNS),
    }
    if name in simple:
        return simple[name]
    from bayes_sched.model.protocol import all_parameters, load_model_file

    path, _, noise = name.partition(":")
    loaded = load_model_file(path)
    noise = noise or loaded.model.noises[0]
    all_parameters(loaded.model, noise)  # refuses an option that the model does not have
    return Bayesian.of(loaded, name=name, noise=noise, settings=settings)
