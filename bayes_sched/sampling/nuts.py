"""NUTS on one part of a posterior, by nutpie or by PyMC."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import nutpie
import pymc as pm
import xarray as xr

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.sampling.components import Density, Partition, part_model

SAMPLERS = ("nutpie", "pymc")


@dataclass(frozen=True, kw_only=True)
class SamplerSettings:
    """How long and with what to sample.

    Attributes
    ----------
    draws : int
        Kept draws of each chain, over all parts of the posterior.
    tune : int
        Tuning draws of each chain for each part.
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
    tune: int = 200
    chains: int = 4
    seed: int = 0
    sampler: str = "nutpie"
    target_accept: float = 0.9
    cores: int | None = None

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            msg = f"sampler {self.sampler!r}: choose one of {', '.join(SAMPLERS)}"
            raise InputError(msg)
        for name, least in (("draws", 1), ("tune", 1), ("chains", 1), ("seed", 0)):
            if getattr(self, name) < least:
                msg = f"{name} = {getattr(self, name)}: must be at least {least}"
                raise InputError(msg)
        if not 0.0 < self.target_accept < 1.0:
            msg = f"target_accept = {self.target_accept:g}: must lie between 0 and 1"
            raise InputError(msg)


Progress = Callable[[str, float | None], None]

#: Statistics of a draw that are kept.
SAMPLE_STATS = ("diverging", "energy", "n_steps", "step_size")

MAX_TREE_DEPTH = 10
_ATTEMPTS = 3
_SMALLER_STEPS = 0.3  # of the share of rejected proposals, at each further attempt


def portion(progress: Progress | None, number: int, total: int, stage: str | None = None) -> Progress | None:
    """Return a progress whose shares are of one of `total` equal stretches, of another stage if named."""
    if progress is None:
        return None
    return lambda text, share: progress(stage or text, None if share is None else (number + share) / total)


class PartSampler:
    """NUTS on the parts of one density; compiled at the first draw, for all parts and all data.

    Parameters
    ----------
    density : Density
        The posterior.
    data : callable
        Returns the values of the shared variables in the density, by name: they may have been replaced since
        the compilation.

    Attributes
    ----------
    num_gradients : int
        Leapfrog steps of the kept draws so far.
    num_warm_up_gradients : int
        Those of nutpie's tuning draws.
    """

    def __init__(self, density: Density, data: Callable[[], dict[str, Any]]) -> None:
        self.density = density
        self.num_gradients = self.num_warm_up_gradients = 0
        self._data = data
        self._compiled: Any = None

    def compile(self, partition: Partition) -> None:
        """Compile for nutpie; does nothing the second time."""
        if self._compiled is None:
            self._compiled = nutpie.compile_pymc_model(
                part_model(self.density, partition),
                default_initialization_strategy="prior",
                var_names=[],
            )

    def draw_carefully(
        self,
        partition: Partition,
        part: int,
        draws: int,
        settings: SamplerSettings,
        progress: Progress | None = None,
    ) -> tuple[Floats, xr.Dataset]:
        """Sample one part, and again with smaller steps, twice at most, where draws diverge."""
        for attempt in range(_ATTEMPTS):
            accept = 1.0 - (1.0 - settings.target_accept) * _SMALLER_STEPS**attempt
            seed = settings.seed + 7919 * (part + 1) + attempt
            attempted = replace(settings, target_accept=accept, seed=seed)
            coordinates, stats = self.draw(partition, part, draws, attempted, progress)
            if not stats["diverging"].any():
                break
        return coordinates, stats

    def draw(
        self,
        partition: Partition,
        part: int,
        draws: int,
        settings: SamplerSettings,
        progress: Progress | None = None,
    ) -> tuple[Floats, xr.Dataset]:
        """Sample one part with NUTS.

        Returns coordinates, dims (chain, draw, coordinate), and the sampler's statistics.
        """
        run = self._nutpie if settings.sampler == "nutpie" else self._pymc
        tree = run(partition, part, draws, settings, progress)
        stats = tree["sample_stats"].to_dataset()[list(SAMPLE_STATS)]
        self.num_gradients += int(stats["n_steps"].sum())
        z = tree["posterior"]["z"].transpose("chain", "draw", "coordinate").to_numpy()
        return partition.to_coordinates(z, part), stats

    def _pymc(
        self,
        partition: Partition,
        part: int,
        draws: int,
        settings: SamplerSettings,
        progress: Progress | None,
    ) -> Any:
        if progress is not None:
            progress("sampling", None)
        with part_model(self.density, partition) as model:
            pm.set_data(partition.data(part))
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
                model=model,
            )

    def _nutpie(
        self,
        partition: Partition,
        part: int,
        draws: int,
        settings: SamplerSettings,
        progress: Progress | None,
    ) -> Any:
        self.compile(partition)
        total = settings.chains * (draws + settings.tune)

        def report(chains: list[Any]) -> None:
            if progress is not None:
                progress("sampling", min(1.0, sum(chain.finished_draws for chain in chains) / total))

        tree = nutpie.sample(
            self._compiled.with_data(**self._data(), **partition.data(part)),
            draws=draws,
            tune=settings.tune,
            chains=settings.chains,
            cores=settings.cores,
            seed=settings.seed,
            save_warmup=True,
            progress_bar=False,
            progress_callback=report if progress is not None else None,
            target_accept=settings.target_accept,
            maxdepth=MAX_TREE_DEPTH,
        )
        self.num_warm_up_gradients += int(tree["warmup_sample_stats"]["n_steps"].sum())
        return tree
