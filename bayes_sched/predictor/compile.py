"""From a fit to the tables of a predictor: grids refined until the tables are as close as asked for."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from itertools import product

import numpy as np
import pandas as pd
import xarray as xr
from scipy.interpolate import PchipInterpolator

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.files import VERSION
from bayes_sched.model.likelihood import effects_of
from bayes_sched.posterior.fitted import DEFAULT_MAX_DRAWS, FittedModel
from bayes_sched.posterior.prediction import OverDraws, StudentTMixture
from bayes_sched.posterior.typical_load import LOADS
from bayes_sched.predictor.monitor import Calibration, calibrated
from bayes_sched.predictor.predictor import GIVEN, KINDS, Predictor, Provenance
from bayes_sched.predictor.tables import LOGIT_END, POSITION_END, Tables, as_stored
from bayes_sched.steps import POSSIBLE, SIZES

MARGIN = 4.0
"""How many times the largest batch and token count of the trace the tables reach."""
MEAN_ERROR, QUANTILE_ERROR = 0.0006, 0.005
"""Largest relative errors inside the region at which refinement stops; quantiles from 0.001 to 0.999."""

LARGEST_ERROR = 0.01
"""A fit whose tables are not as close at 95 % of the checked steps after all refinements is refused."""

LEVELS = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
"""Quantiles that are checked."""
TAIL_LEVELS = (0.0001, 0.001, 0.01, 0.99, 0.999, 0.9999)
"""Probabilities whose tails are checked."""

_NUM_LOGITS = 97
_POSITIONS = np.linspace(-POSITION_END, POSITION_END, 161)
# Widest spacing of nodes in log B and log S. Shapes change most at few requests, which traces hold few of.
_FINE, _COARSE = np.array([0.125, 0.125]), np.array([0.5, 0.5])
_HALVINGS = np.array([[0, 0], [0, 1], [1, 1], [1, 2], [2, 2]])  # of the fine grid: S first; else B
_NUM_CHECKS = 300
_SMALLEST_TAIL = 1e-14
_USUAL_SHARE, _BETTER = 0.95, 0.8
_MOST_REPLAYED = 50_000
_LINEAR = 1e-6  # of a mean, by which it may be off a straight line


def compile_predictor(
    fit: FittedModel, *, max_draws: int | None = DEFAULT_MAX_DRAWS, allow_unconverged: bool = False
) -> Predictor:
    """Return the fit as a predictor: its posterior predictive distribution in tables.

    Parameters
    ----------
    fit : FittedModel
    max_draws : int or None
        Posterior draws to use, evenly spaced, by default those of other predictions; None uses all.
    allow_unconverged : bool
        Whether a fit that failed its convergence gate is compiled; the predictor says so.

    Raises
    ------
    InputError
        The fit has not converged, its model needs what tables do not know of a step or is not linear in it,
        or no grid is fine enough.
    """
    metadata = fit.metadata
    if not (fit.converged or allow_unconverged):
        problems = "; ".join(metadata.problems) or "see its report"
        raise InputError(
            f"the fit {metadata.name} has not converged ({problems}): fit the trace again, or compile it "
            "all the same (allow_unconverged=True)"
        )
    loads = tuple(name for name in fit.model.columns if name in LOADS)
    unknown = [name for name in fit.model.columns if name not in (*SIZES, *LOADS, "num_prefill_reqs")]
    if unknown or (loads and fit.contexts is None):
        raise InputError(
            f"the model {fit.model.name} of {metadata.name} needs {', '.join(unknown or loads)} of every "
            "step, which tables do not know or the fit keeps nothing of: ask the fit itself (FittedModel)"
        )
    kinds = [_Kind(fit, max_draws, *kind) for kind in product((False, True), (loads, ()) if loads else ((),))]
    found = {kind.name: _refined(kind, bool(loads)) for kind in kinds}
    errors: dict[str, float] = {}
    for _, each in found.values():
        errors |= {name: max(value, errors.get(name, 0.0)) for name, value in each.items()}
    provenance = Provenance(
        name=metadata.name,
        model=metadata.model.name,
        noise=metadata.noise,
        model_sha256=metadata.model.sha256,
        labels=dict(metadata.labels),
        traces=tuple(trace.path for trace in metadata.traces),
        trace_sha256=metadata.trace_sha256,
        rows_used=metadata.rows.used,
        num_draws=len(fit.evaluator(max_draws).mixture.nu),
        converged=metadata.converged,
        fitted_at=metadata.created_at,
        bayes_sched_version=VERSION,
        region_text=fit.region.text,
        errors=errors,
        loads={name: kinds[0].most(name) for name in loads},
    )
    predictor = Predictor({name: tables for name, (tables, _) in found.items()}, fit.region, provenance)
    drift = asdict(_calibrated(predictor, fit.observed)) if len(fit.observed) else {}
    return Predictor(
        {name: tables for name, (tables, _) in found.items()}, fit.region, replace(provenance, drift=drift)
    )


def _calibrated(predictor: Predictor, observed: pd.DataFrame) -> Calibration:
    """Replay the last steps of the trace, with what the fit asks of them besides their sizes and without."""
    told = [name for name in (*predictor.loads, "num_prefill_reqs") if name in observed and predictor.loads]
    steps = observed.tail(_MOST_REPLAYED).dropna(subset=told)
    replays = []
    for names in ([], told) if told else ([],):
        given = [dict(zip(names, row, strict=True)) for row in steps[names].to_numpy(float).tolist()]
        sizes = steps[[*SIZES, "latency_ms"]].to_numpy(float).tolist()
        asked = ((predictor.step(b, s, more), x) for (b, s, x), more in zip(sizes, given, strict=True))
        replays.append([(step, x) for (step, is_outside), x in asked if not is_outside])
    return calibrated(replays)


@dataclass(frozen=True)
class _Kind:
    """A kind of steps of a fit: exact answers for arrays of B and S, dims (step,), and nodes for tables."""

    fit: FittedModel
    max_draws: int | None
    prefill: bool
    loads: tuple[str, ...]
    """What is given of each step besides B and S; where it is not, answers integrate over the trace's."""

    @property
    def name(self) -> str:
        """Name of its tables."""
        return KINDS[self.prefill] + (GIVEN if self.loads else "")

    def most(self, load: str) -> float:
        """Return the most of a load that steps of the trace have, a request."""
        if load in self.fit.observed:
            return float((self.fit.observed[load] / self.fit.observed["batch_size"]).max())
        b, s = (self.fit.cells[name].to_numpy() for name in SIZES)
        return float((self.typical(b, s)[self.loads.index(load)] / b).max())

    def nodes(self, spacing: Floats) -> tuple[Floats, Floats]:
        """Return nodes in B and S: both sides of the edges of levels, and no gap wider than `spacing`."""
        b_end, s_end = (MARGIN * float(self.fit.cells[name].max()) for name in SIZES)
        effects = [effect for effect in effects_of(self.fit.model) if effect.prefill == self.prefill]
        edges = {name: {top for e in effects if e.column == name for top in e.upper} for name in SIZES}
        if self.prefill:
            b, s = SIZES
            return _axis(b_end, spacing[0], edges[b]), _axis(s_end, spacing[1], edges[s])
        return np.ones(1), _axis(b_end, spacing[0], set.union(*edges.values()))

    def steps(self, b: Floats, s: Floats) -> tuple[Floats, Floats]:
        """Return the steps at nodes, dims (node_b * node_s,)."""
        if not self.prefill:
            return s, s
        grid_b, grid_s = np.meshgrid(b, s, indexing="ij")
        if self.is_told:
            grid_b = np.minimum(grid_b, np.maximum(grid_s - 1.0, 1.0))
        return grid_b.ravel(), grid_s.ravel()

    @property
    def is_told(self) -> bool:
        """Whether anything but B and S, or their levels, tells steps with prefill from others."""
        return bool(effects_of(self.fit.model)) or len(self.fit.model.columns) > len(SIZES)

    def seen(self, b: Floats, s: Floats, levels: Floats) -> Floats:
        """Return loads that the trace shows near steps, each at one of `levels`: dims (load, step)."""
        contexts = self.fit.contexts
        assert contexts is not None
        found = contexts.at(xr.Dataset({"batch_size": ("cell", b), "total_tokens": ("cell", s)}), levels)
        each = np.arange(b.size) % levels.size, np.arange(b.size)
        return np.stack([found[name].transpose("sample", "cell").to_numpy()[each] for name in self.loads])

    def typical(self, b: Floats, s: Floats) -> Floats:
        """Return loads that are typical of the trace, a smooth function of the size: dims (load, step)."""
        sizes = xr.Dataset(
            {"batch_size": ("step", b), "total_tokens": ("step", s), POSSIBLE: ("step", b > 0)}
        )
        whole = self.fit.completed(
            sizes.assign(num_prefill_reqs=("step", np.full(b.size, 1.0 * self.prefill)))
        )
        return np.stack([whole[name].to_numpy() for name in self.loads])

    def ask(
        self, b: Floats, s: Floats, loads: Floats | None, function: OverDraws, size: int, chunks: float = 1.0
    ) -> Floats:
        """Return a function of all draws at steps with some loads, or typical ones: dims (row, step)."""
        columns = {**dict(zip(SIZES, (b, s), strict=True)), POSSIBLE: np.ones(b.size, dtype=bool)}
        if self.loads:
            loads = self.typical(b, s) if loads is None else loads
            columns |= dict(zip(self.loads, loads, strict=True))
            columns["num_prefill_reqs"] = np.full(b.size, chunks * self.prefill)
        steps = xr.Dataset({name: ("step", values) for name, values in columns.items()})
        evaluator = self.fit.evaluator(self.max_draws)
        found = evaluator.over_draws(steps, function, leading={"row": np.arange(float(size))})
        return found.transpose("row", "step").to_numpy()

    def moments(self, b: Floats, s: Floats, loads: Floats | None = None, chunks: float = 1.0) -> Floats:
        """Return mean, width and standard deviation but for the tails, ms, dims (3, step)."""

        def function(mixture: StudentTMixture, mean: Floats, scale: Floats, x: object) -> Floats:
            centre, width = _moments(mean, scale)
            return np.stack([centre, width, np.sqrt(width**2 + mean.var(axis=0))])

        return self.ask(b, s, loads, function, 3, chunks)

    def logits(self, b: Floats, s: Floats) -> Floats:
        """Return the logits of P(latency <= x) at even standardised positions, dims (position, step)."""

        def function(mixture: StudentTMixture, mean: Floats, scale: Floats, x: object) -> Floats:
            centre, width = _moments(mean, scale)
            return np.stack([_logit(mixture, mean, scale, centre + width * np.sinh(y)) for y in _POSITIONS])

        return self.ask(b, s, None, function, len(_POSITIONS))

    def quantiles(self, b: Floats, s: Floats, loads: Floats, levels: tuple[float, ...]) -> Floats:
        """Return quantiles, ms, dims (quantile, step)."""

        def function(mixture: StudentTMixture, mean: Floats, scale: Floats, x: object) -> Floats:
            return np.stack([mixture.quantile(mean, scale, q) for q in levels])

        return self.ask(b, s, loads, function, len(levels))

    def linear(self, b: Floats, s: Floats) -> tuple[Floats, Floats, Floats, Floats]:
        """Return mean without loads, squares of relative width and of floor, and slopes, (load, step)."""
        if not self.loads:
            mean, width, _ = self.moments(b, s)
            return mean, (width / mean) ** 2, np.zeros(b.size), np.empty((0, b.size))
        typical = self.typical(b, s)
        (bare, _, bare_spread), (mean, width, spread) = (
            self.moments(b, s, x) for x in (0.0 * typical, typical)
        )
        unit = np.where(typical > 0.0, typical, b)
        each = [self.moments(b, s, unit * row[:, None])[0] for row in np.eye(len(unit))]
        slopes = (np.stack(each) - bare) / unit
        twice = self.moments(b, s, 2.0 * typical, chunks=2.0)[0]
        if (np.abs(bare + 2.0 * (slopes * typical).sum(axis=0) - twice) > _LINEAR * twice).any():
            raise InputError(
                f"the mean latency of the model {self.fit.model.name} is not linear in "
                f"{', '.join(self.loads)} alone, as tables have it: ask the fit itself (FittedModel)"
            )
        # Widths grow with the mean as noise and doubt about the mean together do.
        rise = mean**2 - bare**2
        with np.errstate(divide="ignore", invalid="ignore"):
            growth = np.where(rise > 1e-9 * mean**2, (spread**2 - bare_spread**2) / rise, np.inf)
        share = np.clip(growth * (mean / spread) ** 2, 0.0, 1.0)
        return bare, share * (width / mean) ** 2, (1.0 - share) * width**2, slopes


def _axis(end: float, spacing: float, edges: set[float]) -> Floats:
    """Return nodes from 1 to `end`: the last number before each edge, the first behind it, and others."""
    inner = sorted(edge for edge in edges if 1.0 <= edge < end)
    spans = zip((1.0, *(edge + 1.0 for edge in inner)), (*inner, end), strict=True)
    parts = [np.geomspace(low, high, 1 + math.ceil(math.log(high / low) / spacing)) for low, high in spans]
    return np.unique(np.concatenate(parts))


def _moments(mean: Floats, scale: Floats) -> Floats:
    """Return mean and width of mixtures, dims (draw, cell) -> (2, cell)."""
    # The width is that of the noise alone: its tails are those of the mixture, which then have the same shape
    # where the mean is well known and where it is not.
    return np.stack([mean.mean(axis=0), scale.mean(axis=0)])


def _logit(mixture: StudentTMixture, mean: Floats, scale: Floats, x: Floats) -> Floats:
    """Return the logit of a mixture's distribution function, below 0 ms as well, dims (cell,)."""
    probability = np.empty(x.shape)
    below = x < 0.0  # where the mixture's own function is cut off
    for part, sign in ((below, -1.0), (~below, 1.0)):
        if part.any():
            found = mixture.cdf(sign * mean[:, part], scale[:, part], sign * x[part])
            probability[part] = found if sign > 0.0 else 1.0 - found
    probability = np.clip(probability, _SMALLEST_TAIL, 1.0 - _SMALLEST_TAIL)
    return np.log(probability) - np.log1p(-probability)


@dataclass(frozen=True, eq=False)
class _Checks:
    """Steps of a kind inside the region and their exact answers."""

    sizes: tuple[Floats, Floats]
    loads: Floats
    mean: Floats
    quantiles: Floats
    tails: Floats

    @classmethod
    def of(cls, kind: _Kind, only_seen: bool) -> _Checks:
        """Take seen steps and places between them, the same ones every time."""
        rng, fit = np.random.default_rng(0), kind.fit
        points = rng.permutation(np.column_stack([fit.cells[name] for name in SIZES]).astype(float))
        if not only_seen:
            between = fit.region.random_steps(rng, 2 * _NUM_CHECKS)
            points = np.vstack([points, np.rint(between) if kind.is_told else between])
        b, s = points[(points[:, 1] > points[:, 0]) == kind.prefill].T
        b, s = (np.concatenate([x[: _NUM_CHECKS // 3], x[-_NUM_CHECKS:]])[:_NUM_CHECKS] for x in (b, s))
        loads = np.empty((0, b.size))
        if kind.loads and b.size:
            loads = kind.seen(b, s, (np.arange(8.0) + 0.5) / 8.0) * rng.uniform(0.8, 1.2, b.size)
        if not b.size:
            return cls((b, s), loads, b, np.empty((len(LEVELS), 0)), np.empty((len(TAIL_LEVELS), 0)))
        exact = [kind.quantiles(b, s, loads, levels) for levels in (LEVELS, TAIL_LEVELS)]
        return cls((b, s), loads, kind.moments(b, s, loads)[0], *exact)

    def errors(self, tables: Tables, share: float) -> dict[str, float]:
        """Return the errors, as in `Provenance`, that a share of the steps does not exceed."""
        step = self.sizes
        if not step[0].size:
            return dict.fromkeys(("mean", "quantile", "probability", "tail"), 0.0)
        quantiles = np.stack([tables.quantile(*step, q, self.loads) for q in LEVELS])
        # Where a quantile is nearly 0 (power-law tails reach below it), its relative error says nothing.
        scale = np.maximum(self.quantiles, 0.05 * self.mean)
        found = np.stack([tables.probability_below(*step, x, self.loads) for x in self.quantiles])
        found_tails = np.stack([tables.probability_below(*step, x, self.loads) for x in self.tails])
        levels = np.array(TAIL_LEVELS)[:, None]
        found_tails = np.where(levels < 0.5, found_tails, 1.0 - found_tails)
        tails = found_tails / np.minimum(levels, 1.0 - levels) - 1.0
        each = {
            "mean": tables.mean(*step, self.loads)[None] / self.mean - 1.0,
            "quantile": (quantiles - self.quantiles) / scale,
            "probability": np.where(self.quantiles > 0, found - np.array(LEVELS)[:, None], 0.0),
            "tail": np.where(self.tails > 0, tails, 0.0),
        }
        return {name: float(np.quantile(np.abs(x).max(axis=0), share)) for name, x in each.items()}


def _refined(kind: _Kind, has_loads: bool) -> tuple[Tables, dict[str, float]]:
    """Return tables on grids halved until the errors are small enough, and these errors."""
    integrated = has_loads and not kind.loads
    checks = _Checks.of(kind, only_seen=integrated)
    finer_moments, finer_shapes = iter(_FINE * 0.5**_HALVINGS), iter(_COARSE * 0.5 ** _HALVINGS[:, ::-1])
    moments = _moment_tables(kind, next(finer_moments))
    shapes = _shape_tables(kind, next(finer_shapes))
    before = math.inf
    while True:
        (b, s, log_mean, relative, floor, slopes), (coarse_b, coarse_s, positions) = moments, shapes
        tables = Tables(b, s, coarse_b, coarse_s, log_mean, relative, floor, slopes, positions)
        if integrated:  # what the trace shows near a step is no smooth function of it
            errors = checks.errors(tables, _USUAL_SHARE)
            return tables, {f"integrated_{name}": value for name, value in errors.items()}
        errors = checks.errors(tables, 1.0)
        if errors["mean"] > MEAN_ERROR and (spacing := next(finer_moments, None)) is not None:
            moments = _moment_tables(kind, spacing)
        elif (
            QUANTILE_ERROR < errors["quantile"] < _BETTER * before  # or no finer grid would help
            and (spacing := next(finer_shapes, None)) is not None
        ):
            before = errors["quantile"]
            shapes = _shape_tables(kind, spacing)
        else:
            break
    usual = checks.errors(tables, _USUAL_SHARE)  # an outermost draw alone decides some extreme quantiles
    if max(usual["mean"], usual["quantile"]) <= LARGEST_ERROR:
        return tables, errors
    raise InputError(
        f"the tables do not come close enough to this fit (errors: mean {errors['mean']:.2%}, quantiles "
        f"{errors['quantile']:.2%}): use the fit itself (FittedModel)"
    )


def _moment_tables(kind: _Kind, spacing: Floats) -> tuple[Floats, ...]:
    b, s = kind.nodes(spacing)
    mean, relative, floor, slopes = kind.linear(*kind.steps(b, s))
    tables = [x.reshape(*x.shape[:-1], b.size, s.size) for x in (np.log(mean), relative, floor, slopes)]
    if kind.prefill and kind.is_told:
        tables = [_carried_on(table, b, s) for table in tables]
    log_mean, relative, floor, slopes = (as_stored(table) for table in tables)
    return np.log(b), np.log(s), log_mean, np.maximum(relative, 0.0), np.maximum(floor, 0.0), slopes


def _carried_on(table: Floats, b: Floats, s: Floats) -> Floats:
    """Return values, dims (..., node_b, node_s), that go on straight beyond a token a request."""
    last = np.searchsorted(b, s - 1.0, side="right") - 1
    before = np.maximum(last - 1, 0)
    places = np.log(b)
    share = (places[:, None] - places[last]) / np.where(last > 0, places[last] - places[before], np.inf)
    columns = np.arange(s.size)
    at_last, at_before = table[..., last, columns], table[..., before, columns]
    further = at_last[..., None, :] + (at_last - at_before)[..., None, :] * np.minimum(share, 4.0)
    return np.where(np.arange(b.size)[:, None] <= last, table, further)


def _shape_tables(kind: _Kind, spacing: Floats) -> tuple[Floats, Floats, Floats]:
    b, s = kind.nodes(spacing)
    logits = np.maximum.accumulate(kind.logits(*kind.steps(b, s)), axis=0).T
    positions = np.stack([_inverse(column) for column in logits])
    return np.log(b), np.log(s), as_stored(positions.reshape(b.size, s.size, -1))


def _inverse(logits: Floats) -> Floats:
    """Return the standardised positions at even logits, dims (position,) -> (logit,)."""
    rises = np.concatenate([[True], np.diff(logits) > 1e-9])
    wanted = np.linspace(-LOGIT_END, LOGIT_END, _NUM_LOGITS)
    inside = np.clip(wanted, logits[rises][0], logits[rises][-1])
    found: Floats = PchipInterpolator(logits[rises], _POSITIONS[rises])(inside)
    return np.maximum.accumulate(found)
