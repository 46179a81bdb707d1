r"""The population of servers: a hierarchical PyMC model in which every fit stands for its trace.

Coordinate k of what data identify (:mod:`bayes_sched.pooling.prior`, logarithms) of trace j, of server g(j):

.. math::

    \mu_k \sim \mathrm{Normal}(m_k, s_k), \quad
    \gamma_{gk} \sim \mathrm{Normal}(\mu_k, \omega_k), \quad
    z_{jk} \sim \mathrm{Normal}(\gamma_{g(j)k}, \phi_k),

with mean and standard deviation under the documented priors in m and s, and log-normal :math:`\omega` and
:math:`\phi`; given z, parameters are distributed as the documented priors have them. A fit under these priors
has drawn :math:`\theta_{j1}, \theta_{j2}, \ldots` from :math:`p(\theta_j \mid y_j)`; so the likelihood of the
population, with the trace's own parameters integrated out, is an expectation over these draws,

.. math::

    p(y_j \mid \gamma, \phi) \propto \mathrm{E}_i \left[
    \frac{\mathrm{Normal}(z_{ji} \mid \gamma_{g(j)}, \phi)}{p_0(z_{ji})} \right],

and given the population a trace's parameters are its own draws with these ratios for weights: no trace need
be fitted twice (two-stage fitting of a hierarchical model: Lunn, Barrett, Sweeting and Thompson 2013,
doi:10.1111/rssc.12007). What is approximate is that draws are finite in number: the effective number that the
weights leave is kept, and the likelihood of the population takes a smooth version of them, a kernel estimate
of the same mean and variances. Where too few effective draws are left, the trace is fitted again under the
population's prior, whose density then takes the place of :math:`p_0` in the ratios.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pymc as pm
import pytensor.tensor as pt
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.files import check_version, whole_file
from bayes_sched.format import listed
from bayes_sched.model.priors import Prior, Priors
from bayes_sched.pooling.prior import (
    DOCUMENTED_SHARE,
    PopulationPrior,
    documented_centre,
    identified,
    log_documented,
    log_normal,
)
from bayes_sched.posterior.diagnostics import Convergence, convergence
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling.nuts import SAMPLE_STATS, SamplerSettings

BETWEEN = Prior("between", 0.1, 2.0)
"""Prior of the standard deviation of log coordinates from server to server: 10 % to a factor of 7."""
WITHIN = Prior("within", 0.01, 0.5)
"""Prior of the standard deviation from trace to trace of a server, whose token budget may differ."""

_KERNELS = 100  # of each trace, around evenly spaced draws
_CHUNK = 500  # population draws whose weights are in memory at once


@dataclass(frozen=True, eq=False, kw_only=True)
class TraceDraws:
    """The draws of one fit as the population sees them, chains one after the other.

    `z`, dims (draw, coordinate), are logarithms of the identified coordinates; `log_base`, dims (draw,), the
    log of their density under the prior of the fit.
    """

    z: Floats
    log_base: Floats

    @classmethod
    def of(
        cls, fit: FittedModel, names: Sequence[str], *, prior: PopulationPrior | None = None
    ) -> TraceDraws:
        """Take the draws of a fit; `prior` is what it was made under, where not the documented priors."""
        logs = {str(name): np.log(draws.to_numpy().ravel()) for name, draws in fit.posterior.items()}
        z, priors = identified(logs, names, np), fit.metadata.priors
        log_base = log_documented(z, names, priors, np)
        return cls(z=z, log_base=log_base + (prior.log_ratio(logs, priors, np) if prior else 0.0))

    def smoothed(self, most: int) -> tuple[TraceDraws, Floats]:
        """Return at most so many kernels' centres, and the kernels' standard deviations, dims (coordinate,).

        Scott's bandwidth; the centres are drawn together so that mean and variances stay what they are.
        """
        few = np.unique(np.linspace(0, len(self.z) - 1, most).astype(np.int64))
        mean, sd, z = self.z.mean(axis=0), self.z.std(axis=0), self.z[few]
        share = len(few) ** (-1.0 / (self.z.shape[1] + 4.0))
        centres = mean + np.sqrt(1.0 - share**2) * sd * ((z - z.mean(axis=0)) / z.std(axis=0))
        return TraceDraws(z=centres, log_base=self.log_base[few]), share * sd


def population_model(
    traces: Sequence[TraceDraws],
    *,
    names: Sequence[str],
    servers: Sequence[str],
    server_of_trace: Sequence[int],
    priors: Priors,
) -> pm.Model:
    """Return the PyMC model of a population of traces.

    `names` are the coordinates that servers share, `server_of_trace` the position of each trace's server
    among `servers`, `priors` the documented ones.
    """
    centre, spread = documented_centre(names, priors)
    with pm.Model(coords={"coordinate": list(names), "server": list(servers)}) as model:
        mean = pm.Normal("mean", centre, spread, dims="coordinate")
        between = pm.LogNormal("between", BETWEEN.mu, BETWEEN.sigma, dims="coordinate")
        within = pm.LogNormal("within", WITHIN.mu, WITHIN.sigma, dims="coordinate")
        server = pm.Normal("server_mean", mean, between, dims=("server", "coordinate"))
        for j, (trace, width) in enumerate(each.smoothed(_KERNELS) for each in traces):
            spread = pt.sqrt(within**2 + width**2)
            ratio = log_normal(trace.z, server[server_of_trace[j]], spread, pt).sum(axis=-1) - trace.log_base
            pm.Potential(f"trace_{j}", pt.logsumexp(ratio) - np.log(len(trace.z)))
    return model


def sample_population(model: pm.Model, settings: SamplerSettings) -> xr.DataTree:
    """Sample a population with NUTS: groups ``posterior`` and ``sample_stats``, dims (chain, draw)."""
    tree: Any = pm.sample(
        settings.draws,
        tune=settings.tune,
        chains=settings.chains,
        cores=settings.cores,
        random_seed=settings.seed,
        progressbar=False,
        nuts_sampler=settings.sampler,
        nuts={"target_accept": settings.target_accept},
        compute_convergence_checks=False,
        model=model,
    )
    return xr.DataTree.from_dict(
        {
            "posterior": tree["posterior"].to_dataset(),
            "sample_stats": tree["sample_stats"].to_dataset()[list(SAMPLE_STATS)],
        }
    )


def redraw(
    trace: TraceDraws, mean: Floats, sd: Floats, rng: np.random.Generator
) -> tuple[NDArray[np.int64], float]:
    """Draw a trace's parameters given each draw of the population.

    `mean` and `sd`, dims (population draw, coordinate), are of the trace's server, and from trace to trace.
    Returns positions among the trace's draws, dims (population draw,), and the effective number of the
    trace's draws that these rest on.
    """
    chosen = np.empty(len(mean), dtype=np.int64)
    total = np.zeros(len(trace.z))
    for start in range(0, len(mean), _CHUNK):
        part = slice(start, start + _CHUNK)
        log_weight = log_normal(trace.z, mean[part, None, :], sd[part, None, :], np).sum(axis=-1)
        log_weight -= trace.log_base
        weight = np.exp(log_weight - log_weight.max(axis=1, keepdims=True))
        cumulative = np.cumsum(weight, axis=1)
        target = rng.uniform(size=len(weight)) * cumulative[:, -1]
        chosen[part] = (cumulative < target[:, None]).sum(axis=1)
        total += (weight / cumulative[:, -1:]).sum(axis=0)
    return chosen, float(total.sum() ** 2 / (total**2).sum())


FORMAT_NAME = "population of servers"
"""Value of the root attribute ``bayes_sched_format`` in such a file."""
FORMAT_VERSION = 1
PRIOR_COMPONENTS = 200
"""Draws of the population, evenly spaced, that a prior is a mixture of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """The posterior of a population of servers."""

    name: str  # name of the result
    data: xr.DataTree
    """Groups ``posterior`` (dims chain, draw, and coordinate, server: ``mean`` and ``between`` of the
    servers, ``server_mean``, and ``within``, of the traces of a server: logarithms of what servers share) and
    ``sample_stats``."""
    server_of_trace: Mapping[str, str]  # the server of each pooled trace, by the names of their fits
    effective_draws: Mapping[str, float]  # of each trace's own draws, how many its pooled posterior rests on
    model: str
    noise: str
    created_at: str  # ISO 8601, UTC
    command: str | None = None
    problems: tuple[str, ...] = ()  # what the convergence gate found, of the population and of its traces

    @property
    def posterior(self) -> xr.Dataset:
        """Draws of the population, dims (chain, draw, ...)."""
        return self.data["posterior"].to_dataset()

    @property
    def coordinates(self) -> tuple[str, ...]:
        """What servers share."""
        return tuple(str(name) for name in self.posterior["coordinate"].to_numpy())

    @property
    def servers(self) -> tuple[str, ...]:
        """The pooled servers."""
        return tuple(str(name) for name in self.posterior["server"].to_numpy())

    @cached_property
    def convergence(self) -> Convergence:
        """The convergence gate, applied to the population's own draws."""
        return convergence(self.data)

    @property
    def converged(self) -> bool:
        """Whether the gate passed when the pool was made."""
        return not self.problems

    def moments(self, server: str | None = None) -> tuple[Floats, Floats]:
        """Return mean and standard deviation of a further trace's coordinates (logarithms), for each draw.

        Both have dims (draw, coordinate), chains one after the other. The trace is of a server not yet seen,
        unless of one of the pooled servers; :class:`~bayes_sched.errors.InputError` if there is no such one.
        """
        draws = self.posterior
        if server is None:
            mean, sd = draws["mean"], (draws["between"] ** 2 + draws["within"] ** 2) ** 0.5
        elif server in self.servers:
            mean, sd = draws["server_mean"].sel(server=server, drop=True), draws["within"]
        else:
            known = listed(list(self.servers))
            raise InputError(f"no server {server!r} in the pool {self.name}: it has {known}")
        flat_mean, flat_sd = (
            part.transpose("chain", "draw", "coordinate").to_numpy().reshape(-1, len(self.coordinates))
            for part in (mean, sd)
        )
        return flat_mean, flat_sd

    def prior(
        self, server: str | None = None, *, documented_share: float = DOCUMENTED_SHARE
    ) -> PopulationPrior:
        """Return what the population tells of a further trace, of a pooled server or of one not yet seen.

        `documented_share` is left to the documented priors, should the trace be unlike all of the pool.
        """
        mean, sd = self.moments(server)
        few = np.unique(np.linspace(0, len(mean) - 1, PRIOR_COMPONENTS).astype(np.int64))
        count = f"{len(self.server_of_trace)} traces of {len(self.servers)} servers"
        whose = "a server not yet seen" if server is None else f"a further trace of {server}"
        return PopulationPrior(
            names=self.coordinates,
            mean=mean[few],
            sd=sd[few],
            text=f"the pool {self.name} ({count}), as {whose}",
            documented_share=documented_share,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the population to a netCDF file, atomically; an existing file is replaced."""
        tree = self.data.copy()
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if f.name != "data"}
        tree.attrs = {
            "bayes_sched_format": FORMAT_NAME,
            "format_version": FORMAT_VERSION,
            "account": json.dumps(fields),
        }
        with whole_file(Path(path), what="the population") as temporary:
            tree.to_netcdf(temporary, mode="w", engine="h5netcdf")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Population:
        """Read what :meth:`save` wrote; nothing in the file is executed."""
        path = Path(path)
        if not path.is_file():
            raise InputError(f"{path}: there is no such file; a pool of fits writes population.nc")
        try:
            with xr.open_datatree(path, engine="h5netcdf") as opened:
                attrs = {str(key): value for key, value in opened.attrs.items()}
                tree = opened.load()
            if attrs.get("bayes_sched_format") == FORMAT_NAME:
                version = attrs.get("format_version")
                check_version(path, version, known=FORMAT_VERSION, again="pool the fits again")
                fields = json.loads(attrs["account"])
                return cls(data=tree, **{**fields, "problems": tuple(fields["problems"])})
        except InputError:
            raise
        except Exception as error:  # h5py, h5netcdf and xarray raise a dozen kinds on a damaged file
            raise InputError(f"{path}: no population, or a damaged one; pool the fits again") from error
        raise InputError(f"{path}: no population of servers; a pool of fits writes population.nc")
