"""NUTS on one component of a posterior, by nutpie or by PyMC."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import nutpie
import pandas as pd
import pymc as pm
import xarray as xr
from nutpie.compile_pymc import CompiledPyMCModel

from bayes_sched.arrays import Floats
from bayes_sched.compiler.function import BoundFunction
from bayes_sched.errors import InputError
from bayes_sched.sampling.components import Components, Density, component_model
from bayes_sched.sampling.mixture import GaussianMixture

SAMPLERS = ("nutpie", "pymc")
SAMPLE_STATS = ("diverging", "energy", "n_steps", "step_size")
"""Statistics of a draw that are kept."""
MAX_TREE_DEPTH = 10
_ATTEMPTS = 4
_SMALLER_STEPS = 0.3  # of the share of rejected proposals, at each further attempt

type Progress = Callable[[str, float | None], None]
"""Is told a stage in words, and the share of it that is done, or None where that is not known."""


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How long and with what to sample.

    Attributes
    ----------
    draws : int
        Kept draws of each chain, over all components of the posterior.
    tune : int
        Tuning draws of each chain for each component.
    chains : int
        Number of chains.
    seed : int
        Seed of everything random; the same seed, data and versions give the same numbers.
    sampler : str
        ``nutpie`` or ``pymc``.
    target_accept : float
        Acceptance probability that the step size is tuned to.
    cores : int, optional
        Chains that run at once; by default as many as there are processors.
    """

    draws: int = 1000
    tune: int = 50
    chains: int = 4
    seed: int = 0
    sampler: str = "nutpie"
    target_accept: float = 0.9
    cores: int | None = None

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise InputError(f"sampler {self.sampler!r}: choose one of {', '.join(SAMPLERS)}")
        for name, least in (("draws", 1), ("tune", 1), ("chains", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise InputError(f"{name} = {getattr(self, name)}: must be at least {least}")
        if not 0.0 < self.target_accept < 1.0:
            raise InputError(f"target_accept = {self.target_accept:g}: must lie between 0 and 1")


class ComponentSampler:
    """NUTS on the components of one density; compiled at the first draw, for all components and all data.

    `data` returns the values of the shared variables in the density, by name: they may have been replaced
    since the compilation.
    """

    def __init__(self, density: Density, data: Callable[[], dict[str, Any]]) -> None:
        self.density, self._data = density, data
        self.num_gradients = 0  # leapfrog steps of the draws so far
        self.num_tuning_gradients = 0  # and of the tuning draws before them, by nutpie
        self._compiled: Any = None
        self._starts = np.zeros((1, density.dim))  # of chains, in the coordinates of a component

    def compile(self, components: Components) -> None:
        """Compile for nutpie what the density could not; does nothing the second time."""
        if self.density.unsupported and self._compiled is None:
            model = component_model(self.density, components)
            self._compiled = nutpie.compile_pymc_model(
                model, default_initialization_strategy="prior", var_names=[]
            )

    def draw_carefully(
        self,
        components: Components,
        number: int,
        draws: int,
        settings: SamplerSettings,
        progress: Progress | None = None,
    ) -> tuple[Floats, xr.Dataset]:
        """Sample one component, and again with smaller steps, three times at most, where draws diverge."""
        for attempt in range(_ATTEMPTS):
            accept = 1.0 - (1.0 - settings.target_accept) * _SMALLER_STEPS**attempt
            seed = settings.seed + 7919 * (number + 1) + attempt
            attempted = replace(settings, target_accept=accept, seed=seed)
            found = self.draw(components, number, draws, attempted, progress)
            if not found[1]["diverging"].any():
                break
        return found

    def draw_whole(
        self, modes: GaussianMixture, draws: int, settings: SamplerSettings, progress: Progress | None = None
    ) -> tuple[Floats, xr.Dataset]:
        """Sample all of a density, whitened by the Gaussian of its best mode; chains start near any mode."""
        best = [int(np.argmax(modes.weights))]
        whole = GaussianMixture(np.ones(1), modes.means[best], modes.covariances[best])
        self._starts = (modes.means - whole.means[0]) @ whole.inverse_cholesky[0].T
        try:
            return self.draw(Components(whole), 0, draws, settings, progress)
        finally:
            self._starts = np.zeros((1, self.density.dim))

    def draw(
        self,
        components: Components,
        number: int,
        draws: int,
        settings: SamplerSettings,
        progress: Progress | None = None,
    ) -> tuple[Floats, xr.Dataset]:
        """Sample one component: its coordinates, dims (chain, draw, coordinate), and NUTS's statistics."""
        if settings.sampler == "nutpie":
            self.compile(components)
            tree = self._nutpie(components.data(number), draws, settings, progress)
        else:
            with component_model(self.density, components):
                pm.set_data(components.data(number))
                tree = _pymc(draws, settings, progress)
        stats = tree["sample_stats"].to_dataset()[list(SAMPLE_STATS)]
        self.num_gradients += int(stats["n_steps"].sum())
        z = tree["posterior"]["z"].transpose("chain", "draw", "coordinate").to_numpy()
        return components.to_coordinates(z, number), stats

    def _nutpie(
        self, data: dict[str, Any], draws: int, settings: SamplerSettings, progress: Progress | None
    ) -> Any:
        total = settings.chains * (draws + settings.tune)

        def report(chains: list[Any]) -> None:
            if progress is not None:
                progress("sampling", min(1.0, sum(chain.finished_draws for chain in chains) / total))

        if self.density.unsupported:
            model = self._compiled.with_data(**self._data(), **data)
        else:
            model = _nutpie_model(self.density.component(data), self.density.names, self._starts)
        tree = nutpie.sample(
            model,
            draws=draws,
            tune=settings.tune,
            chains=settings.chains,
            cores=settings.cores,
            seed=settings.seed,
            progress_bar=False,
            progress_callback=report if progress is not None else None,
            target_accept=settings.target_accept,
            maxdepth=MAX_TREE_DEPTH,
        )
        self.num_tuning_gradients += int(tree["warmup_sample_stats"]["n_steps"].sum())
        return tree


def _nutpie_model(function: BoundFunction, names: Sequence[str], starts: Floats) -> CompiledPyMCModel:
    """Return what nutpie samples: z, from starts that are normal around one of some points."""
    dim = len(names)

    def start(seed: int) -> Floats:
        rng = np.random.default_rng(seed)
        point: Floats = starts[rng.integers(len(starts))] + rng.standard_normal(dim)
        return point

    return CompiledPyMCModel(
        _n_dim=dim,
        dims={"z": ("coordinate",)},
        _coords={"coordinate": pd.Index(names), "unconstrained_parameter": pd.Index(names)},
        _shapes={"z": (dim,)},
        compiled_logp_func=SimpleNamespace(address=function.address),
        compiled_expand_func=SimpleNamespace(address=function.copy_address),
        initial_point_func=start,
        shared_data={},
        shared_var_keys={},
        user_data=function.user_data,
        n_expanded=dim,
        shape_info=(["z"], [slice(0, dim)], [(dim,)]),
        logp_func=function,
        expand_func=None,
        reparameterized_names=[],
    )


def _pymc(draws: int, settings: SamplerSettings, progress: Progress | None) -> Any:
    """Sample the model of the context."""
    if progress is not None:
        progress("sampling", None)
    return pm.sample(
        draws,
        tune=settings.tune,
        chains=settings.chains,
        cores=settings.cores,
        random_seed=settings.seed,
        progressbar=False,
        nuts_sampler="pymc",
        nuts={"target_accept": settings.target_accept},
        compute_convergence_checks=False,
    )


def portion(progress: Progress | None, number: int, total: int, stage: str | None = None) -> Progress | None:
    """Return a progress whose shares are of one of `total` equal stretches, of another stage if named."""
    if progress is None:
        return None
    return lambda text, share: progress(stage or text, None if share is None else (number + share) / total)
