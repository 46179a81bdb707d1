"""A population of servers: what is known of it, and its file."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import xarray as xr

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.files import UNSEEN as UNSEEN
from bayes_sched.files import check_version, whole_file
from bayes_sched.format import listed
from bayes_sched.pooling.prior import DOCUMENTED_SHARE, PopulationPrior
from bayes_sched.posterior.diagnostics import Convergence, convergence

FORMAT_NAME = "population of servers"
"""Value of the root attribute ``bayes_sched_format`` in such a file."""
FORMAT_VERSION = 1
PRIOR_COMPONENTS = 200
"""Draws of the population, evenly spaced, that a prior is a mixture of."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Population:
    """The posterior of a population of servers.

    Attributes
    ----------
    name : str
        Name of the result.
    data : DataTree
        Groups ``posterior`` (dims chain, draw, and coordinate, server: ``mean`` and ``between`` of the
        servers, ``server_mean``, and ``within``, of the traces of a server: logarithms of what servers share)
        and ``sample_stats``.
    server_of_trace : Mapping of str to str
        The server of each pooled trace, by the names of their fits.
    effective_draws : Mapping of str to float
        Of each trace's own draws, how many its pooled posterior rests on.
    model, noise : str
    created_at : str
        ISO 8601, UTC.
    command : str or None
    problems : tuple of str
        What the convergence gate found, of the population and of its traces.
    """

    name: str
    data: xr.DataTree
    server_of_trace: Mapping[str, str]
    effective_draws: Mapping[str, float]
    model: str
    noise: str
    created_at: str
    command: str | None = None
    problems: tuple[str, ...] = ()

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
        """Return what the population tells of a further trace before it is seen.

        Parameters
        ----------
        server : str, optional
            One of the pooled servers, of which it is a further trace; by default a server not yet seen.
        documented_share : float
            Share that is left to the documented priors, should the trace be unlike all of the pool.

        Raises
        ------
        InputError
            There is no such server.
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
        """Write the population to a netCDF file, atomically; an existing file is replaced.

        Raises
        ------
        InputError
            The place cannot be written.
        """
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
        """Read what :meth:`save` wrote. Nothing in the file is executed.

        Raises
        ------
        InputError
            The file is missing, no population, damaged or of a later format.
        """
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
