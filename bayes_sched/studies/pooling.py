"""How much a pool helps where little is known: a few steps of a trace, and the pool of the other traces.

A fit of a few steps, drawn at random, predicts the rest of the trace, under each of up to three priors:

``documented``
    Without any other server.
``new server``
    The pool of the traces of other servers: a GPU that is new to the pool.
``known server``
    The pool of all other traces, where other traces of the same server are among them.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_sched.checks.scores import LEVELS, coverage, crps
from bayes_sched.errors import InputError
from bayes_sched.model.priors import Priors
from bayes_sched.pooling.members import servers_of
from bayes_sched.pooling.pool import POPULATION_SETTINGS, pool
from bayes_sched.posterior.diagnostics import convergence
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.prediction import Evaluator
from bayes_sched.sampling.nuts import SamplerSettings

ARMS = ("documented", "new server", "known server")
"""The priors that are compared."""

_MAX_DRAWS = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """A trace of which a few steps are taken, and the priors that are tried on them.

    Attributes
    ----------
    name : str
    steps : DataFrame
        Its cleaned steps.
    fit : FittedModel
        The fit of the whole trace, which predicts as well as one may hope for.
    priors : Mapping of str to Priors
        By the names of :data:`ARMS`.
    """

    name: str
    steps: pd.DataFrame
    fit: FittedModel
    priors: Mapping[str, Priors]


def target(
    name: str,
    steps: pd.DataFrame,
    *,
    fits: Mapping[str, FittedModel],
    servers: Mapping[str, str] | None = None,
    settings: SamplerSettings = POPULATION_SETTINGS,
) -> Target:
    """Return a trace with the priors that the other traces' pools give.

    Parameters
    ----------
    name : str
        Name of the trace's fit among `fits`.
    steps : DataFrame
        Its cleaned steps.
    fits : mapping of str to FittedModel
        Fits of all traces.
    servers : mapping of str to str, optional
        As :func:`bayes_sched.pooling.pool` takes it.
    settings : SamplerSettings
        How the populations are sampled.

    Raises
    ------
    InputError
        There is no such fit, or fewer than two others are of other servers.
    """
    if name not in fits:
        raise InputError(f"{name}: no fit of this name takes part")
    of = servers_of(fits, servers or {})
    documented = fits[name].metadata.priors
    others = {key: fit for key, fit in fits.items() if of[key] != of[name]}
    known = {key: fit for key, fit in fits.items() if key != name}

    def population_of(some: Mapping[str, FittedModel], server: str | None) -> Priors:
        pooled = pool(some, servers={key: of[key] for key in some}, settings=settings)
        return documented.within(pooled.population.prior(server))

    priors = {"documented": documented, "new server": population_of(others, None)}
    if len(known) > len(others):
        priors["known server"] = population_of(known, of[name])
    return Target(name=name, steps=steps, fit=fits[name], priors=priors)


class FewSteps:
    """Repeated fits of a few steps of one target; each prior's model is compiled once.

    Parameters
    ----------
    target : Target
    num_steps : int
        Steps to learn from.
    max_test : int
        Steps to predict at most; a random choice of the rest.
    is_consecutive : bool
        Whether the few steps follow each other, from a random place, or are a random choice.
    settings : SamplerSettings
        Of every fit; its seed and the number of a run set everything random in it.
    """

    def __init__(
        self,
        target: Target,
        *,
        num_steps: int,
        max_test: int,
        is_consecutive: bool = False,
        settings: SamplerSettings,
    ) -> None:
        from bayes_sched.sampling.sample import Sampler  # imports PyMC and nutpie: seconds

        self.target, self.num_steps, self.max_test, self.settings = target, num_steps, max_test, settings
        self.is_consecutive = is_consecutive
        if len(target.steps) <= num_steps:
            raise InputError(f"{target.name}: {len(target.steps):,} steps leave none to predict")
        self._samplers = {
            arm: Sampler(
                target.fit.model, target.steps.iloc[:num_steps], priors, noise=target.fit.metadata.noise
            )
            for arm, priors in target.priors.items()
        }

    def run(self, number: int) -> pd.DataFrame:
        """Draw a few steps, fit them under each prior, and predict the rest.

        Returns
        -------
        DataFrame
            One row a prior: ``trace``, ``prior``, ``crps_ms``, ``coverage_90``, ``whole_crps_ms`` (of the fit
            of the whole trace, on the same steps), ``converged``, ``seconds``.
        """
        rng = np.random.default_rng([self.settings.seed, number])
        order = rng.permutation(len(self.target.steps))
        if self.is_consecutive:
            order = self._begun_in_a_row(order)
        train = self.target.steps.iloc[np.sort(order[: self.num_steps])].reset_index(drop=True)
        test = self.target.steps.iloc[np.sort(order[self.num_steps :][: self.max_test])].reset_index(
            drop=True
        )
        seed = int(rng.integers(2**31 - 2**20))
        whole, _ = _scores(
            Evaluator(self.target.fit.model, self.target.fit.posterior, max_draws=_MAX_DRAWS), test
        )
        rows = []
        for arm, sampler in self._samplers.items():
            start = time.perf_counter()
            sampler.take(train)
            samples = sampler.run(replace(self.settings, seed=seed))
            posterior = samples.data["posterior"].to_dataset()
            score, covered = _scores(Evaluator(self.target.fit.model, posterior, max_draws=_MAX_DRAWS), test)
            rows.append(
                {
                    "trace": self.target.name,
                    "prior": arm,
                    "crps_ms": score,
                    "coverage_90": covered,
                    "whole_crps_ms": whole,
                    "converged": convergence(samples.data).converged,
                    "seconds": time.perf_counter() - start,
                }
            )
        return pd.DataFrame(rows)

    def _begun_in_a_row(self, order: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the order with consecutive steps first, of several sizes: a fit takes no less."""
        sizes = self.target.steps[["batch_size", "total_tokens"]].to_numpy()
        for start in order[order <= len(order) - self.num_steps]:
            row = np.arange(start, start + self.num_steps)
            if len(np.unique(sizes[row], axis=0)) > 1:
                return np.concatenate([row, order[~np.isin(order, row)]])
        raise InputError(f"{self.target.name}: no {self.num_steps} steps in a row are of several sizes")


def summary_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return what each prior is worth on each trace.

    Parameters
    ----------
    runs : DataFrame
        ``run`` and the columns of :meth:`FewSteps.run`.

    Returns
    -------
    DataFrame
        ``trace``, ``prior``, ``runs``, ``crps_ms`` (mean), ``coverage_90`` (mean), ``ratio``, ``ratio_lower``
        and ``ratio_upper`` (of the CRPS to that under documented priors, on the same steps: median, 5 % and
        95 % over runs), ``better`` (share of runs), ``whole_crps_ms`` (mean).
    """
    keys = ["trace", "run"]
    base = runs[runs["prior"] == "documented"].set_index(keys)["crps_ms"].rename("base")
    joined = runs.join(base, on=keys)
    joined["ratio"] = joined["crps_ms"] / joined["base"]
    rows = []
    for (trace, prior), group in joined.groupby(["trace", "prior"], sort=False):
        lower, median, upper = group["ratio"].quantile([0.05, 0.5, 0.95])
        rows.append(
            {
                "trace": trace,
                "prior": prior,
                "runs": len(group),
                "crps_ms": group["crps_ms"].mean(),
                "coverage_90": group["coverage_90"].mean(),
                "ratio": median,
                "ratio_lower": lower,
                "ratio_upper": upper,
                "better": float((group["ratio"] < 1.0).mean()),
                "whole_crps_ms": group["whole_crps_ms"].mean(),
            }
        )
    return pd.DataFrame(rows)


def _scores(evaluator: Evaluator, test: pd.DataFrame) -> tuple[float, float]:
    """Return the mean CRPS, ms, and the share of steps in their 90 % band."""
    quantiles = evaluator.quantile(test, LEVELS).transpose("step", "quantile").to_numpy()
    observed = test["latency_ms"].to_numpy(float)
    return float(crps(observed, quantiles).mean()), coverage(observed, quantiles, probability=0.9)
