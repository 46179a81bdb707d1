"""How well a posterior is sampled for what it costs: our sampler beside the model file as it stands.

The cost that does not depend on how busy a machine is: gradients. "Effective draws" are the smallest bulk
effective sample size over everything the gate looks at.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import nutpie
import pandas as pd
import xarray as xr

from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import LatencyModel, all_parameters
from bayes_sched.posterior.diagnostics import Convergence, convergence
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling.nuts import MAX_TREE_DEPTH, SamplerSettings
from bayes_sched.sampling.sample import Sampler

ADAPTATIONS = ("diag", "draw_diag", "low_rank")
"""Of nutpie's mass matrix."""
_TUNE_OURS, _TUNE_DIRECT = 50, 1000

type Say = Callable[[str], None]


@dataclass(frozen=True, kw_only=True, eq=False)
class SamplingSpeed:
    """The ways to sample `rows` of the `rows_of` steps of a trace, side by side.

    A row of `table` is a way, see :func:`measured`; and ``ours_per_gradient``, ``ours_per_second``: what ours
    achieves for a gradient and a second over what this way does. `ratios` are effective draws for each
    unit of what they cost: ours over the best of the direct ways, whether that passed the gate or not.
    """

    trace: str
    rows: int
    rows_of: int
    direct_max_depth: int
    methods: Sequence[dict[str, Any]]
    table: pd.DataFrame
    ratios: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        names = ("trace", "rows", "rows_of", "direct_max_depth")
        methods = [{name: _or_none(value) for name, value in row.items()} for row in self.methods]
        return {name: getattr(self, name) for name in names} | {"methods": methods, "ratios": self.ratios}


def _or_none(value: Any) -> Any:
    """Return None for NaN, which JSON does not know."""
    return None if isinstance(value, float) and math.isnan(value) else value


def compare_sampling(
    model: LatencyModel,
    steps: pd.DataFrame,
    *,
    trace: str,
    rows_of: int,
    settings: SamplerSettings,
    tune: int | None,
    max_depth: int,
    progress: Say,
) -> SamplingSpeed:
    """Sample one trace in every way, with the model's first noise option and its documented priors.

    The `steps` are chosen from `rows_of`. Tuning draws of each chain are by default 200 for each component of
    ours, 1,000 of the direct ways, whose trajectories are at most 2**max_depth leapfrog steps: in these
    coordinates many would be longer.
    """
    progress("the library's sampler")
    ours = _ours(model, steps, replace(settings, tune=tune or _TUNE_OURS))
    methods = [
        *_direct(model, steps, replace(settings, tune=tune or _TUNE_DIRECT), max_depth, progress),
        ours,
    ]
    table = pd.DataFrame(methods).drop(columns="problems")
    table = table.assign(
        ours_per_gradient=ours["effective_per_1000_gradients"] / table["effective_per_1000_gradients"],
        ours_per_second=ours["effective_per_second"] / table["effective_per_second"],
    )
    return SamplingSpeed(
        trace=trace,
        rows=len(steps),
        rows_of=rows_of,
        direct_max_depth=max_depth,
        methods=methods,
        table=table,
        ratios=ratios_to_best(table),
    )


def _noise_and_priors(model: LatencyModel) -> tuple[str, Priors]:
    noise = model.noises[0]
    return noise, Priors.from_parameters(all_parameters(model, noise))


def _direct(
    model: LatencyModel, steps: pd.DataFrame, settings: SamplerSettings, max_depth: int, progress: Say
) -> Iterator[dict[str, Any]]:
    """Sample the logarithms of a model's parameters, as PyMC does with its file as it stands.

    The acceptance probability is nutpie's own default.
    """
    noise, priors = _noise_and_priors(model)
    compiled = nutpie.compile_pymc_model(model.build(steps, priors, noise=noise))
    lengths = {name: getattr(settings, name) for name in ("draws", "tune", "chains", "cores", "seed")}
    for adaptation in ADAPTATIONS:
        progress(f"the model file as it stands, adaptation {adaptation}")
        start = time.perf_counter()
        tree = nutpie.sample(
            compiled,
            **lengths,
            adaptation=adaptation,
            maxdepth=max_depth,
            save_warmup=True,
            progress_bar=False,
        )
        seconds = time.perf_counter() - start
        stats = tree["sample_stats"].to_dataset()
        groups = {"posterior": tree["posterior"].to_dataset()[list(priors)], "sample_stats": stats}
        gate = convergence(xr.DataTree.from_dict(groups))
        yield measured(
            f"direct, {adaptation}",
            gate,
            gradients=gate.num_gradients,
            more_gradients=int(tree["warmup_sample_stats"]["n_steps"].sum()),
            seconds=seconds,
            at_max_depth=float((stats["n_steps"] >= 2**max_depth - 1).mean()),
        )


def _ours(model: LatencyModel, steps: pd.DataFrame, settings: SamplerSettings) -> dict[str, Any]:
    """Sample as the library does: exploration and discarded draws count too, compiling does not."""
    noise, priors = _noise_and_priors(model)
    sampler = Sampler(model, steps, priors, noise=noise)
    compiling_s, evaluations = sampler.clock.seconds["compile"], sampler.density.num_evaluations
    start = time.perf_counter()
    samples = sampler.run(settings)
    seconds = time.perf_counter() - start
    compiling_s = sampler.clock.seconds["compile"] - compiling_s
    evaluations = sampler.density.num_evaluations - evaluations
    return measured(
        "ours",
        convergence(samples.data),
        gradients=int(samples.info["num_gradients"]),
        more_gradients=sampler.nuts.num_tuning_gradients + evaluations,
        seconds=seconds - compiling_s,
        at_max_depth=float((samples.data["sample_stats"]["n_steps"] >= 2**MAX_TREE_DEPTH - 1).mean()),
    )


def measured(
    method: str,
    gate: Convergence,
    *,
    gradients: int,
    more_gradients: int,
    seconds: float,
    at_max_depth: float,
) -> dict[str, Any]:
    """Return what one way of sampling achieved, and at what cost."""
    ess_bulk, ess_tail = _least_ess(gate)
    gradients_all = gradients + more_gradients
    return {
        "method": method,
        "gate_passed": gate.converged,
        "divergences": gate.num_divergences,
        "worst_r_hat": gate.worst_r_hat,
        "min_ess_bulk": ess_bulk,
        "min_ess_tail": ess_tail,
        "effective_per_1000_gradients": 1000.0 * ess_bulk / gradients,
        "effective_per_1000_gradients_all": 1000.0 * ess_bulk / gradients_all,
        "effective_per_second": ess_bulk / seconds,
        "gradients": gradients,
        "gradients_all": gradients_all,
        "sampling_s": seconds,
        "share_at_max_depth": at_max_depth,
        "problems": list(gate.problems),
    }


def _least_ess(gate: Convergence) -> tuple[float, float]:
    """Return the smallest bulk and tail effective sample sizes; NaN if one could not be computed."""
    bulk, tail = (float(gate.table[name].min(skipna=False)) for name in ("ess_bulk", "ess_tail"))
    return bulk, tail


def ratios_to_best(methods: pd.DataFrame) -> dict[str, float]:
    """Return ours over the best of the direct ways."""
    is_ours = methods["method"] == "ours"
    columns = ("effective_per_1000_gradients", "effective_per_1000_gradients_all", "effective_per_second")
    return {
        name: float(methods.loc[is_ours, name].iloc[0] / methods.loc[~is_ours, name].max())
        for name in columns
    }


@dataclass(frozen=True, eq=False)
class FitSpeed:
    """Whole fits: what each took and what its gate says; one row a fit, as plain values."""

    fits: Sequence[dict[str, Any]]

    @property
    def all_passed(self) -> bool:
        """Whether every fit passed its gate."""
        return all(row["gate_passed"] for row in self.fits)

    @property
    def spread(self) -> dict[str, tuple[float, float]]:
        """Least and largest P(a_1 > tau_S) over the seeds of each trace that has several."""
        found: dict[str, list[float]] = {}
        for row in self.fits:
            found.setdefault(row["trace"], []).append(row["probability_a_1_above_tau_S"])
        return {trace: (min(values), max(values)) for trace, values in found.items() if len(values) > 1}


def fit_provenance(fit: FittedModel) -> dict[str, Any]:
    """Return what a finished fit took and what the gate says of it, ready for JSON."""
    gate, stage, info = fit.convergence, fit.metadata.timings_s, fit.metadata.sampler
    posterior, share = fit.posterior, float("nan")
    if {"w_1", "P_max", "tau_S"} <= set(posterior):
        share = float((posterior["w_1"] / posterior["P_max"] > posterior["tau_S"]).mean())
    ess_bulk, ess_tail = _least_ess(gate)
    return {
        "rows": int(fit.cells["count"].sum()),
        "compile_s": stage["compile"],
        "pilot_s": stage.get("pilot", 0.0) + stage.get("masses", 0.0),
        "sampling_s": stage["sampling"],
        "divergences": gate.num_divergences,
        "worst_r_hat": gate.worst_r_hat,
        "min_ess_bulk": ess_bulk,
        "min_ess_tail": ess_tail,
        "leapfrogs_per_draw": gate.num_gradients / gate.num_draws,
        "effective_per_1000_gradients": gate.ess_per_1000_gradients,
        "modes": info.get("num_modes"),
        "parts": info.get("num_parts"),
        "probability_a_1_above_tau_S": share,
        "gate_passed": gate.converged,
        "problems": list(gate.problems),
    }
