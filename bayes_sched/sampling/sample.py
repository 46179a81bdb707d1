"""From a model and steps to draws of the posterior: explore, sample each component, put them together."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import arviz as az
import numpy as np
import pandas as pd
import pymc as pm
import xarray as xr
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits

from bayes_sched.arrays import Floats, Ints
from bayes_sched.model.likelihood import effects_of, step_data, with_effects
from bayes_sched.model.priors import Priors
from bayes_sched.model.protocol import LatencyModel, all_parameters
from bayes_sched.sampling.bridge import INFLATION, MOST_MODES, bridge_masses, find_components
from bayes_sched.sampling.components import Components, Density
from bayes_sched.sampling.coordinates import LogCoordinates, with_positive_latencies
from bayes_sched.sampling.exploration import (
    GOOD_EFFICIENCY,
    NUM_COMPONENTS,
    Exploration,
    effective_number,
    explore,
)
from bayes_sched.sampling.mixture import GaussianMixture, fit_mixture
from bayes_sched.sampling.nuts import SAMPLE_STATS, ComponentSampler, Progress, SamplerSettings, portion
from bayes_sched.sampling.whitened import LevelCoordinates, explore_levels

_PRIOR_DRAWS = 4000
_VISITS = (200, 500)  # draws a chain of NUTS in two rounds, where importance sampling finds a bad mixture
_WIDE = 24  # coordinates from which importance sampling is hopeless
_MASS_BATCH, _MAX_MASS_BATCHES = 500, 40  # draws of the mixture for a chain's estimate of the masses
_MASS_EFFECTIVE = 400.0  # effective ones among them that are enough
_WIDE_TUNE = 200  # tuning draws, at least, in many coordinates
_LEAST_EFFECTIVE, _MOST_R_HAT = 450.0, 1.009  # that its draws must have, as the gate asks
_NEGLIGIBLE_MASS = 2e-3  # a component of less posterior mass than this is left out
_SPARE = (1.3, 20)  # times as many draws, and so many more, as one of uncertain mass is expected to need


@dataclass(frozen=True)
class Samples:
    """What sampling delivers.

    The groups of `data` are ``posterior`` (dims chain, draw: every parameter), ``coordinates`` (variable
    ``value``, dims chain, draw, coordinate), ``sample_stats`` (dims chain, draw) and ``prior`` (dims draw).
    """

    data: xr.DataTree
    timings_s: dict[str, float]  # of wall time by stage
    info: dict[str, Any]  # what the sampler did, in numbers


def sample(
    model: LatencyModel,
    steps: pd.DataFrame,
    priors: Priors,
    *,
    noise: str,
    settings: SamplerSettings,
    progress: Progress | None = None,
) -> Samples:
    """Sample the posterior of a model, with one of its noise options, given cleaned steps."""
    sampler = Sampler(model, steps, priors, noise=noise, progress=progress)
    return sampler.run(settings, progress)


@dataclass
class _Clock:
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class _Run:
    """What a run is asked for, the one source of its random numbers, and who is told."""

    settings: SamplerSettings
    rng: np.random.Generator
    progress: Progress | None


@dataclass(frozen=True)
class _Sampled:
    """Components that have mass: their draws, those that each chain takes and masses, (chain, component)."""

    draws: list[tuple[Floats, xr.Dataset]]
    counts: Ints
    masses: Floats
    neglected: float
    efficiency: float


class Sampler:
    """A model compiled for one trace, or for many of the same model and noise one after the other."""

    def __init__(
        self,
        model: LatencyModel,
        steps: pd.DataFrame,
        priors: Priors,
        *,
        noise: str,
        progress: Progress | None = None,
    ) -> None:
        def tell(text: str) -> None:
            if progress is not None:
                progress(text, None)

        tell("compiling the model")
        self.clock = _Clock()
        self.model, self.steps, self.priors, self.effects = model, steps, priors, effects_of(model)
        self.parameters = [p.name for p in all_parameters(model, noise)]
        with self.clock("compile"):
            self.pymc_model = model.build(steps, priors, noise=noise)
            own = model.coordinates(steps, priors, noise=noise)
            self.coordinates = LogCoordinates(priors) if own is None else own
            self.density = Density(self.pymc_model, self.coordinates, tell)
        self.nuts = ComponentSampler(self.density, self._data)

    @property
    def is_wide(self) -> bool:
        """Whether there are too many coordinates for importance sampling."""
        return self.density.dim >= _WIDE

    def take(self, steps: pd.DataFrame) -> None:
        """Take other steps of the same columns in place of those before; nothing is compiled again.

        For models made by :func:`~bayes_sched.model.likelihood.student_t_model` that have no effects.
        """
        by_cell = "cell_of_step" in self.pymc_model.named_vars
        values, coords = step_data(self.model, steps, by_cell=by_cell)
        with self.pymc_model:
            pm.set_data(values, coords=coords)
        self.coordinates.adapt(with_positive_latencies(steps))
        self.density.rebind()
        self.steps = steps

    def _data(self) -> dict[str, Any]:
        """Return the values of the model's and the coordinates' data, which may have been replaced."""
        given = {v.name: v.get_value() for v in self.pymc_model.data_vars} | dict(self.coordinates.data)
        return {name: value for name, value in given.items() if name in self.density.data_names}

    def run(self, settings: SamplerSettings, progress: Progress | None = None) -> Samples:
        """Explore, then sample every component, then put them together."""
        # Matrices this small are slower on several threads, and their rounding depends on how many there are.
        with threadpool_limits(1):
            return self._sample(_Run(settings, np.random.default_rng(settings.seed), progress))

    def _sample(self, run: _Run) -> Samples:
        self.nuts.num_gradients = 0
        explored = self._explore(run)
        if run.settings.sampler == "nutpie":
            with self.clock("compile"):
                self.nuts.compile(Components(explored.mixture))
        found = (self._by_bridge if self.is_wide else self._by_importance)(explored, run)
        coordinates, stats = interleave(found.draws, found.counts)
        info = {
            "num_modes": explored.num_modes,
            "num_parts": len(found.draws),
            "part_masses": [float(m) for m in found.masses.mean(axis=0)],
            "neglected_mass": found.neglected,
            "pilot_efficiency": explored.efficiency,
            "mixture_efficiency": found.efficiency,
            "num_pilot_evaluations": explored.num_evaluations,
            "num_gradients": self.nuts.num_gradients,
        }
        return Samples(self._tree(coordinates, stats, run.rng), dict(self.clock.seconds), info)

    def _explore(self, run: _Run) -> Exploration:
        medians = {name: np.float64(p.mu) for name, p in self.priors.items()}
        tell = run.progress
        with self.clock("pilot"):
            if isinstance(self.coordinates, LevelCoordinates):
                return explore_levels(self.density, self.coordinates, self.priors)
            return explore(
                self.density,
                start=self.coordinates.from_logs(medians | dict(self.coordinates.start)),
                scan_mean=self.coordinates.scan_mean,
                scan_scale=self.coordinates.scan_scale,
                rng=run.rng,
                wide=self.is_wide,
                progress=lambda text: None if tell is None else tell(text, None),
            )

    def _by_importance(self, explored: Exploration, run: _Run) -> _Sampled:
        """Sample the components of the mixture that was found; importance sampling finds their masses."""
        mixture = explored.mixture
        if explored.efficiency < GOOD_EFFICIENCY:
            mixture = self._visited(mixture, run)
        components = Components(mixture.inflated(INFLATION))
        masses, efficiency = self._masses(components, run)
        kept = np.flatnonzero(masses.mean(axis=0) >= _NEGLIGIBLE_MASS)
        neglected = 1.0 - float(masses.mean(axis=0)[kept].sum())
        counts = allocate(masses[:, kept], run.settings.draws)
        enough = np.maximum(counts.max(axis=0), run.settings.chains)
        draws = self._draw(components, kept, enough, run)
        return _Sampled(draws, counts, masses[:, kept], neglected, efficiency)

    def _visited(self, mixture: GaussianMixture, run: _Run) -> GaussianMixture:
        """Return a mixture fitted to where NUTS went, from one that resembles the posterior badly.

        NUTS finds what importance sampling misses: mass that a thin bent ridge connects. Its chains need not
        converge. Components far from all they visited are kept: NUTS may not have reached those modes.
        """
        visited = mixture
        for number, draws in enumerate(_VISITS):
            whole = Components(visited.collapsed())
            paced = replace(run.settings, tune=_VISITS[0], seed=run.settings.seed + number)
            with self.clock("pilot"):
                points = self.nuts.draw(whole, 0, draws, paced, run.progress)[0].reshape(-1, self.density.dim)
                visited = fit_mixture(points, num_components=NUM_COMPONENTS, rng=run.rng)
        return visited.completed(mixture)

    def _masses(self, components: Components, run: _Run) -> tuple[Floats, float]:
        """Return each chain's own estimate of the masses, dims (chain, component), and its efficiency.

        Points are drawn until a chain's estimate rests on enough effective ones.
        """
        masses, effective, num_points = [], 0.0, 0
        with self.clock("masses"):
            for _ in range(run.settings.chains):
                points, values = np.empty((0, self.density.dim)), np.empty(0)
                for _ in range(_MAX_MASS_BATCHES):
                    batch = components.mixture.sample(_MASS_BATCH, run.rng)
                    points = np.vstack([points, batch])
                    values = np.append(values, self.density.values(batch))
                    found = effective_number(values - components.mixture.logpdf(points))
                    if found >= _MASS_EFFECTIVE:
                        break
                masses.append(components.masses(points, values))
                effective += found
                num_points += len(points)
        return np.array(masses), effective / num_points

    def _by_bridge(self, explored: Exploration, run: _Run) -> _Sampled:
        """Sample the components that NUTS finds; bridge sampling finds their masses, from a chain's draws.

        In whitened coordinates a posterior is sampled whole, if chains that start at its modes mix.
        """
        settings = replace(run.settings, tune=max(run.settings.tune, _WIDE_TUNE))
        run = replace(run, settings=settings)
        if isinstance(self.coordinates, LevelCoordinates):
            with self.clock("sampling"):
                found = self.nuts.draw_whole(explored.mixture, settings.draws, settings, run.progress)
            if self._mixes(*found):
                masses = np.ones((settings.chains, 1))
                return _Sampled([found], allocate(masses, settings.draws), masses, 0.0, 0.0)
        with self.clock("pilot"):
            components, expected = find_components(
                self.nuts,
                explored.mixture.untangled(MOST_MODES),
                head=getattr(self.coordinates, "num_scalars", self.density.dim),
                settings=settings,
                rng=run.rng,
                progress=run.progress,
            )
        kept = np.flatnonzero(expected >= _NEGLIGIBLE_MASS)
        spare = (_SPARE[0] * expected[kept] * settings.draws + _SPARE[1]).astype(np.int64)
        draws = self._draw(components, kept, spare, run)
        with self.clock("masses"):
            of_chains = ([points[chain] for points, _ in draws] for chain in range(settings.chains))
            masses = np.array(
                [bridge_masses(self.density, components, kept, own, run.rng) for own in of_chains]
            )
        counts = allocate(masses, settings.draws)
        short = np.flatnonzero(counts.max(axis=0) > spare)
        again = self._draw(components, kept[short], counts.max(axis=0)[short], run)
        for position, found in zip(short, again, strict=True):
            draws[position] = found
        return _Sampled(draws, counts, masses, 1.0 - float(expected[kept].sum()), 0.0)

    def _mixes(self, draws: Floats, stats: xr.Dataset) -> bool:
        """Return whether chains through the whole posterior agree, dims (chain, draw, coordinate)."""
        if stats["diverging"].any():
            return False
        table = xr.DataArray(draws, dims=("chain", "draw", "coordinate"))
        least = min(float(az.ess(table, method=method).min()) for method in ("bulk", "tail"))
        return least >= _LEAST_EFFECTIVE and float(az.rhat(table).max()) <= _MOST_R_HAT

    def _draw(
        self, components: Components, numbers: Ints, draws: Ints, run: _Run
    ) -> list[tuple[Floats, xr.Dataset]]:
        """Sample some components, dims (component,), as many draws of each; in their order."""
        found = []
        for position, (number, count) in enumerate(zip(numbers, draws, strict=True)):
            told = portion(run.progress, position, len(numbers))
            with self.clock("sampling"):
                found.append(
                    self.nuts.draw_carefully(components, int(number), int(count), run.settings, told)
                )
        return found

    def _tree(self, coordinates: Floats, stats: xr.Dataset, rng: np.random.Generator) -> xr.DataTree:
        dims = {"chain": stats["chain"], "draw": stats["draw"]}
        logs, _ = self.coordinates.to_logs(coordinates, np)
        posterior = xr.Dataset({name: (("chain", "draw"), np.exp(logs[name])) for name in self.parameters})
        posterior = with_effects(posterior.assign_coords(dims), self.effects, rng)  # for levels without data
        for effect in self.effects:
            posterior[effect.name][..., effect.seen(self.steps)] = logs[effect.name]
        value = xr.Dataset(
            {"value": (("chain", "draw", "coordinate"), coordinates)},
            coords={**dims, "coordinate": list(self.coordinates.names)},
        )
        drawn = self.priors.draw(_PRIOR_DRAWS, rng)
        prior = xr.Dataset({name: ("draw", np.exp(logs)) for name, logs in drawn.items()})
        return xr.DataTree.from_dict(
            {
                "posterior": posterior,
                "coordinates": value,
                "sample_stats": stats,
                "prior": with_effects(prior, self.effects, rng),
            }
        )


def allocate(masses: Floats, draws: int) -> Ints:
    """Return the draws a chain gets of each component, dims (chain, component): largest remainders."""
    exact = masses / masses.sum(axis=1, keepdims=True) * draws
    counts = np.floor(exact).astype(np.int64)
    for row, remainder in zip(counts, exact - counts, strict=True):
        row[np.argsort(-remainder)[: draws - row.sum()]] += 1
    return counts


def interleave(found: list[tuple[Floats, xr.Dataset]], counts: ArrayLike) -> tuple[Floats, xr.Dataset]:
    """Merge the components of each chain evenly, each in its own order: autocorrelation stays visible."""
    arrays = {name: [stats[name].to_numpy() for _, stats in found] for name in SAMPLE_STATS}
    arrays["x"] = [x for x, _ in found]
    rows: dict[str, list[Any]] = {name: [] for name in (*arrays, "part")}
    for chain, count in enumerate(np.asarray(counts)):
        position = np.concatenate([(np.arange(n) + 0.5) / n for n in count if n])
        order = np.argsort(position, kind="stable")
        for name, each in arrays.items():
            rows[name].append(np.concatenate([a[chain, :n] for a, n in zip(each, count, strict=True)])[order])
        rows["part"].append(np.repeat(np.arange(len(found)), count)[order])
    points = np.stack(rows.pop("x"))
    coords = {"chain": np.arange(points.shape[0]), "draw": np.arange(points.shape[1])}
    return points, xr.Dataset({k: (("chain", "draw"), np.stack(v)) for k, v in rows.items()}, coords)
