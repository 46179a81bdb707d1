"""Fits without sampling: draws around known parameters, for tests of what comes after the sampler."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import all_parameters, load_model_file
from bayes_sched.posterior.fit import observed_steps
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.provenance import (
    CleaningRecord,
    FitMetadata,
    ModelIdentity,
    RowCounts,
    TraceIdentity,
)

TRUTH = {
    "P_max": 40.0,
    "k_B": 0.1,
    "k_S": 0.01,
    "w_0": 3.0,
    "w_1": 0.4,
    "tau_0": 2.0,
    "tau_B": 0.05,
    "tau_S": 0.004,
    "nu": 3.0,
    "sigma_rel": 0.03,
    "sigma_floor": 0.2,
}
"""Parameters of a plausible server, noise ``proportional``."""


def synthetic_metadata(**changes: Any) -> FitMetadata:
    """An account of a fit that never was."""
    model_file = load_model_file("saturation")
    metadata = FitMetadata(
        name="synthetic",
        model=ModelIdentity(name="saturation", sha256=model_file.sha256, shipped=True),
        noise="proportional",
        priors=Priors.from_parameters(all_parameters(model_file.model, "proportional")),
        trace_sha256="0" * 64,
        rows=RowCounts(read=1000, cleaned=990, used=990),
        cleaning=CleaningRecord(
            min_latency_ms=1.0, max_latency_ms=300.0, table=({"rule": "idle", "removed": 10, "share": 0.01},)
        ),
        converged=True,
        created_at="2025-01-02T03:04:05+00:00",
        bayes_sched_version="0.1.0",
        labels={"gpu": "H100", "llm": "llama-3-8b"},
        traces=(
            TraceIdentity(
                path="t.jsonl", sha256="0" * 64, format="documented", num_lines=1000, num_steps=1000
            ),
        ),
        bad_lines={"not JSON": 2},
        warnings=("a warning — with a dash",),
        sampler={"name": "nutpie", "draws": 1000, "tune": 1000, "chains": 4, "seed": 1},
        timings_s={"compile": 9.5, "sample": 20.25},
        package_versions={"pymc": "6.4.0"},
        command="python scripts/fit_bayes.py t.jsonl",
    )
    return replace(metadata, **changes)


def synthetic_fit(
    *, spread: float = 0.05, chains: int = 4, draws: int = 250, seed: int = 3, **changes: Any
) -> FittedModel:
    """A fit whose log parameters are independent and normal around the logarithms of `TRUTH`."""
    rng = np.random.default_rng(seed)
    shape = (chains, draws)
    coords = {"chain": np.arange(chains), "draw": np.arange(draws)}
    posterior = xr.Dataset(
        {k: (("chain", "draw"), v * np.exp(spread * rng.standard_normal(shape))) for k, v in TRUTH.items()},
        coords=coords,
    )
    metadata = synthetic_metadata(**changes)
    prior = xr.Dataset(
        {k: ("draw", np.exp(p.mu + p.sigma * rng.standard_normal(4000))) for k, p in metadata.priors.items()}
    )
    coordinates = xr.Dataset(
        {"coordinate": (("chain", "draw", "coordinate_name"), rng.standard_normal((*shape, 3)))},
        coords={**coords, "coordinate_name": ["throughput", "log_a_0", "level"]},
    )
    stats = xr.Dataset(
        {
            "diverging": (("chain", "draw"), np.zeros(shape, dtype=bool)),
            "energy": (("chain", "draw"), rng.normal(100.0, 3.0, shape)),
            "n_steps": (("chain", "draw"), np.full(shape, 7)),
            "step_size": (("chain", "draw"), np.full(shape, 0.5)),
        },
        coords=coords,
    )
    tree = xr.DataTree.from_dict(
        {
            "/posterior": posterior,
            "/coordinates": coordinates,
            "/sample_stats": stats,
            "/prior": prior,
            "/cells": synthetic_cells(),
        }
    )
    return FittedModel(data=tree, model=load_model_file("saturation").model, metadata=metadata)


@cache
def server(*, spread: float = 0.05, **factors: float) -> FittedModel:
    """A server whose small batches are not slow, and whose requests cost something; `factors` change it."""
    made = synthetic_fit(spread=spread)
    posterior = made.data["posterior"].to_dataset()
    changed = {name: posterior[name] * f for name, f in ({"k_B": 30.0, "tau_B": 6.0} | factors).items()}
    tree = made.data.copy()
    tree["posterior"] = xr.DataTree(posterior.assign(changed))
    return replace(made, data=tree)


def synthetic_cells() -> xr.Dataset:
    """Cells of every power of two, B from 1 to 64 and S from B to 4,096."""
    powers = 2 ** np.arange(13)
    batch_size, total_tokens = (axis.ravel() for axis in np.meshgrid(powers[:7], powers, indexing="ij"))
    possible = total_tokens >= batch_size
    batch_size, total_tokens = batch_size[possible], total_tokens[possible]
    middle = 5.0 + 0.01 * total_tokens
    columns = {
        "batch_size": batch_size,
        "total_tokens": total_tokens,
        "count": np.full(len(batch_size), 90),
        "q05_ms": 0.9 * middle,
        "median_ms": middle,
        "q95_ms": 1.2 * middle,
    }
    return xr.Dataset({name: ("cell", values) for name, values in columns.items()})


def with_trace(fit: FittedModel, factor: float = 1.0, *, count: int = 100) -> FittedModel:
    """The fit with a trace: so many steps of each of its cells, that take `factor` times what it says."""
    cells = fit.cells.to_dataframe()[["batch_size", "total_tokens"]]
    steps = cells.loc[cells.index.repeat(count)].reset_index(drop=True)
    steps = served(steps, np.random.default_rng(1), fit.posterior.median(("chain", "draw")))
    tree = fit.data.copy()
    tree["observed"] = xr.DataTree(observed_steps(steps.assign(latency_ms=factor * steps["latency_ms"])))
    return replace(fit, data=tree)


def simulated_steps(num_steps: int, *, seed: int) -> pd.DataFrame:
    """Steps of the synthetic region with latencies of the server `TRUTH`."""
    rng = np.random.default_rng(seed)
    batch_size = np.exp(rng.uniform(0.0, np.log(64.0), num_steps)).astype(int)
    total_tokens = np.minimum(batch_size * np.exp(rng.uniform(0.0, 4.0, num_steps)), 4096).astype(int)
    return served(pd.DataFrame({"batch_size": batch_size, "total_tokens": total_tokens}), rng)


def served(
    steps: pd.DataFrame, rng: np.random.Generator, parameters: xr.Dataset | None = None
) -> pd.DataFrame:
    """The steps with latencies of a server, by default `TRUTH`."""
    model = load_model_file("saturation").model
    draws = xr.Dataset(TRUTH) if parameters is None else parameters
    table = xr.Dataset({name: ("step", steps[name]) for name in steps})
    mean = model.latency(draws, table)
    scale = model.scale(draws, mean, table)
    noise = rng.standard_t(float(draws["nu"]), len(steps))
    return steps.assign(latency_ms=mean.to_numpy() + scale.to_numpy() * noise)
