"""How well a posterior is sampled for what it costs: our sampler beside the model file as it stands.

The cost that does not depend on how busy a machine is: gradients. "Effective draws" are the smallest bulk
effective sample size over everything the gate looks at.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from unittest import mock

import nutpie
import pandas as pd
import xarray as xr

from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import LatencyModel
from bayes_sched.posterior.diagnostics import Convergence, convergence
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.sampling.sample import Sampler

ADAPTATIONS = ("diag", "draw_diag", "low_rank")
"""Of nutpie's mass matrix."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What one way of sampling achieved, and at what cost.

    Attributes
    ----------
    method : str
    convergence : Convergence
        The gate.
    num_gradients : int
        Leapfrog steps after warm-up, of all chains.
    num_all_gradients : int
        Those of the warm-up and evaluations of a pilot run as well.
    sampling_s : float
        Seconds of wall time of all that is not compiling.
    at_max_depth : float
        Share of the kept draws whose trajectory was cut at the greatest tree depth.
    """

    method: str
    convergence: Convergence
    num_gradients: int
    num_all_gradients: int
    sampling_s: float
    at_max_depth: float

    @property
    def min_ess_bulk(self) -> float:
        """Smallest bulk effective sample size; NaN if one could not be computed."""
        return float(self.convergence.table["ess_bulk"].min(skipna=False))

    def to_dict(self) -> dict[str, Any]:
        """Return the numbers under names that say what they are, ready for JSON."""
        ess = self.min_ess_bulk
        return {
            "method": self.method,
            "gate_passed": self.convergence.converged,
            "divergences": self.convergence.num_divergences,
            "worst_r_hat": self.convergence.worst_r_hat,
            "min_ess_bulk": ess,
            "min_ess_tail": float(self.convergence.table["ess_tail"].min(skipna=False)),
            "effective_per_1000_gradients": 1000.0 * ess / self.num_gradients,
            "effective_per_1000_gradients_all": 1000.0 * ess / self.num_all_gradients,
            "effective_per_second": ess / self.sampling_s,
            "gradients": self.num_gradients,
            "gradients_all": self.num_all_gradients,
            "sampling_s": self.sampling_s,
            "share_at_max_depth": self.at_max_depth,
            "problems": list(self.convergence.problems),
        }


def measure_direct(
    model: LatencyModel,
    steps: pd.DataFrame,
    priors: Priors,
    *,
    noise: str,
    settings: SamplerSettings,
    max_depth: int,
    adaptations: tuple[str, ...] = ADAPTATIONS,
    progress: Callable[[str], None] | None = None,
) -> list[Measured]:
    """Sample the logarithms of a model's parameters, as PyMC does with its file as it stands.

    Parameters
    ----------
    model : LatencyModel
    steps : DataFrame
        Cleaned steps.
    priors : Priors
    noise : str
    settings : SamplerSettings
        Draws, tuning draws, chains, seed and cores; the acceptance probability is nutpie's own default.
    max_depth : int
        Greatest depth of a trajectory, 2**max_depth leapfrog steps: in these coordinates many trajectories
        would be longer.
    adaptations : tuple of str
        Some of :data:`ADAPTATIONS`.
    progress : callable, optional
        Is told what is being sampled.

    Returns
    -------
    list of Measured
        One for each adaptation.
    """
    compiled = nutpie.compile_pymc_model(model.build(steps, priors, noise=noise))
    found = []
    for adaptation in adaptations:
        if progress is not None:
            progress(f"the model file as it stands, adaptation {adaptation}")
        with counted_warm_up() as warm_up:
            start = time.perf_counter()
            tree = nutpie.sample(
                compiled,
                draws=settings.draws,
                tune=settings.tune,
                chains=settings.chains,
                cores=settings.cores,
                seed=settings.seed,
                adaptation=adaptation,
                maxdepth=max_depth,
                progress_bar=False,
            )
            seconds = time.perf_counter() - start
        posterior = tree["posterior"].to_dataset()[list(priors)]
        stats = tree["sample_stats"].to_dataset()
        gate = convergence(xr.DataTree.from_dict({"posterior": posterior, "sample_stats": stats}))
        found.append(
            Measured(
                method=f"direct, {adaptation}",
                convergence=gate,
                num_gradients=gate.num_gradients,
                num_all_gradients=gate.num_gradients + sum(warm_up),
                sampling_s=seconds,
                at_max_depth=float((stats["n_steps"] >= 2**max_depth - 1).mean()),
            )
        )
    return found


def measure_ours(
    model: LatencyModel,
    steps: pd.DataFrame,
    priors: Priors,
    *,
    noise: str,
    settings: SamplerSettings,
    progress: Callable[[str], None] | None = None,
) -> Measured:
    """Sample as the library does, by nutpie; parameters as in `measure_direct`.

    Seconds and gradients count everything that the posterior takes, the pilot run and discarded draws too.
    """
    sampler = Sampler(model, steps, priors, noise=noise)
    before = sampler.density.num_evaluations
    compiling_s = sampler.clock.seconds["compile"]
    with counted_warm_up() as warm_up:
        if progress is not None:
            progress("the library's sampler")
        start = time.perf_counter()
        samples = sampler.run(settings)
        seconds = time.perf_counter() - start
    compiling_s = sampler.clock.seconds["compile"] - compiling_s
    gate = convergence(samples.data)
    num_gradients = int(samples.info["num_gradients"])
    deepest = samples.data["sample_stats"]["n_steps"] >= 2**10 - 1
    return Measured(
        method="ours",
        convergence=gate,
        num_gradients=num_gradients,
        num_all_gradients=num_gradients + sum(warm_up) + sampler.density.num_evaluations - before,
        sampling_s=seconds - compiling_s,
        at_max_depth=float(deepest.mean()),
    )


@contextmanager
def counted_warm_up() -> Iterator[list[int]]:
    """Note the leapfrog steps of the warm-up of every run of nutpie, which keeps them only on demand."""
    counts: list[int] = []
    original = nutpie.sample

    def counting(*args: Any, **options: Any) -> Any:
        tree = original(*args, **{**options, "save_warmup": True})
        counts.append(int(tree["warmup_sample_stats"]["n_steps"].sum()))
        return tree

    with mock.patch.object(nutpie, "sample", counting):
        yield counts


def ratios_to_best(found: pd.DataFrame) -> dict[str, float]:
    """Return ours over the best of the direct ways, whether that passed the gate or not.

    Parameters
    ----------
    found : DataFrame
        One row of :meth:`Measured.to_dict` a method.

    Returns
    -------
    dict of str to float
        Effective draws for each unit of what they cost.
    """
    is_ours = found["method"] == "ours"
    columns = ("effective_per_1000_gradients", "effective_per_1000_gradients_all", "effective_per_second")
    return {
        name: float(found.loc[is_ours, name].iloc[0] / found.loc[~is_ours, name].max()) for name in columns
    }


def fit_account(fit: FittedModel) -> dict[str, Any]:
    """Return what a finished fit took and what the gate says of it, ready for JSON.

    Parameters
    ----------
    fit : FittedModel
    """
    gate, stage = fit.convergence, fit.metadata.timings_s
    table = gate.table
    posterior = fit.posterior
    share = float("nan")
    if {"w_1", "P_max", "tau_S"} <= set(posterior):
        share = float((posterior["w_1"] / posterior["P_max"] > posterior["tau_S"]).mean())
    info = fit.metadata.sampler
    return {
        "rows": int(fit.cells["count"].sum()),
        "compile_s": stage["compile"],
        "pilot_s": stage.get("pilot", 0.0) + stage.get("masses", 0.0),
        "sampling_s": stage["sampling"],
        "divergences": gate.num_divergences,
        "worst_r_hat": gate.worst_r_hat,
        "min_ess_bulk": float(table["ess_bulk"].min(skipna=False)),
        "min_ess_tail": float(table["ess_tail"].min(skipna=False)),
        "leapfrogs_per_draw": gate.num_gradients / gate.num_draws,
        "effective_per_1000_gradients": gate.ess_per_1000_gradients,
        "modes": info.get("num_modes"),
        "parts": info.get("num_parts"),
        "probability_a_1_above_tau_S": share,
        "gate_passed": gate.converged,
        "problems": list(gate.problems),
    }
