"""Forecasts kept while a study runs, one file each, so that an interrupted study goes on where it stopped."""

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

from bayes_sched.arrays import Floats
from bayes_sched.checks.scores import LEVELS, at_level
from bayes_sched.errors import InputError
from bayes_sched.files import whole_file

type Predict = Callable[[pd.DataFrame], Forecast]
"""Steps in, forecast out."""


class Contender(Protocol):
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
        """Learn from steps; return what predicts others.

        Parameters
        ----------
        train : DataFrame
            One row a step: ``latency_ms`` and `columns`.
        seed : int
            Of everything random.
        """
        ...


@dataclass(frozen=True, kw_only=True, eq=False)
class Forecast:
    """Predictions for a table of steps whose latencies are known to the judge.

    Attributes
    ----------
    quantiles_ms : ndarray, dims (row, level)
        At `bayes_sched.scoring.LEVELS`, not decreasing along them.
    point_ms : ndarray, dims (row,)
        The prediction as a single number.
    cdf : ndarray, dims (row,)
        Predictive probability of at most the observed latency.
    log_density : ndarray, dims (row,), or None
        Logarithm of the predictive density at the observed latency, 1/ms; None for a contender without one.
    converged : bool or None
        Whether the fit passed its convergence gate; None for a contender without a gate.

    Raises
    ------
    InputError
        The shapes do not agree, a prediction is not finite, or quantiles cross.
    """

    quantiles_ms: Floats
    point_ms: Floats
    cdf: Floats
    log_density: Floats | None = None
    converged: bool | None = None

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


def from_distribution(distribution: Any, steps: pd.DataFrame) -> Forecast:
    """Return the forecast of a distribution for each step; the point is the median.

    Parameters
    ----------
    distribution : frozen continuous distribution of scipy.stats
        Its parameters are scalars or arrays with dims (row,), ms.
    steps : DataFrame
        ``latency_ms``.
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
    """Return the forecast with these quantiles; the point is the median.

    Parameters
    ----------
    quantiles_ms : ndarray, dims (row, level)
    steps : DataFrame, optional
        ``latency_ms``; needed without `cdf`, which is then interpolated between the quantiles, and outside
        them the middle of the tail.
    cdf, log_density : ndarray, dims (row,), optional
    converged : bool, optional
    """
    if cdf is None:
        if steps is None:
            raise InputError("a forecast by quantiles alone needs the steps, for their observed latencies")
        cdf = _interpolated_cdf(quantiles_ms, steps["latency_ms"].to_numpy(np.float64))
    return Forecast(
        quantiles_ms=quantiles_ms,
        point_ms=at_level(quantiles_ms, 0.5),
        cdf=cdf,
        log_density=log_density,
        converged=converged,
    )


def _interpolated_cdf(quantiles_ms: Floats, observed_ms: Floats) -> Floats:
    tails = {"left": 0.5 * LEVELS[0], "right": 0.5 * (1.0 + LEVELS[-1])}
    pairs = zip(observed_ms, quantiles_ms, strict=True)
    return np.array([np.interp(x, row, LEVELS, **tails) for x, row in pairs])


@dataclass(frozen=True)
class Kept:
    """A folder of forecasts. Each file is written whole or not at all; reading one never runs code.

    Attributes
    ----------
    folder : Path
        Made when it is first written to.
    """

    folder: Path

    def read(self, title: str, depends_on: Mapping[str, Any]) -> tuple[Forecast, dict[str, float]] | None:
        """Return a forecast and what it cost; None if there is none that depends on the very same.

        Parameters
        ----------
        title : str
        depends_on : mapping
            Everything that decides the numbers, as plain values.
        """
        path = self._path(title, depends_on)
        if not path.is_file():
            return None
        try:
            with path.open("rb") as stream, np.load(stream, allow_pickle=False) as arrays:
                account = json.loads(str(arrays["account"]))
                numbers = {name: arrays[name] for name in arrays.files if name != "account"}
                return Forecast(**numbers, converged=account["converged"]), account["cost"]
        except (OSError, ValueError, KeyError, TypeError, zipfile.BadZipFile):
            return None  # a damaged file costs a fit, not a study

    def write(
        self, title: str, depends_on: Mapping[str, Any], forecast: Forecast, cost: dict[str, float]
    ) -> None:
        """Keep a forecast.

        Raises
        ------
        InputError
            The place cannot be written.
        """
        arrays = {"quantiles_ms": forecast.quantiles_ms, "point_ms": forecast.point_ms, "cdf": forecast.cdf}
        if forecast.log_density is not None:
            arrays["log_density"] = forecast.log_density
        account = json.dumps({"converged": forecast.converged, "cost": cost})
        path = self._path(title, depends_on)
        with whole_file(path, what="the forecast") as temporary:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                np.savez_compressed(stream, account=np.array(account), **arrays)  # type: ignore[arg-type]

    def _path(self, title: str, depends_on: Mapping[str, Any]) -> Path:
        digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        return self.folder / f"{re.sub(r'[^A-Za-z0-9_-]+', '-', title)[:100]}.{digest[:16]}.npz"
