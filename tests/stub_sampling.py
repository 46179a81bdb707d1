"""Samplers that do not sample: draws around known parameters, at once, for tests of what surrounds them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.model.likelihood import effects_of, with_effects
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import LatencyModel
from bayes_sched.sampling.nuts import Progress, SamplerSettings
from bayes_sched.sampling.sample import Samples
from tests.conftest import documented_record
from tests.synthetic_fit import TRUTH, synthetic_fit

QUICK = ["--draws", "300", "--no-report"]
"""Options of fit_bayes.py that leave out what takes the time."""


def fit_records(count: int = 40) -> list[Any]:
    """Records of steps of different sizes, enough of them for a fit."""
    return [documented_record(prefill=[16 * i], model_run_duration_ms=4.0 + i) for i in range(1, count + 1)]


def stub_sample(
    model: LatencyModel,
    steps: pd.DataFrame,
    priors: Priors,
    *,
    noise: str,
    settings: SamplerSettings,
    progress: Progress | None = None,
) -> Samples:
    """Return independent draws of every parameter: around the truth, or around the prior's median."""
    if progress is not None:
        progress("sampling", None)
        progress("sampling", 0.5)
    data = synthetic_fit(chains=settings.chains, draws=settings.draws, seed=settings.seed + 3).data
    rng = np.random.default_rng(settings.seed)
    shape = (settings.chains, settings.draws)
    posterior = {
        name: (
            ("chain", "draw"),
            TRUTH.get(name, prior.median) * np.exp(0.05 * rng.standard_normal(shape)),
        )
        for name, prior in priors.items()
    }
    prior = {name: ("draw", np.exp(p.mu + p.sigma * rng.standard_normal(500))) for name, p in priors.items()}
    effects = effects_of(model)
    tree = xr.DataTree.from_dict(
        {
            "/posterior": with_effects(xr.Dataset(posterior, coords=data["posterior"].coords), effects, rng),
            "/coordinates": data["coordinates"].to_dataset(),
            "/sample_stats": data["sample_stats"].to_dataset(),
            "/prior": with_effects(xr.Dataset(prior), effects, rng),
        }
    )
    return Samples(tree, {"compile": 0.5, "sampling": 0.25}, {"num_modes": 1, "part_masses": [0.25, 0.75]})


def unmixed_sample(
    model: LatencyModel,
    steps: pd.DataFrame,
    priors: Priors,
    *,
    noise: str,
    settings: SamplerSettings,
    progress: Progress | None = None,
) -> Samples:
    """Return chains that disagree on tau_S."""
    samples = stub_sample(model, steps, priors, noise=noise, settings=settings, progress=progress)
    posterior = samples.data["posterior"].to_dataset()
    posterior["tau_S"] = posterior["tau_S"] * (1.0 + posterior["chain"])
    samples.data["posterior"] = xr.DataTree(posterior)
    return samples
