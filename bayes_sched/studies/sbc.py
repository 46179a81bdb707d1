"""Simulation-based calibration: whether the posteriors that the sampler returns are the model's.

Draw parameters from the priors, simulate a trace with them, fit it, and count how many draws of the posterior
lie below the true value. If prior, simulator, model and sampler agree, this rank is uniform on 0, 1, ..., L
for L independent draws, for every parameter. Cook, Gelman and Rubin (2006), Journal of Computational and
Graphical Statistics 15; Talts et al. (2018), arXiv:1804.06788.

Evenness is judged by the empirical distribution function of the ranks against binomial intervals that hold at
all ranks at once: Säilynoja, Bürkner and Vehtari (2022), Statistics and Computing 32:32.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import xarray as xr
from scipy.stats import binom

from bayes_sched.arrays import Floats, Ints
from bayes_sched.errors import FIT_ERRORS, InputError, error_text
from bayes_sched.model.likelihood import effects_of, with_effects
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import LatencyModel, all_parameters
from bayes_sched.posterior.diagnostics import convergence
from bayes_sched.trace.cleaning import choose_rows

if TYPE_CHECKING:
    from bayes_sched.sampling.nuts import SamplerSettings
    from bayes_sched.sampling.sample import Sampler

NUM_RANKED_DRAWS = 99
"""Draws that a true value is ranked among: few enough to be nearly independent, evenly spaced."""
BAND = 0.95
"""Probability that even ranks stay inside the band at all ranks at once."""
PLAUSIBLE_MS = (2.0, 200.0)
"""Between them lies the median latency of a plausible server's steps."""
_MAX_TRIES = 5_000
_NUM_REFERENCES = 4000


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """One simulated trace and its fit.

    Attributes
    ----------
    number : int
    truth : dict
        The value that each quantity was simulated with.
    ranks : dict
        How many of the ranked draws lie below it; empty if the fit failed with an error.
    account : dict
        What the gate says and what the fit took, in numbers and words.
    """

    number: int
    truth: dict[str, float]
    ranks: dict[str, int]
    account: dict[str, Any]


class CalibrationStudy:
    """Simulated fits of one model with one design of steps; compiled once.

    Parameters
    ----------
    model : LatencyModel
    steps : DataFrame
        The design: the columns that the model needs; no latencies.
    priors : Priors
    noise : str
    settings : SamplerSettings
        Of every fit; its seed and the number of a simulation set everything random in it.
    """

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
        self._sampler: Sampler | None = None

    @classmethod
    def of_design(
        cls,
        steps: pd.DataFrame,
        *,
        rows: int,
        model: LatencyModel,
        noise: str | None = None,
        settings: SamplerSettings,
    ) -> CalibrationStudy:
        """Return the study of a model under its documented priors, with the (B, S) of a real trace.

        Parameters
        ----------
        steps : DataFrame
            Cleaned steps.
        rows : int
            How many of them are chosen, at random.
        model : LatencyModel
        noise : str, optional
            By default the model's first.
        settings : SamplerSettings
        """
        noise = noise or model.noises[0]
        design = choose_rows(steps, rows, seed=settings.seed)
        priors = Priors.from_parameters(all_parameters(model, noise))
        return cls(model, design, priors, noise=noise, settings=settings)

    @property
    def sampler(self) -> Sampler:
        """The sampler, made at its first use."""
        if self._sampler is None:
            from bayes_sched.sampling.sample import Sampler

            steps = self.steps.assign(latency_ms=1.0)  # replaced by those of each simulation
            self._sampler = Sampler(self.model, steps, self.priors, noise=self.noise)
        return self._sampler

    def simulate(self, parameters: xr.Dataset, rng: np.random.Generator) -> Floats:
        """Return simulated latencies of the design, ms, dims (step,)."""
        design = xr.Dataset({name: ("step", self.steps[name].to_numpy(float)) for name in self.steps})
        mean = self.model.latency(parameters, design)
        scale = self.model.scale(parameters, mean, design)
        noise = rng.standard_t(float(parameters["nu"]), size=len(self.steps))
        return np.asarray(mean + scale * noise, dtype=np.float64)

    def run(self, numbers: range) -> Iterator[Simulation]:
        """Simulate and fit, one after the other; a simulation does not depend on those before it."""
        return (self.run_one(number) for number in numbers)

    def run_one(self, number: int) -> Simulation:
        """Simulate and fit once. An error of the fit is part of its account."""
        start = time.perf_counter()
        rng = np.random.default_rng([self.settings.seed, number])
        parameters = with_effects(_drawn(self.priors, rng), effects_of(self.model), rng)
        observed = self.simulate(parameters, rng)
        truth = self._quantities(parameters)
        account: dict[str, Any] = {"median_latency_ms": float(np.median(observed))}
        ranks: dict[str, int] = {}
        try:
            ranks, gate = self._fit(truth, observed, seed=int(rng.integers(2**31 - 2**20)))
            account |= gate
        except FIT_ERRORS as error:
            account["error"] = error_text(error)
        account["seconds"] = time.perf_counter() - start
        values = {str(name): float(value) for name, value in truth.items()}
        return Simulation(number=number, truth=values, ranks=ranks, account=account)

    def _quantities(self, draws: xr.Dataset) -> xr.Dataset:
        """Return the parameters, their combinations, and of each effect the level with most steps."""
        found = draws[list(self.priors)].merge(self.model.combinations(draws))
        for effect in effects_of(self.model):
            acted = self.steps[effect.acts_on(self.steps)]
            level = int(np.bincount(effect.level(acted[effect.column])).argmax())
            found[f"{effect.name}[{effect.labels[level]}]"] = draws[effect.name][..., level].drop_vars(
                effect.dim
            )
        return found

    def _fit(
        self, truth: xr.Dataset, observed: Floats, *, seed: int
    ) -> tuple[dict[str, int], dict[str, Any]]:
        self.sampler.take(self.steps.assign(latency_ms=observed))
        samples = self.sampler.run(replace(self.settings, seed=seed))
        gate = convergence(samples.data)
        draws = self._quantities(samples.data["posterior"].to_dataset())
        below = {str(name): rank_among(float(truth[name]), draws[name]) for name in truth}
        account = {
            "gate_passed": gate.converged,
            "divergences": gate.num_divergences,
            "worst_r_hat": gate.worst_r_hat,
            "worst_ess": gate.worst_ess,
            "worst_e_bfmi": float(gate.e_bfmi.min()),
            "num_parts": samples.info["num_parts"],
            "neglected_mass": samples.info["neglected_mass"],
            "pilot_efficiency": samples.info["pilot_efficiency"],
        }
        return below, account


def plausible_parameters(
    model: LatencyModel,
    priors: Priors,
    design: xr.Dataset,
    rng: np.random.Generator,
    *,
    is_plausible: Callable[[xr.Dataset], bool] = lambda parameters: True,
) -> xr.Dataset:
    """Draw parameters, one number each, from the priors until the server could be a real one.

    Parameters
    ----------
    model : LatencyModel
    priors : Priors
    design : Dataset, dims (step,)
        Steps whose median latency has to lie in :data:`PLAUSIBLE_MS`.
    rng : Generator
    is_plausible : callable
        What else has to hold of the parameters.

    Raises
    ------
    InputError
        Hardly any server of these priors is plausible.
    """
    for _ in range(_MAX_TRIES):
        drawn = _drawn(priors, rng)
        median_ms = float(model.latency(drawn, design).median())
        if PLAUSIBLE_MS[0] <= median_ms <= PLAUSIBLE_MS[1] and is_plausible(drawn):
            return drawn
    raise InputError(
        f"none of {_MAX_TRIES:,} servers drawn from the priors is plausible on these steps: take the (B, S) "
        "of another trace"
    )


def _drawn(priors: Priors, rng: np.random.Generator) -> xr.Dataset:
    return xr.Dataset({name: float(np.exp(rng.normal(p.mu, p.sigma))) for name, p in priors.items()})


def rank_among(truth: float, draws: xr.DataArray) -> int:
    """Return how many of `NUM_RANKED_DRAWS` evenly spaced draws (dims chain, draw) lie below a true value.

    Raises
    ------
    ValueError
        There are fewer draws.
    """
    flat = draws.transpose("chain", "draw").to_numpy().ravel()
    if len(flat) < NUM_RANKED_DRAWS:
        msg = f"{len(flat):,} draws are fewer than the {NUM_RANKED_DRAWS} that a true value is ranked among"
        raise ValueError(msg)
    chosen = np.linspace(0, len(flat) - 1, NUM_RANKED_DRAWS).round().astype(int)
    return int((flat[chosen] < truth).sum())


@dataclass(frozen=True)
class Evenness:
    """Whether ranks are spread evenly.

    Attributes
    ----------
    expected : ndarray, dims (rank,)
        Share of even ranks that are at most 0, 1, ..., L - 1.
    difference : ndarray, dims (rank,)
        Observed share less the expected one.
    lower, upper : ndarray, dims (rank,)
        Band of `difference` that even ranks leave nowhere with probability :data:`BAND`.
    p_value : float
        How often even ranks would stray as far.
    """

    expected: Floats
    difference: Floats
    lower: Floats
    upper: Floats
    p_value: float

    @property
    def max_deviation(self) -> float:
        """The difference of largest size, with its sign."""
        return float(self.difference[np.argmax(np.abs(self.difference))])


def evenness(ranks: Ints, *, num_draws: int = NUM_RANKED_DRAWS) -> Evenness:
    """Compare ranks, dims (simulation,), with even ones on 0, ..., `num_draws`."""
    counts = np.bincount(ranks, minlength=num_draws + 1)
    if len(counts) != num_draws + 1:
        msg = f"rank {int(np.max(ranks))} is above the number of draws, {num_draws}"
        raise ValueError(msg)
    number = len(ranks)
    expected = np.arange(1, num_draws + 1) / (num_draws + 1)
    below = np.cumsum(counts)[:-1]
    chances = np.full(num_draws + 1, 1.0 / (num_draws + 1))
    even = np.random.default_rng(0).multinomial(number, chances, _NUM_REFERENCES)
    reference = _smallest_p(np.cumsum(even, axis=1)[:, :-1], number, expected)
    level = float(np.quantile(reference, 1.0 - BAND))
    return Evenness(
        expected,
        below / number - expected,
        binom.ppf(level / 2.0, number, expected) / number - expected,
        binom.ppf(1.0 - level / 2.0, number, expected) / number - expected,
        float((reference <= _smallest_p(below, number, expected)).mean()),
    )


def _smallest_p(below: Ints, number: int, expected: Floats) -> Floats:
    """Return the smallest two-sided p-value over all ranks, of counts up to each rank (last axis)."""
    at_most = binom.cdf(np.arange(number + 1)[:, None], number, expected)
    at_least = binom.sf(np.arange(-1, number)[:, None], number, expected)
    two_sided = np.minimum(2.0 * np.minimum(at_most, at_least), 1.0)
    smallest: Floats = two_sided[below, np.arange(len(expected))].min(axis=-1)
    return smallest


def evenness_table(ranks: pd.DataFrame, *, num_draws: int = NUM_RANKED_DRAWS) -> pd.DataFrame:
    """Return the verdict on each quantity.

    Parameters
    ----------
    ranks : DataFrame
        One row a simulation, one column a quantity.

    Returns
    -------
    DataFrame
        Index ``quantity``: ``simulations``, ``mean_rank`` (0.5 if even), ``max_deviation`` of the
        distribution function, ``p_value``, and ``even``: inside the band everywhere.
    """
    rows = []
    for name in ranks:
        values = ranks[name].to_numpy(np.int64)
        found = evenness(values, num_draws=num_draws)
        rows.append(
            {
                "quantity": str(name),
                "simulations": len(values),
                "mean_rank": float(values.mean()) / num_draws,
                "max_deviation": found.max_deviation,
                "p_value": found.p_value,
                "even": found.p_value > 1.0 - BAND,
            }
        )
    return pd.DataFrame(rows).set_index("quantity")
