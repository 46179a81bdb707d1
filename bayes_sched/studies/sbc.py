"""Simulation-based calibration: whether the posteriors that the sampler returns are the model's.

Draw parameters from the priors, simulate a trace with them, fit it, and count how many draws of the posterior
lie below the true value. If prior, simulator, model and sampler agree, this rank is uniform on 0, 1, ..., L
for L independent draws, for every parameter. Cook, Gelman and Rubin (2006), Journal of Computational and
Graphical Statistics 15; Talts et al. (2018), arXiv:1804.06788.

Uniformity is judged by the empirical distribution function of the ranks against binomial intervals that hold
at all ranks at once: Säilynoja, Bürkner and Vehtari (2022), Statistics and Computing 32:32.

:class:`SimulatedFits` is shared by all studies that simulate servers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import binom

from bayes_sched.arrays import Floats, Ints
from bayes_sched.errors import InputError
from bayes_sched.model.likelihood import effects_of, with_effects
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import LatencyModel, all_parameters
from bayes_sched.posterior.diagnostics import Convergence, convergence
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.sampling.sample import Sampler, Samples
from bayes_sched.studies.folder import StudyFolder
from bayes_sched.studies.runs import Findings, noted
from bayes_sched.trace.cleaning import choose_rows

NUM_RANKED_DRAWS = 99
"""Draws that a true value is ranked among: few enough to be nearly independent, evenly spaced."""
BAND = 0.95
"""Probability that uniform ranks stay inside the band at all ranks at once."""
PLAUSIBLE_MS = (2.0, 200.0)
"""Between them lies the median latency of a plausible server's steps."""
MOST_SEED = 2**31 - 2**20
"""Seeds of fits are drawn below: samplers count up from them."""
PROVENANCE = (
    *("gate_passed", "divergences", "worst_r_hat", "worst_ess", "worst_e_bfmi", "num_parts"),
    *("neglected_mass", "pilot_efficiency", "median_latency_ms", "seconds", "error"),
)
"""Columns of a simulation that are neither true values nor ranks."""
_MAX_TRIES = 5_000
_NUM_REFERENCES = 4000
_NUM_PROBED = 5
_COMBINATION_UNITS = {"a_0": "ms", "a_1": "ms/token", "c": "ms/token", "L_0": "ms"}


class SimulatedFits:
    """Fits of latencies simulated for one design of steps; the model is compiled once for all."""

    def __init__(
        self,
        model: LatencyModel,
        steps: pd.DataFrame,
        priors: Priors,
        *,
        noise: str,
        settings: SamplerSettings,
    ) -> None:
        self.model, self.priors, self.noise, self.settings = model, priors, noise, settings
        self.steps = steps[list(model.columns)].reset_index(drop=True)
        self.design = xr.Dataset({name: ("step", self.steps[name].to_numpy(float)) for name in self.steps})

    @classmethod
    def of_design(
        cls,
        steps: pd.DataFrame,
        *,
        rows: int,
        model: LatencyModel,
        noise: str | None = None,
        settings: SamplerSettings,
    ) -> SimulatedFits:
        """Return those of a model under its documented priors, with `rows` random (B, S) of cleaned steps."""
        noise = noise or model.noises[0]
        design = choose_rows(steps, rows, seed=settings.seed)
        priors = Priors.from_parameters(all_parameters(model, noise))
        return cls(model, design, priors, noise=noise, settings=settings)

    @cached_property
    def sampler(self) -> Sampler:
        """The sampler, compiled at its first use."""
        steps = self.steps.assign(latency_ms=1.0)  # replaced by those of each simulation
        return Sampler(self.model, steps, self.priors, noise=self.noise)

    @property
    def probed(self) -> pd.DataFrame:
        """A few distinct (B, S) of the design, small and large."""
        columns = list(self.steps.columns)
        distinct = self.steps.drop_duplicates().sort_values(columns)
        chosen = np.unique(np.linspace(0, len(distinct) - 1, _NUM_PROBED).round().astype(int))
        return distinct.iloc[chosen].reset_index(drop=True)

    def rng(self, number: int) -> np.random.Generator:
        """Return the generator of everything random in a simulation."""
        return np.random.default_rng([self.settings.seed, number])

    def simulate(self, parameters: xr.Dataset, rng: np.random.Generator, *, factor: float = 1.0) -> Floats:
        """Return simulated latencies, ms, dims (step,), of a server `factor` times as slow."""
        mean = factor * self.model.latency(parameters, self.design)
        scale = self.model.scale(parameters, mean, self.design)
        noise = rng.standard_t(float(parameters["nu"]), size=len(self.steps))
        return np.asarray(mean + scale * noise, dtype=np.float64)

    def fit(self, observed_ms: Floats, *, seed: int) -> tuple[Samples, Convergence]:
        """Sample the posterior given latencies, dims (step,)."""
        self.sampler.take(self.steps.assign(latency_ms=observed_ms))
        samples = self.sampler.run(replace(self.settings, seed=seed))
        return samples, convergence(samples.data)

    def plausible(
        self,
        rng: np.random.Generator,
        *,
        is_plausible: Callable[[xr.Dataset], bool] = lambda parameters: True,
    ) -> xr.Dataset:
        """Draw parameters, one number each, from the priors until the server could be a real one.

        The median latency of the design's steps has to lie in :data:`PLAUSIBLE_MS`, and `is_plausible` to
        hold.
        """
        for _ in range(_MAX_TRIES):
            drawn = drawn_from(self.priors, rng)
            median_ms = float(self.model.latency(drawn, self.design).median())
            if PLAUSIBLE_MS[0] <= median_ms <= PLAUSIBLE_MS[1] and is_plausible(drawn):
                return drawn
        raise InputError(
            f"none of {_MAX_TRIES:,} servers drawn from the priors is plausible on these steps: take the "
            "(B, S) of another trace"
        )


def drawn_from(priors: Priors, rng: np.random.Generator) -> xr.Dataset:
    """Draw parameters, one number each."""
    return xr.Dataset({name: float(np.exp(rng.normal(p.mu, p.sigma))) for name, p in priors.items()})


@dataclass(frozen=True, eq=False)
class CalibrationStudy:
    """Simulated fits whose true values are ranked among the draws of their posteriors."""

    fits: SimulatedFits
    num_runs: int

    def title(self, number: int) -> str:
        """Return the ten simulations that this one is among."""
        return f"simulations, from {number - number % 10:,}"

    def run(self, number: int) -> pd.DataFrame:
        """Simulate and fit once: one row, :data:`PROVENANCE`, ``true NAME`` and ``rank NAME``.

        There are no ranks where the fit failed with an error.
        """
        fits, rng = self.fits, self.fits.rng(number)
        parameters = with_effects(drawn_from(fits.priors, rng), effects_of(fits.model), rng)
        observed = fits.simulate(parameters, rng)
        truth = self._quantities(parameters)
        found: dict[str, Any] = {"median_latency_ms": float(np.median(observed))}
        ranks: dict[str, int] = {}
        with noted(found):
            samples, gate = fits.fit(observed, seed=int(rng.integers(MOST_SEED)))
            draws = self._quantities(samples.data["posterior"].to_dataset())
            ranks = {str(name): rank_among(float(truth[name]), draws[name]) for name in truth}
            found |= {name: samples.info[name] for name in PROVENANCE if name in samples.info}
            found |= {
                "gate_passed": gate.converged,
                "divergences": gate.num_divergences,
                "worst_r_hat": gate.worst_r_hat,
                "worst_ess": gate.worst_ess,
                "worst_e_bfmi": float(gate.e_bfmi.min()),
            }
        row = {"simulation": number} | {name: found.get(name) for name in PROVENANCE}
        row |= {f"true {name}": float(value) for name, value in truth.items()}
        return pd.DataFrame([row | {f"rank {name}": ranks.get(str(name)) for name in truth}])

    def _quantities(self, draws: xr.Dataset) -> xr.Dataset:
        """Return the parameters, their combinations, and of each effect the level with most steps."""
        fits = self.fits
        found = draws[list(fits.priors)].merge(fits.model.combinations(draws))
        for effect in effects_of(fits.model):
            acted = fits.steps[effect.acts_on(fits.steps)]
            level = int(np.bincount(effect.level(acted[effect.column])).argmax())
            of_level = draws[effect.name][..., level].drop_vars(effect.dim)
            found[f"{effect.name}[{effect.labels[level]}]"] = of_level
        return found

    def summary(self, runs: pd.DataFrame, folder: StudyFolder) -> Calibration:
        """Judge the ranks of every quantity over the simulations whose fits did not fail with an error."""
        ranks = runs.loc[:, runs.columns.str.startswith("rank ")]
        ranks = ranks.rename(columns=lambda name: name.removeprefix("rank "))
        complete = ranks.assign(simulation=runs["simulation"]).dropna().astype(int)
        if complete.empty:
            raise InputError(f"no simulation could be fitted; see the column error of {folder.path}")
        curves = {str(name): uniformity(complete[name].to_numpy(np.int64)) for name in ranks}
        units = {p.name: p.unit for p in all_parameters(self.fits.model, self.fits.noise)}
        return Calibration(
            settings=folder.settings,
            tables={
                "ranks": complete[["simulation", *ranks]],
                "evenness": uniformity_table(complete[[*ranks]]),
            },
            curves=curves,
            units=units | _COMBINATION_UNITS,
            num_steps=len(self.fits.steps),
            gate_failures=_gate_failures(runs),
            num_simulations=len(runs),
            num_errors=int(runs["worst_r_hat"].isna().sum()),
            seconds=runs["seconds"],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Calibration(Findings):
    """Whether the true values of simulations rank uniformly."""

    curves: Mapping[str, Uniformity]
    units: Mapping[str, str]
    num_steps: int
    gate_failures: Mapping[str, int]
    num_simulations: int
    num_errors: int
    seconds: pd.Series


def _gate_failures(runs: pd.DataFrame) -> dict[str, int]:
    fitted = runs[runs["worst_r_hat"].notna()]
    failed = fitted[~fitted["gate_passed"].astype(bool)]
    reasons = {
        "R-hat above 1.01": failed["worst_r_hat"] > 1.01,
        "R-hat above 1.05": failed["worst_r_hat"] > 1.05,
        "an ESS below 400": failed["worst_ess"] < 400,
        "an ESS below the 99 ranked draws": failed["worst_ess"] < NUM_RANKED_DRAWS,
        "divergences": failed["divergences"] > 0,
        "E-BFMI below 0.3": failed["worst_e_bfmi"] < 0.3,
    }
    return {"all": len(failed)} | {reason: int(mask.sum()) for reason, mask in reasons.items()}


def rank_among(truth: float, draws: xr.DataArray) -> int:
    """Return how many of `NUM_RANKED_DRAWS` evenly spaced draws (dims chain, draw) lie below a true value."""
    flat = draws.transpose("chain", "draw").to_numpy().ravel()
    if len(flat) < NUM_RANKED_DRAWS:
        msg = f"{len(flat):,} draws are fewer than the {NUM_RANKED_DRAWS} that a true value is ranked among"
        raise ValueError(msg)
    chosen = np.linspace(0, len(flat) - 1, NUM_RANKED_DRAWS).round().astype(int)
    return int((flat[chosen] < truth).sum())


@dataclass(frozen=True)
class Uniformity:
    """Whether ranks are uniform."""

    expected: Floats
    difference: Floats
    lower: Floats
    upper: Floats
    p_value: float

    @property
    def max_deviation(self) -> float:
        """The difference of largest size, with its sign."""
        return float(self.difference[np.argmax(np.abs(self.difference))])

    @property
    def is_uniform(self) -> bool:
        """Whether the ranks stay inside the band everywhere."""
        return self.p_value > 1.0 - BAND


def uniformity(ranks: Ints, *, num_draws: int = NUM_RANKED_DRAWS) -> Uniformity:
    """Compare ranks, dims (simulation,), with uniform ones on 0, ..., `num_draws`."""
    counts = np.bincount(ranks, minlength=num_draws + 1)
    if len(counts) != num_draws + 1:
        msg = f"rank {int(np.max(ranks))} is above the number of draws, {num_draws}"
        raise ValueError(msg)
    number = len(ranks)
    expected = np.arange(1, num_draws + 1) / (num_draws + 1)
    below = np.cumsum(counts)[:-1]
    reference = _reference(number, num_draws)
    level = float(np.quantile(reference, 1.0 - BAND))
    return Uniformity(
        expected,
        below / number - expected,
        binom.ppf(level / 2.0, number, expected) / number - expected,
        binom.ppf(1.0 - level / 2.0, number, expected) / number - expected,
        float((reference <= _smallest_p(below, _two_sided(number, num_draws))).mean()),
    )


@lru_cache(maxsize=4)
def _reference(number: int, num_draws: int) -> Floats:
    """Return the smallest p-value of each of many sets of uniform ranks."""
    probabilities = np.full(num_draws + 1, 1.0 / (num_draws + 1))
    uniform = np.random.default_rng(0).multinomial(number, probabilities, _NUM_REFERENCES)
    return _smallest_p(np.cumsum(uniform, axis=1)[:, :-1], _two_sided(number, num_draws))


@lru_cache(maxsize=4)
def _two_sided(number: int, num_draws: int) -> Floats:
    """Return the p-value of each count up to each rank, dims (count, rank)."""
    expected = np.arange(1, num_draws + 1) / (num_draws + 1)
    at_most = binom.cdf(np.arange(number + 1)[:, None], number, expected)
    at_least = binom.sf(np.arange(-1, number)[:, None], number, expected)
    return np.minimum(2.0 * np.minimum(at_most, at_least), 1.0)


def _smallest_p(below: Ints, two_sided: Floats) -> Floats:
    """Return the smallest two-sided p-value over all ranks, of counts up to each rank (last axis)."""
    smallest: Floats = two_sided[below, np.arange(two_sided.shape[1])].min(axis=-1)
    return smallest


def uniformity_table(ranks: pd.DataFrame) -> pd.DataFrame:
    """Return the verdict on each quantity.

    Index ``quantity``: ``simulations``, ``mean_rank`` (0.5 if uniform), ``max_deviation`` of the
    distribution function, ``p_value``, and ``even``: inside the band everywhere.
    """
    rows = []
    for name in ranks:
        values = ranks[name].to_numpy(np.int64)
        found = uniformity(values)
        rows.append(
            {
                "quantity": str(name),
                "simulations": len(values),
                "mean_rank": float(values.mean()) / NUM_RANKED_DRAWS,
                "max_deviation": found.max_deviation,
                "p_value": found.p_value,
                "even": found.is_uniform,
            }
        )
    return pd.DataFrame(rows).set_index("quantity")
