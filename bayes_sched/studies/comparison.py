"""Whether a comparison's intervals hold: simulated pairs of servers whose true ratio is known.

The first server's parameters are drawn from the priors, until its steps take plausible times. The second
server takes a known factor longer for every step. Both are simulated, fitted and compared; the interval of
the ratio should hold the truth as often as it says, and of the pairs with P(faster) = 0.7 the first server
should truly be faster in 70 %.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.arrays import Floats
from bayes_sched.checks.scores import share_interval
from bayes_sched.comparison.members import paired_posteriors
from bayes_sched.errors import FIT_ERRORS, error_text
from bayes_sched.posterior.diagnostics import convergence
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY
from bayes_sched.posterior.prediction import band_levels
from bayes_sched.studies.sbc import CalibrationStudy, plausible_parameters, rank_among

SMALLEST_RATIO, LARGEST_RATIO = 0.8, 1.25
"""True ratios are drawn between them, evenly on a logarithmic scale."""
_NUM_BINS = 10
_NUM_PROBED = 5


@dataclass(frozen=True, kw_only=True)
class SimulatedPair:
    """One simulated pair of servers and its comparison.

    Attributes
    ----------
    number : int
    true_ratio : float
        Mean latency of the first server over that of the second, at every step.
    table : DataFrame
        One row a probed step: columns of :func:`compare_draws`, and ``batch_size``, ``total_tokens``; empty
        if a fit failed with an error.
    account : dict
        What the gate says of the fits and what they took.
    """

    number: int
    true_ratio: float
    table: pd.DataFrame
    account: dict[str, Any]


class PairStudy:
    """Simulated pairs of servers with one design of steps; the model is compiled once for all.

    Parameters
    ----------
    study : CalibrationStudy
        The model, design, priors and settings of every fit.
    probability : float
        Of the intervals.
    """

    def __init__(self, study: CalibrationStudy, *, probability: float = DEFAULT_PROBABILITY) -> None:
        self.study, self.probability = study, probability
        self.design = xr.Dataset({name: ("step", study.steps[name].to_numpy(float)) for name in study.steps})
        distinct = study.steps.drop_duplicates().sort_values(list(study.steps.columns))
        probed = np.unique(np.linspace(0, len(distinct) - 1, _NUM_PROBED).round().astype(int))
        self.probed = distinct.iloc[probed].reset_index(drop=True)

    def run(self, numbers: range) -> Iterator[SimulatedPair]:
        """Simulate, fit and compare, one pair after the other; a pair does not depend on those before it."""
        return (self.run_one(number) for number in numbers)

    def run_one(self, number: int) -> SimulatedPair:
        """Simulate and compare one pair. An error of a fit is part of its account."""
        start = time.perf_counter()
        rng = np.random.default_rng([self.study.settings.seed, number])
        true_ratio = float(np.exp(rng.uniform(np.log(SMALLEST_RATIO), np.log(LARGEST_RATIO))))
        truth = self._plausible_server(rng)
        account: dict[str, Any] = {}
        table = pd.DataFrame()
        try:
            posteriors = []
            for factor in (1.0, 1.0 / true_ratio):
                observed = self._simulate(truth, factor, rng)
                posterior, passed = self._fit(observed, seed=int(rng.integers(2**31 - 2**20)))
                posteriors.append(posterior)
                account["gates_passed"] = account.get("gates_passed", 0) + int(passed)
            table = self._compare(posteriors, true_ratio, seed=number)
        except FIT_ERRORS as error:
            account["error"] = error_text(error)
        account["seconds"] = time.perf_counter() - start
        return SimulatedPair(number=number, true_ratio=true_ratio, table=table, account=account)

    def _plausible_server(self, rng: np.random.Generator) -> xr.Dataset:
        return plausible_parameters(self.study.model, self.study.priors, self.design, rng)

    def _simulate(self, truth: xr.Dataset, factor: float, rng: np.random.Generator) -> Floats:
        """Return latencies of the design, ms, dims (step,), on a server that takes `factor` times as long."""
        mean = factor * self.study.model.latency(truth, self.design)
        scale = self.study.model.scale(truth, mean, self.design)
        noise = rng.standard_t(float(truth["nu"]), size=mean.sizes["step"])
        return np.asarray(mean + scale * noise, dtype=np.float64)

    def _fit(self, observed: Floats, *, seed: int) -> tuple[xr.Dataset, bool]:
        sampler = self.study.sampler
        sampler.take(self.study.steps.assign(latency_ms=observed))
        samples = sampler.run(replace(self.study.settings, seed=seed))
        posterior = samples.data["posterior"].to_dataset()[list(self.study.priors)]
        return posterior, convergence(samples.data).converged

    def _compare(self, posteriors: list[xr.Dataset], true_ratio: float, *, seed: int) -> pd.DataFrame:
        steps = xr.Dataset({name: ("step", self.probed[name].to_numpy(float)) for name in self.probed})
        first, second = (
            self.study.model.latency(draws, steps).transpose("draw", "step").to_numpy()
            for draws in paired_posteriors(posteriors, seed=seed)
        )
        rows = [
            compare_draws(first[:, i], second[:, i], true_ratio=true_ratio, probability=self.probability)
            for i in range(len(self.probed))
        ]
        return pd.concat([self.probed, pd.DataFrame(rows)], axis=1)


def compare_draws(
    first_ms: Floats, second_ms: Floats, *, true_ratio: float, probability: float
) -> dict[str, float]:
    """Compare paired draws of two mean latencies, dims (draw,), with the true ratio.

    Returns
    -------
    dict
        ``ratio_median``, ``ratio_lower``, ``ratio_upper``, ``covered`` (1 or 0), ``p_faster``,
        ``first_is_faster`` (1 or 0, in truth), ``rank`` of the true ratio among evenly spaced draws.
    """
    ratio = first_ms / second_ms
    lower, median, upper = (float(value) for value in np.quantile(ratio, band_levels(probability)))
    return {
        "true_ratio": true_ratio,
        "ratio_median": median,
        "ratio_lower": lower,
        "ratio_upper": upper,
        "covered": float(lower <= true_ratio <= upper),
        "p_faster": float((first_ms < second_ms).mean()),
        "first_is_faster": float(true_ratio < 1.0),
        "rank": float(rank_among(true_ratio, xr.DataArray(ratio[None], dims=("chain", "draw")))),
    }


def coverage_table(pairs: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Return how often the intervals hold the truth, at each probed step and over all of them.

    Parameters
    ----------
    pairs : DataFrame
        ``pair``, ``batch_size``, ``total_tokens``, ``covered``: one row a pair and probed step.
    level : float
        Of the interval of the coverage (Clopper and Pearson). Steps of one pair go together, so the interval
        over all steps counts pairs, not steps.

    Returns
    -------
    DataFrame
        ``step``, ``pairs``, ``coverage``, ``lower``, ``upper``.
    """
    rows = []
    for (b, s), group in pairs.groupby(["batch_size", "total_tokens"]):
        rows.append((f"B = {b:g}, S = {s:g}", group["pair"].nunique(), float(group["covered"].mean())))
    rows.append(("all", pairs["pair"].nunique(), float(pairs["covered"].mean())))
    table = pd.DataFrame(rows, columns=["step", "pairs", "coverage"])
    lower, upper = share_interval(table["coverage"] * table["pairs"], table["pairs"], level=level)
    return table.assign(lower=lower, upper=upper)


def reliability_table(pairs: pd.DataFrame, *, level: float = 0.95) -> pd.DataFrame:
    """Return how often the first server is truly faster, by the probability that was given for it.

    Parameters
    ----------
    pairs : DataFrame
        ``p_faster``, ``first_is_faster``: one row a pair.
    level : float
        Of the interval of the observed share.

    Returns
    -------
    DataFrame
        Up to ten bins: ``predicted`` (mean in the bin), ``observed``, ``lower``, ``upper``, ``pairs``.
    """
    edges = np.linspace(0.0, 1.0, _NUM_BINS + 1)
    bins = np.clip(np.digitize(pairs["p_faster"], edges) - 1, 0, _NUM_BINS - 1)
    rows = []
    for _, group in pairs.groupby(bins):
        count, number = float(group["first_is_faster"].sum()), len(group)
        lower, upper = share_interval(count, number, level=level)
        rows.append((float(group["p_faster"].mean()), count / number, float(lower), float(upper), number))
    return pd.DataFrame(rows, columns=["predicted", "observed", "lower", "upper", "pairs"])


def one_step_each(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return one row of each pair, at a probed step that changes from pair to pair: independent rows."""
    position = pairs.groupby("pair").cumcount()
    number = pairs.groupby("pair")["pair"].transform("size")
    return pairs[position == pairs["pair"] % number].reset_index(drop=True)
