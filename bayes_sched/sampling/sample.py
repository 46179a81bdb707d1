"""NUTS: from a model and steps to draws of the posterior."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pymc as pm
import xarray as xr
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from bayes_sched.arrays import Floats
from bayes_sched.model.likelihood import effects_of, step_data, with_effects
from bayes_sched.model.protocol import LatencyModel, all_parameters
from bayes_sched.sampling.bridge import INFLATION, MOST_MODES, divide, part_masses
from bayes_sched.sampling.components import Density, Partition
from bayes_sched.sampling.coordinates import with_positive_latencies
from bayes_sched.sampling.exploration import (
    GOOD_EFFICIENCY,
    NUM_COMPONENTS,
    Pilot,
    effective_number,
    run_pilot,
)
from bayes_sched.sampling.mixture import GaussianMixture, fit_mixture
from bayes_sched.sampling.nuts import SAMPLE_STATS, PartSampler, Progress, SamplerSettings, portion

if TYPE_CHECKING:
    import pandas as pd

    from bayes_sched.model.priors import Priors


def allocate(masses: Floats, draws: int) -> NDArray[np.int64]:
    """Return the draws a chain gets of each part, dims (chain, part): largest remainders, `draws` in all."""
    exact = masses / masses.sum(axis=1, keepdims=True) * draws
    counts = np.floor(exact).astype(np.int64)
    for row, remainder in zip(counts, exact - counts, strict=True):
        row[np.argsort(-remainder)[: draws - row.sum()]] += 1
    return counts


def interleave(parts: list[tuple[Floats, xr.Dataset]], counts: Any) -> tuple[Floats, xr.Dataset]:
    """Merge the parts of each chain evenly, each in its own order, so that autocorrelation stays visible."""
    chains = []
    for chain, count in enumerate(counts):
        position = np.concatenate([(np.arange(n) + 0.5) / n for n in count if n])
        part = np.repeat(np.arange(len(parts)), count)
        order = np.argsort(position, kind="stable")
        x = np.concatenate([values[chain, :n] for (values, _), n in zip(parts, count, strict=True)])[order]
        stats = {
            name: np.concatenate(
                [stats[name].to_numpy()[chain, :n] for (_, stats), n in zip(parts, count, strict=True)]
            )[order]
            for name in SAMPLE_STATS
        }
        chains.append((x, {**stats, "part": part[order]}))
    names = [*SAMPLE_STATS, "part"]
    draws = len(chains[0][0])
    merged = xr.Dataset(
        {name: (("chain", "draw"), np.stack([stats[name] for _, stats in chains])) for name in names},
        coords={"chain": np.arange(len(chains)), "draw": np.arange(draws)},
    )
    return np.stack([x for x, _ in chains]), merged


_PRIOR_DRAWS = 4000
_WANDERING = (500, 2000)  # draws a chain of NUTS in two rounds, where the pilot's mixture is bad
_WIDE = 24  # coordinates from which importance sampling is hopeless
_MASS_BATCH, _MAX_MASS_BATCHES = 1000, 20  # draws of the mixture for a chain's estimate of the parts' masses
_MASS_EFFECTIVE = 800.0  # effective ones among them that are enough
_NEGLIGIBLE_MASS = 2e-3  # a part of less posterior mass than this is left out
_SPARE = (1.3, 20)  # times as many draws, and so many more, as a part of uncertain mass is expected to need


@dataclass(frozen=True)
class Samples:
    """What sampling delivers.

    Attributes
    ----------
    data : DataTree
        Groups ``posterior`` (dims chain, draw: every parameter), ``coordinates`` (variable ``value``, dims
        chain, draw, coordinate), ``sample_stats`` (dims chain, draw) and ``prior`` (dims draw).
    timings_s : dict
        Seconds of wall time by stage.
    info : dict
        What the sampler did, in numbers.
    """

    data: xr.DataTree
    timings_s: dict[str, float]
    info: dict[str, Any]


@dataclass(frozen=True)
class _Parts:
    """The parts that have mass: their draws, those that each chain takes and their masses, (chain, part)."""

    draws: list[tuple[Floats, xr.Dataset]]
    counts: Any
    masses: Floats
    neglected: float
    efficiency: float


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


class Sampler:
    """A model compiled for one trace, or for many of the same model and noise one after the other.

    Parameters
    ----------
    model : LatencyModel
    steps : DataFrame
        Cleaned steps.
    priors : Priors
    noise : str
        One of the model's noise options.
    """

    def __init__(self, model: LatencyModel, steps: pd.DataFrame, priors: Priors, *, noise: str) -> None:
        self.clock = _Clock()
        self.model, self.steps, self.priors, self.effects = model, steps, priors, effects_of(model)
        self.parameters = [p.name for p in all_parameters(model, noise)]
        with self.clock("compile"):
            self.pymc_model = model.build(steps, priors, noise=noise)
            coordinates = model.coordinates(steps, priors, noise=noise)
            if coordinates is None:
                from bayes_sched.sampling.coordinates import LogCoordinates

                coordinates = LogCoordinates(priors)
            self.coordinates = coordinates
            self.density = Density(self.pymc_model, coordinates)
        self.nuts = PartSampler(self.density, self._data)

    def take(self, steps: pd.DataFrame) -> None:
        """Take other steps of the same columns in place of those before; nothing is compiled again.

        For models made by :func:`~bayes_sched.likelihood.student_t_model` that have no effects.
        """
        values, coords = step_data(self.model, steps)
        with self.pymc_model:
            pm.set_data(values, coords=coords)
        self.coordinates.adapt(with_positive_latencies(steps))
        self.steps = steps

    def _data(self) -> dict[str, Any]:
        """Return the values of the model's and the coordinates' data, which may have been replaced."""
        given = {v.name: v.get_value() for v in self.pymc_model.data_vars} | dict(self.coordinates.data)
        return {name: value for name, value in given.items() if name in self.density.data_names}

    def explore(self, rng: np.random.Generator, progress: Progress | None = None) -> Pilot:
        """Run the pilot."""
        medians = {name: np.float64(p.mu) for name, p in self.priors.items()}
        start = self.coordinates.from_logs(medians | dict(self.coordinates.start))
        with self.clock("pilot"):
            return run_pilot(
                self.density,
                start=start,
                scan_mean=self.coordinates.scan_mean,
                scan_scale=self.coordinates.scan_scale,
                rng=rng,
                wide=self.is_wide,
                progress=None if progress is None else lambda text: progress(text, None),
            )

    @property
    def is_wide(self) -> bool:
        """Whether there are too many coordinates for importance sampling."""
        return self.density.dim >= _WIDE

    def wander(
        self,
        mixture: GaussianMixture,
        rng: np.random.Generator,
        settings: SamplerSettings,
        progress: Progress | None = None,
    ) -> GaussianMixture:
        """Return a mixture fitted to where NUTS went, from one that resembles the posterior badly.

        NUTS finds what importance sampling misses: mass that a thin bent ridge connects. Its chains need not
        converge. Components far from all they visited are kept: NUTS may not have reached those modes.
        """
        visited = mixture
        for number, draws in enumerate(_WANDERING):
            whole = Partition(visited.collapsed())
            paced = replace(settings, tune=_WANDERING[0], seed=settings.seed + number)
            with self.clock("pilot"):
                points = self.nuts.draw(whole, 0, draws, paced, progress)[0].reshape(-1, self.density.dim)
                equal = np.full(len(points), 1.0 / len(points))
                visited = fit_mixture(points, equal, num_components=NUM_COMPONENTS, rng=rng)
        return visited.completed(mixture)

    def masses(self, partition: Partition, chains: int, rng: np.random.Generator) -> tuple[Floats, float]:
        """Return each chain's own estimate of the mass of the parts, dims (chain, part), and its efficiency.

        Points are drawn until a chain's estimate rests on enough effective ones.
        """
        masses, effective, num_points = [], 0.0, 0
        with self.clock("masses"):
            for _ in range(chains):
                points = np.empty((0, self.density.dim))
                values = np.empty(0)
                for _ in range(_MAX_MASS_BATCHES):
                    batch = partition.mixture.sample(_MASS_BATCH, rng)
                    points = np.vstack([points, batch])
                    values = np.append(values, self.density.values(batch))
                    found = effective_number(values - partition.mixture.logpdf(points))
                    if found >= _MASS_EFFECTIVE:
                        break
                masses.append(partition.masses(points, values))
                effective += found
                num_points += len(points)
        return np.array(masses), effective / num_points

    def run(self, settings: SamplerSettings, progress: Progress | None = None) -> Samples:
        """Explore, then sample every part, then put the parts together."""
        # Matrices this small are slower on several threads, and their rounding depends on how many there are.
        with threadpool_limits(1):
            return self._run(settings, progress)

    def _run(self, settings: SamplerSettings, progress: Progress | None) -> Samples:
        rng = np.random.default_rng(settings.seed)
        self.nuts.num_gradients = self.nuts.num_warm_up_gradients = 0
        pilot = self.explore(rng, progress)
        if settings.sampler == "nutpie":
            with self.clock("compile"):
                self.nuts.compile(Partition(pilot.mixture))
        found = (self._wide_parts if self.is_wide else self._parts)(pilot, settings, rng, progress)
        coordinates, stats = interleave(found.draws, found.counts)
        info = {
            "num_modes": pilot.num_modes,
            "num_parts": len(found.draws),
            "part_masses": [float(m) for m in found.masses.mean(axis=0)],
            "neglected_mass": found.neglected,
            "pilot_efficiency": pilot.efficiency,
            "mixture_efficiency": found.efficiency,
            "num_pilot_evaluations": pilot.num_evaluations,
            "num_gradients": self.nuts.num_gradients,
        }
        data = self._tree(coordinates, stats, rng)
        return Samples(data, dict(self.clock.seconds), info)

    def _parts(
        self,
        pilot: Pilot,
        settings: SamplerSettings,
        rng: np.random.Generator,
        progress: Progress | None,
    ) -> _Parts:
        """Sample the parts that the pilot's mixture makes; importance sampling finds their masses."""
        mixture = pilot.mixture
        if pilot.efficiency < GOOD_EFFICIENCY:
            mixture = self.wander(mixture, rng, settings, progress)
        partition = Partition(mixture.inflated(INFLATION))
        masses, efficiency = self.masses(partition, settings.chains, rng)
        kept = np.flatnonzero(masses.mean(axis=0) >= _NEGLIGIBLE_MASS)
        neglected = 1.0 - float(masses.mean(axis=0)[kept].sum())
        counts = allocate(masses[:, kept], settings.draws)
        wanted = np.maximum(counts.max(axis=0), settings.chains)
        draws = self._draw_parts(partition, kept, wanted, settings, progress)
        return _Parts(draws, counts, masses[:, kept], neglected, efficiency)

    def _wide_parts(
        self,
        pilot: Pilot,
        settings: SamplerSettings,
        rng: np.random.Generator,
        progress: Progress | None,
    ) -> _Parts:
        """Sample the parts that NUTS finds; bridge sampling finds their masses, from each chain's draws."""
        with self.clock("pilot"):
            division = divide(
                self.nuts,
                pilot.mixture.untangled(MOST_MODES),
                head=getattr(self.coordinates, "num_scalars", self.density.dim),
                settings=settings,
                rng=rng,
                progress=progress,
            )
        partition, expected = division.partition, division.masses
        kept = np.flatnonzero(expected >= _NEGLIGIBLE_MASS)
        spare = _SPARE[0] * expected[kept] * settings.draws + _SPARE[1]
        draws = self._draw_parts(partition, kept, spare.astype(np.int64), settings, progress)
        with self.clock("masses"):
            masses = np.array(
                [
                    part_masses(self.density, partition, kept, [points[chain] for points, _ in draws], rng)
                    for chain in range(settings.chains)
                ]
            )
        counts = allocate(masses, settings.draws)
        short = np.flatnonzero(counts.max(axis=0) > spare.astype(np.int64))
        again = self._draw_parts(partition, kept[short], counts.max(axis=0)[short], settings, progress)
        for position, found in zip(short, again, strict=True):
            draws[position] = found
        return _Parts(draws, counts, masses, 1.0 - float(expected[kept].sum()), 0.0)

    def _draw_parts(
        self,
        partition: Partition,
        parts: Any,
        draws: Any,
        settings: SamplerSettings,
        progress: Progress | None,
    ) -> list[tuple[Floats, xr.Dataset]]:
        """Sample parts, dims (part,), as many draws each; in their order."""
        found = []
        for number, (part, count) in enumerate(zip(parts, draws, strict=True)):
            told = portion(progress, number, len(parts))
            with self.clock("sampling"):
                found.append(self.nuts.draw_carefully(partition, int(part), int(count), settings, told))
        return found

    def _tree(self, coordinates: Floats, stats: xr.Dataset, rng: np.random.Generator) -> xr.DataTree:
        logs, _ = self.coordinates.to_logs(coordinates, np)
        posterior = xr.Dataset({name: (("chain", "draw"), np.exp(logs[name])) for name in self.parameters})
        posterior = posterior.assign_coords(chain=stats["chain"], draw=stats["draw"])
        posterior = with_effects(posterior, self.effects, rng)  # right for the levels without data
        for effect in self.effects:
            posterior[effect.name][..., effect.seen(self.steps)] = logs[effect.name]
        value = xr.DataArray(
            coordinates,
            dims=("chain", "draw", "coordinate"),
            coords={
                "chain": stats["chain"],
                "draw": stats["draw"],
                "coordinate": list(self.coordinates.names),
            },
        )
        prior = xr.Dataset(
            {name: ("draw", np.exp(logs)) for name, logs in self.priors.draw(_PRIOR_DRAWS, rng).items()}
        )
        prior = with_effects(prior, self.effects, rng)
        return xr.DataTree.from_dict(
            {
                "posterior": posterior,
                "coordinates": value.to_dataset(name="value"),
                "sample_stats": stats,
                "prior": prior,
            }
        )


def sample(
    model: LatencyModel,
    steps: pd.DataFrame,
    priors: Priors,
    *,
    noise: str,
    settings: SamplerSettings,
    progress: Progress | None = None,
) -> Samples:
    """Sample the posterior of a model given steps.

    Parameters
    ----------
    model : LatencyModel
    steps : DataFrame
        Cleaned steps: ``batch_size``, ``total_tokens``, ``latency_ms`` and what else the model needs.
    priors : Priors
        One for each parameter of the model and its noise.
    noise : str
        One of the model's noise options.
    settings : SamplerSettings
    progress : callable, optional
        Called with a stage in words and the share done, or None where that is not known.

    Returns
    -------
    Samples
    """
    if progress is not None:
        progress("compiling the model", None)
    return Sampler(model, steps, priors, noise=noise).run(settings, progress)
