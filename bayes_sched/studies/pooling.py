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
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

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
from bayes_sched.sampling.sample import Sampler
from bayes_sched.studies.folder import StudyFolder
from bayes_sched.studies.runs import Findings
from bayes_sched.studies.sbc import MOST_SEED

_MAX_DRAWS = 200


@dataclass(frozen=True, kw_only=True, eq=False)
class Target:
    """A trace of which a few steps are taken, and the priors that are tried on them."""

    name: str
    steps: pd.DataFrame
    fit: FittedModel
    priors: Mapping[str, Priors]

    @classmethod
    def of(
        cls,
        name: str,
        steps: pd.DataFrame,
        *,
        fits: Mapping[str, FittedModel],
        settings: SamplerSettings = POPULATION_SETTINGS,
    ) -> Target:
        """Return the trace of one of the fits with the priors that the pools of the others give."""
        of = servers_of(fits, {})
        documented = fits[name].metadata.priors
        others = {key: fit for key, fit in fits.items() if of[key] != of[name]}
        known = {key: fit for key, fit in fits.items() if key != name}

        def population_of(some: Mapping[str, FittedModel], server: str | None) -> Priors:
            pooled = pool(some, servers={key: of[key] for key in some}, settings=settings)
            return documented.within(pooled.population.prior(server))

        priors = {"documented": documented, "new server": population_of(others, None)}
        if len(known) > len(others):
            priors["known server"] = population_of(known, of[name])
        return cls(name=name, steps=steps, fit=fits[name], priors=priors)


@dataclass(frozen=True, kw_only=True, eq=False)
class FewSteps:
    """Repeated fits of a few steps of a target that predict others; each prior's model is compiled once.

    The few steps are a random choice, or follow each other from a random place; at most `max_test` others, a
    random choice, are predicted. The seed of `settings` and the number of a run set everything random in it.
    """

    target: Target
    num_steps: int
    max_test: int
    is_consecutive: bool = False
    settings: SamplerSettings

    def __post_init__(self) -> None:
        if len(self.target.steps) <= self.num_steps:
            raise InputError(f"{self.target.name}: {len(self.target.steps):,} steps leave none to predict")

    @cached_property
    def samplers(self) -> dict[str, Sampler]:
        """By prior."""
        fit, first = self.target.fit, self.target.steps.iloc[: self.num_steps]
        noise = fit.metadata.noise
        return {name: Sampler(fit.model, first, p, noise=noise) for name, p in self.target.priors.items()}

    def run(self, number: int) -> pd.DataFrame:
        """Draw a few steps, fit them under each prior, and predict the rest.

        One row a prior: ``trace``, ``prior``, ``crps_ms``, ``coverage_90``, ``whole_crps_ms`` (of the fit of
        the whole trace, on the same steps), ``converged``, ``seconds``.
        """
        rng = np.random.default_rng([self.settings.seed, number])
        steps, model = self.target.steps, self.target.fit.model
        order = rng.permutation(len(steps))
        if self.is_consecutive:
            order = self._begun_in_a_row(order)
        train, test = (
            steps.iloc[np.sort(rows)].reset_index(drop=True)
            for rows in (order[: self.num_steps], order[self.num_steps :][: self.max_test])
        )
        seed = int(rng.integers(MOST_SEED))
        whole, _ = _scores(Evaluator(model, self.target.fit.posterior, max_draws=_MAX_DRAWS), test)
        rows = []
        for prior, sampler in self.samplers.items():
            start = time.perf_counter()
            sampler.take(train)
            samples = sampler.run(replace(self.settings, seed=seed))
            posterior = samples.data["posterior"].to_dataset()
            score, covered = _scores(Evaluator(model, posterior, max_draws=_MAX_DRAWS), test)
            rows.append(
                {
                    "trace": self.target.name,
                    "prior": prior,
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


class PoolStudy:
    """So many runs of each of several targets, by name; making a target takes a while."""

    def __init__(self, makers: Mapping[str, Callable[[], FewSteps]], *, runs_each: int) -> None:
        self._makers, self.runs_each = list(makers.items()), runs_each
        self._made: dict[int, FewSteps] = {}

    @property
    def num_runs(self) -> int:
        """Over all targets."""
        return len(self._makers) * self.runs_each

    def title(self, number: int) -> str:
        """Return the run's name."""
        position, own = divmod(number, self.runs_each)
        return f"{self._makers[position][0]}: {own + 1} of {self.runs_each} runs"

    def run(self, number: int) -> pd.DataFrame:
        """Make a run of a target: ``number`` over all targets, ``run`` of this one."""
        position, own = divmod(number, self.runs_each)
        if position not in self._made:
            self._made = {position: self._makers[position][1]()}
        return self._made[position].run(own).assign(number=number, run=own)

    def summary(self, runs: pd.DataFrame, folder: StudyFolder) -> PoolValue:
        """Compare the priors."""
        return PoolValue(
            settings=folder.settings,
            tables={"summary": summary_table(runs)},
            passed={
                str(p): float(s) for p, s in runs.groupby("prior", sort=False)["converged"].mean().items()
            },
            seconds=runs["seconds"],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PoolValue(Findings):
    """What a pool of other servers is worth where a trace is short."""

    passed: Mapping[str, float]
    seconds: pd.Series


def summary_table(runs: pd.DataFrame) -> pd.DataFrame:
    """Return what each prior is worth on each trace.

    ``trace``, ``prior``, ``runs``, ``crps_ms`` (mean), ``coverage_90`` (mean), ``ratio``, ``ratio_lower``
    and ``ratio_upper`` (of the CRPS to that under documented priors, on the same steps: median, 5 % and
    95 % over runs), ``better`` (share of runs), ``whole_crps_ms`` (mean).
    """
    keys = ["trace", "run"]
    base = runs[runs["prior"] == "documented"].set_index(keys)["crps_ms"].rename("base")
    joined = runs.join(base, on=keys)
    joined["ratio"] = joined["crps_ms"] / joined["base"]
    joined["better"] = joined["ratio"] < 1.0
    groups = joined.groupby(["trace", "prior"], sort=False)
    table = groups.agg(
        runs=("run", "size"),
        crps_ms=("crps_ms", "mean"),
        coverage_90=("coverage_90", "mean"),
        ratio=("ratio", "median"),
        ratio_lower=("ratio", lambda ratio: ratio.quantile(0.05)),
        ratio_upper=("ratio", lambda ratio: ratio.quantile(0.95)),
        better=("better", "mean"),
        whole_crps_ms=("whole_crps_ms", "mean"),
    )
    return table.reset_index()


def _scores(evaluator: Evaluator, test: pd.DataFrame) -> tuple[float, float]:
    """Return the mean CRPS, ms, and the share of steps in their 90 % band."""
    quantiles = evaluator.quantile(test, LEVELS).transpose("step", "quantile").to_numpy()
    observed = test["latency_ms"].to_numpy(float)
    return float(crps(observed, quantiles).mean()), coverage(observed, quantiles, probability=0.9)
