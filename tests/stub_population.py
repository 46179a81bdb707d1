"""A population that is not sampled: draws around the synthetic server, for tests of what surrounds it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from bayes_sched.pooling import members as member_fits
from bayes_sched.pooling import pool as pooled
from bayes_sched.pooling.pool import Pool, pool
from bayes_sched.pooling.prior import identified
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling.nuts import SamplerSettings
from tests.comparison_fits import server
from tests.synthetic_fit import TRUTH

SHORT = SamplerSettings(draws=300)
BETWEEN, WITHIN = 0.3, 0.1


def stub_sample_population(model: SimpleNamespace, settings: SamplerSettings) -> xr.DataTree:
    """Return independent draws: every server is about the synthetic one."""
    names, servers = (list(model.coords[key]) for key in ("coordinate", "server"))
    rng = np.random.default_rng(settings.seed)
    shape = (settings.chains, settings.draws)
    centre = identified({name: np.log(value) for name, value in TRUTH.items()}, names, np)
    coords = {
        "chain": np.arange(shape[0]),
        "draw": np.arange(shape[1]),
        "coordinate": names,
        "server": servers,
    }
    dims, of_servers = ("chain", "draw", "coordinate"), ("chain", "draw", "server", "coordinate")
    many = (*shape, len(names))
    posterior = xr.Dataset(
        {
            "mean": (dims, centre + 0.05 * rng.standard_normal(many)),
            "between": (dims, BETWEEN * np.exp(0.2 * rng.standard_normal(many))),
            "within": (dims, WITHIN * np.exp(0.2 * rng.standard_normal(many))),
            "server_mean": (
                of_servers,
                centre + 0.05 * rng.standard_normal((*shape, len(servers), len(names))),
            ),
        },
        coords=coords,
    )
    stats = xr.Dataset(
        {
            "diverging": (("chain", "draw"), np.zeros(shape, dtype=bool)),
            "energy": (("chain", "draw"), rng.normal(100.0, 3.0, shape)),
            "n_steps": (("chain", "draw"), np.full(shape, 7)),
        }
    )
    return xr.DataTree.from_dict({"posterior": posterior, "sample_stats": stats})


def unmixed_population(model: SimpleNamespace, settings: SamplerSettings) -> xr.DataTree:
    """Return chains that disagree on how far servers differ."""
    data = stub_sample_population(model, settings)
    posterior = data["posterior"].to_dataset()
    posterior["between"] = posterior["between"] * (1.0 + posterior["chain"])
    data["posterior"] = xr.DataTree(posterior)
    return data


def _stub_model(
    traces: object, *, names: list[str], servers: list[str], server_of_trace: object, priors: object
) -> SimpleNamespace:
    return SimpleNamespace(coords={"coordinate": names, "server": servers})


def stub_population(monkeypatch: pytest.MonkeyPatch, stub: object = stub_sample_population) -> None:
    """Let pooling take no time."""
    monkeypatch.setattr(pooled, "population_model", _stub_model)
    monkeypatch.setattr(pooled, "sample_population", stub)
    monkeypatch.setattr(member_fits, "_PRIOR_DRAWS", 400)


def three_fits() -> dict[str, FittedModel]:
    """Fits of three traces of two servers."""
    return {
        "day": server(0.96, name="day", gpu="X100"),
        "night": server(name="night", gpu="X100"),
        "other": server(1.05, name="other", gpu="Y50"),
    }


def stub_pool(fits: dict[str, FittedModel] | None = None, **options: Any) -> Pool:
    """The three pooled, or others, as `pool` does it but for the sampling; `options` are those of `pool`."""
    with pytest.MonkeyPatch.context() as patched:
        stub_population(patched)
        return pool(fits or three_fits(), settings=SHORT, **options)


def save_fits(folder: Path) -> None:
    """Write the three as results, and one that has not converged."""
    fits = three_fits() | {"bad": server(name="bad", converged=False, problems=("R-hat 1.2 on tau_S",))}
    for name, fit in fits.items():
        (folder / name).mkdir(parents=True)
        fit.save(folder / name / "posterior.nc")
