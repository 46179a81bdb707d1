"""What predicts steps, and what it predicts; forecasts are kept, so that a study goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import pandas as pd

from bayes_sched.arrays import Bools, Floats
from bayes_sched.checks import scores
from bayes_sched.checks.scores import LEVELS, at_level
from bayes_sched.errors import InputError
from bayes_sched.files import whole_file
from bayes_sched.steps import regime_masks

type Predict = Callable[[pd.DataFrame], Forecast]
"""Steps in, forecast out."""

METRICS = {
    "crps_ms": "continuous ranked probability score, ms (less is better)",
    "log_score": "mean log predictive density, 1/ms (more is better)",
    "mape": "mean absolute percentage error of the point prediction, a share",
    "ape_p95": "95th percentile of the absolute percentage error, a share",
    "r2": "1 - mean squared error / variance",
    "rmse_ms": "root mean squared error, ms",
    "mae_ms": "mean absolute error, ms",
    "bias_ms": "mean of predicted minus observed, ms",
    "coverage_50": "share of steps in the 50 % band",
    "coverage_90": "share of steps in the 90 % band",
    "coverage_99": "share of steps in the 99 % band",
    "width_90_ms": "mean width of the 90 % band, ms",
}
"""Names and meanings; beside them ``pit_0`` to ``pit_9``, shares of the PIT in tenths, and ``below_LEVEL``,
the shares of steps at or below each predictive quantile."""


class Competitor(Protocol):
    """Whatever learns from some steps and predicts others.

    A frozen dataclass is the easy way to write one: its ``repr`` names everything that its numbers depend
    on, by which an interrupted study knows what is done::

        @dataclass(frozen=True)
        class Mean:
            name: str = "mean"
            columns: tuple[str, ...] = ()

            def fit(self, train, *, seed):
                noise = scipy.stats.norm(train["latency_ms"].mean(), train["latency_ms"].std())
                return lambda steps: from_distribution(noise, steps)

    Attributes
    ----------
    name : str
    columns : tuple of str
        Columns of the steps that it cannot do without.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def columns(self) -> tuple[str, ...]: ...  # noqa: D102

    def fit(self, train: pd.DataFrame, *, seed: int) -> Predict:
        """Learn from steps; return what predicts others."""
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast:
    """Predictions for a table of steps whose latencies are known to the judge.

    Raises
    ------
    InputError
        The shapes do not agree, a prediction is not finite, or quantiles cross.
    """

    quantiles_ms: Floats
    """dims (row, level): at `bayes_sched.checks.scores.LEVELS`, not decreasing along them."""
    point_ms: Floats  # dims (row,): the prediction as a single number
    cdf: Floats  # dims (row,): predictive probability of at most the observed latency
    log_density: Floats | None = None
    """dims (row,): logarithm of the predictive density at the observed latency, 1/ms; None for a competitor
    without one."""
    converged: bool | None = None
    """Whether the fit passed its convergence gate; None for a competitor without a gate."""

    def __post_init__(self) -> None:
        num_rows = len(self.point_ms)
        if self.quantiles_ms.shape != (num_rows, len(LEVELS)) or self.cdf.shape != (num_rows,):
            raise InputError(
                f"a forecast of {num_rows:,} steps has quantiles {self.quantiles_ms.shape} and probabilities "
                f"{self.cdf.shape}: give one row a step and {len(LEVELS)} levels"
            )
        if not all(np.isfinite(values).all() for values in (self.quantiles_ms, self.point_ms, self.cdf)):
            raise InputError("a forecast holds numbers that are not finite")
        if (np.diff(self.quantiles_ms, axis=1) < 0.0).any():
            raise InputError("the quantiles of a forecast decrease along their levels")

    def scores(self, observed_ms: Floats, mask: Bools) -> dict[str, float]:
        """Return every metric over some rows, dims (row,); a log score only where there is a density."""
        observed, quantiles = observed_ms[mask], self.quantiles_ms[mask]
        found = {"crps_ms": float(scores.crps(observed, quantiles).mean())}
        if self.log_density is not None:
            found["log_score"] = float(self.log_density[mask].mean())
        found |= scores.point_scores(observed, self.point_ms[mask])
        for probability in scores.BANDS:
            name = f"coverage_{100 * probability:.0f}"
            found[name] = scores.coverage(observed, quantiles, probability=probability)
        lower, upper = (at_level(quantiles, level) for level in scores.BANDS[0.9])
        found["width_90_ms"] = float((upper - lower).mean())
        found |= {f"pit_{bin}": float(x) for bin, x in enumerate(scores.pit_histogram(self.cdf[mask]))}
        below = zip(LEVELS, scores.share_below(observed, quantiles), strict=True)
        return found | {f"below_{level:g}": float(share) for level, share in below}

    def score_table(self, test: pd.DataFrame, *, max_train_tokens: float) -> pd.DataFrame:
        """Return ``regime``, ``rows``, ``metric``, ``value`` for each regime that the steps forecast hold.

        `max_train_tokens` are those of the largest training step.
        """
        observed_ms = test["latency_ms"].to_numpy(np.float64)
        rows = [
            {"regime": name, "rows": int(mask.sum()), "metric": metric, "value": value}
            for name, mask in regime_masks(test, max_train_tokens=max_train_tokens).items()
            for metric, value in self.scores(observed_ms, mask).items()
        ]
        return pd.DataFrame(rows)


def from_distribution(distribution: Any, steps: pd.DataFrame) -> Forecast:
    """Return the forecast of a frozen distribution of scipy.stats, ms; the point is the median.

    Its parameters are scalars or arrays with dims (row,).
    """
    observed_ms = steps["latency_ms"].to_numpy(np.float64)
    quantiles_ms = np.broadcast_to(distribution.ppf(LEVELS[:, None]).T, (len(steps), len(LEVELS)))
    return from_quantiles(
        np.maximum(quantiles_ms, 0.0),
        cdf=distribution.cdf(observed_ms),
        log_density=distribution.logpdf(observed_ms),
    )


def from_quantiles(
    quantiles_ms: Floats,
    steps: pd.DataFrame | None = None,
    *,
    cdf: Floats | None = None,
    log_density: Floats | None = None,
    converged: bool | None = None,
) -> Forecast:
    """Return the forecast with these quantiles, dims (row, level); the point is the median.

    Without `cdf` the steps are needed, for their ``latency_ms``: it is interpolated between the quantiles,
    and outside them the middle of the tail.
    """
    if cdf is None:
        if steps is None:
            raise InputError("a forecast by quantiles alone needs the steps, for their observed latencies")
        tails = {"left": 0.5 * LEVELS[0], "right": 0.5 * (1.0 + LEVELS[-1])}
        pairs = zip(steps["latency_ms"].to_numpy(np.float64), quantiles_ms, strict=True)
        cdf = np.array([np.interp(x, row, LEVELS, **tails) for x, row in pairs])
    return Forecast(
        quantiles_ms=quantiles_ms,
        point_ms=at_level(quantiles_ms, 0.5),
        cdf=cdf,
        log_density=log_density,
        converged=converged,
    )


@dataclass(frozen=True)
class ForecastCache:
    """A folder of forecasts. Each file is written whole or not at all; reading one never runs code.

    A forecast is found by everything that decides its numbers, as plain values (`depends_on`).
    """

    folder: Path

    def read(self, title: str, depends_on: Mapping[str, Any]) -> tuple[Forecast, dict[str, float]] | None:
        """Return a forecast and what it cost; None if there is none that depends on the very same."""
        path = self._path(title, depends_on)
        if not path.is_file():
            return None
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                provenance = json.loads(str(arrays["account"]))
                numbers = {name: arrays[name] for name in arrays.files if name != "account"}
                return Forecast(**numbers, converged=provenance["converged"]), provenance["cost"]
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return None  # a damaged file costs a fit, not a study

    def write(
        self, title: str, depends_on: Mapping[str, Any], forecast: Forecast, cost: Mapping[str, float]
    ) -> None:
        """Keep a forecast; InputError if the place cannot be written."""
        arrays = {"quantiles_ms": forecast.quantiles_ms, "point_ms": forecast.point_ms, "cdf": forecast.cdf}
        if forecast.log_density is not None:
            arrays["log_density"] = forecast.log_density
        provenance = json.dumps({"converged": forecast.converged, "cost": dict(cost)})
        with whole_file(self._path(title, depends_on), what="the forecast") as temporary:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                np.savez_compressed(stream, account=np.array(provenance), **arrays)  # type: ignore[arg-type]

    def _path(self, title: str, depends_on: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', title)[:100]}.{digest[:16]}.npz"
