"""Whether a comparison's intervals hold: simulated pairs of servers whose true ratio is known.

The first server's parameters are drawn from the priors, until its steps take plausible times. The second
server takes a known factor longer for every step. Both are simulated, fitted and compared; the interval of
the ratio should hold the truth as often as it says, and of the pairs with P(faster) = 0.7 the first server
should truly be faster in 70 %.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.arrays import Floats
from bayes_sched.checks.scores import share_interval
from bayes_sched.comparison.members import paired_posteriors
from bayes_sched.errors import InputError
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY
from bayes_sched.posterior.prediction import band_levels
from bayes_sched.studies.folder import StudyFolder
from bayes_sched.studies.runs import Findings, noted
from bayes_sched.studies.sbc import MOST_SEED, SimulatedFits, rank_among, uniformity

SMALLEST_RATIO, LARGEST_RATIO = 0.8, 1.25
"""True ratios are drawn between them, evenly on a logarithmic scale."""
INTERVAL = 0.95
"""Of coverages and of shares (Clopper and Pearson)."""
COLUMNS = (
    *("pair", "batch_size", "total_tokens", "true_ratio", "ratio_median", "ratio_lower", "ratio_upper"),
    *("covered", "p_faster", "first_is_faster", "rank", "gates_passed", "seconds", "error"),
)
_NUM_BINS = 10


@dataclass(frozen=True, eq=False)
class PairStudy:
    """Simulated pairs of servers with one design of steps; `probability` is that of the intervals."""

    fits: SimulatedFits
    num_runs: int
    probability: float = DEFAULT_PROBABILITY

    def title(self, number: int) -> str:
        """Return the ten pairs that this one is among."""
        return f"pairs, from {number - number % 10:,}"

    def run(self, number: int) -> pd.DataFrame:
        """Simulate, fit and compare one pair: a row for each probed step, a single one where a fit failed.

        :data:`COLUMNS`: ``true_ratio`` is the mean latency of the first server over that of the second, the
        same at every step; for the others see :func:`compare_draws`.
        """
        rng = self.fits.rng(number)
        true_ratio = float(np.exp(rng.uniform(np.log(SMALLEST_RATIO), np.log(LARGEST_RATIO))))
        truth = self.fits.plausible(rng)
        found: dict[str, Any] = {"gates_passed": 0}
        table = pd.DataFrame([{"batch_size": None}])
        with noted(found):
            posteriors = []
            for factor in (1.0, 1.0 / true_ratio):
                observed = self.fits.simulate(truth, rng, factor=factor)
                samples, gate = self.fits.fit(observed, seed=int(rng.integers(MOST_SEED)))
                posteriors.append(samples.data["posterior"].to_dataset()[list(self.fits.priors)])
                found["gates_passed"] += int(gate.converged)
            table = self._compare(posteriors, true_ratio, seed=number)
        return table.assign(**found, pair=number).reindex(columns=list(COLUMNS))

    def _compare(self, posteriors: list[xr.Dataset], true_ratio: float, *, seed: int) -> pd.DataFrame:
        probed = self.fits.probed
        steps = xr.Dataset({name: ("step", probed[name].to_numpy(float)) for name in probed})
        first, second = (
            self.fits.model.latency(draws, steps).transpose("draw", "step").to_numpy()
            for draws in paired_posteriors(posteriors, seed=seed)
        )
        rows = [
            compare_draws(first[:, i], second[:, i], true_ratio=true_ratio, probability=self.probability)
            for i in range(len(probed))
        ]
        return pd.concat([probed, pd.DataFrame(rows)], axis=1)

    def summary(self, runs: pd.DataFrame, folder: StudyFolder) -> ComparisonCalibration:
        """Count how often the intervals hold the truth, over the pairs whose fits did not fail."""
        compared = runs[runs["covered"].notna()]
        if compared.empty:
            raise InputError(f"no pair could be fitted; see the column error of {folder.path}")
        chosen, each = one_step_each(compared), runs.drop_duplicates("pair")
        return ComparisonCalibration(
            settings=folder.settings,
            tables={"coverage": coverage_table(compared), "reliability": reliability_table(chosen)},
            pairs=chosen,
            coverage=float(chosen["covered"].mean()),
            uniformity_p=uniformity(chosen["rank"].to_numpy(int)).p_value,
            num_pairs=len(each),
            num_errors=int(each["error"].notna().sum()),
            num_passed=int(each["gates_passed"].sum()),
            seconds=each["seconds"],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class ComparisonCalibration(Findings):
    """Whether comparisons find the truth."""

    pairs: pd.DataFrame
    coverage: float
    uniformity_p: float
    num_pairs: int
    num_errors: int
    num_passed: int
    seconds: pd.Series


def compare_draws(
    first_ms: Floats, second_ms: Floats, *, true_ratio: float, probability: float
) -> dict[str, float]:
    """Compare paired draws of two mean latencies, dims (draw,), with the true ratio.

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


def coverage_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return ``step``, ``pairs``, ``coverage``, ``lower``, ``upper`` at each probed step and over all.

    Steps of one pair go together, so the interval over all steps counts pairs, not steps.
    """
    groups = [
        (f"B = {b:g}, S = {s:g}", group) for (b, s), group in pairs.groupby(["batch_size", "total_tokens"])
    ]
    rows = [
        (step, group["pair"].nunique(), float(group["covered"].mean()))
        for step, group in [*groups, ("all", pairs)]
    ]
    table = pd.DataFrame(rows, columns=["step", "pairs", "coverage"])
    lower, upper = share_interval(table["coverage"] * table["pairs"], table["pairs"], level=INTERVAL)
    return table.assign(lower=lower, upper=upper)


def reliability_table(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return how often the first server is truly faster, by the probability that was given for it.

    Up to ten bins of one row a pair: ``predicted`` (mean in the bin), ``observed``, ``lower``, ``upper``,
    ``pairs``.
    """
    edges = np.linspace(0.0, 1.0, _NUM_BINS + 1)
    bins = np.clip(np.digitize(pairs["p_faster"], edges) - 1, 0, _NUM_BINS - 1)
    rows = []
    for _, group in pairs.groupby(bins):
        count, number = float(group["first_is_faster"].sum()), len(group)
        lower, upper = share_interval(count, number, level=INTERVAL)
        rows.append((float(group["p_faster"].mean()), count / number, float(lower), float(upper), number))
    return pd.DataFrame(rows, columns=["predicted", "observed", "lower", "upper", "pairs"])


def one_step_each(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return one row of each pair, at a probed step that changes from pair to pair: independent rows."""
    position = pairs.groupby("pair").cumcount()
    number = pairs.groupby("pair")["pair"].transform("size")
    return pairs[position == pairs["pair"] % number].reset_index(drop=True)
