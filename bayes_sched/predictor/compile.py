"""From a fit to the tables of a predictor: grids refined until the tables are as close as asked for."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import xarray as xr
from scipy.interpolate import PchipInterpolator

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError
from bayes_sched.files import VERSION
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.posterior.prediction import Evaluator, OverDraws, StudentTMixture
from bayes_sched.predictor.predictor import Predictor, Provenance
from bayes_sched.predictor.tables import LOGIT_END, POSITION_END, Tables, as_stored
from bayes_sched.steps import POSSIBLE, SIZES

MARGIN = 4.0
"""How many times the largest batch and token count of the trace the tables reach."""
MEAN_ERROR, QUANTILE_ERROR = 0.0003, 0.004
"""Largest relative errors inside the region at which refinement stops; quantiles from 0.001 to 0.999."""

LARGEST_ERROR = 0.01
"""A fit whose tables are not as close after all refinements is refused."""

LEVELS = (0.001, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 0.999)
"""Quantiles that are checked."""
TAIL_LEVELS = (0.0001, 0.001, 0.01, 0.99, 0.999, 0.9999)
"""Probabilities whose tails are checked."""

_NUM_LOGITS = 97
_POSITIONS = np.linspace(-POSITION_END, POSITION_END, 161)
# Widest spacing of nodes in log B and log S. Shapes change most at few requests, which traces hold few of.
_FINE, _COARSE = np.array([0.125, 0.125]), np.array([0.25, 0.5])
_HALVINGS = np.array([[0, 0], [0, 1], [1, 1], [1, 2], [2, 2]])  # one axis after the other, S first
_NUM_CHECKS = 300
_SMALLEST_TAIL = 1e-14


def compile_predictor(
    fit: FittedModel, *, max_draws: int | None = None, allow_unconverged: bool = False
) -> Predictor:
    """Return the fit as a predictor: its posterior predictive distribution in tables.

    Parameters
    ----------
    fit : FittedModel
    max_draws : int or None
        Posterior draws to use, evenly spaced; None uses all.
    allow_unconverged : bool
        Whether a fit that failed its convergence gate is compiled; the predictor says so.

    Raises
    ------
    InputError
        The fit has not converged, its model needs more of a step than B and S, or no grid is fine enough.
    """
    metadata = fit.metadata
    if not (fit.converged or allow_unconverged):
        problems = "; ".join(metadata.problems) or "see its report"
        raise InputError(
            f"the fit {metadata.name} has not converged ({problems}): fit the trace again, or compile it "
            "all the same (allow_unconverged=True)"
        )
    further = [name for name in fit.model.columns if name not in SIZES]
    if further:
        raise InputError(
            f"the model {fit.model.name} of {metadata.name} needs {', '.join(further)} of every step: a "
            "predictor's tables are over requests and tokens alone; fit the trace with the model saturation "
            "to compile one, or ask the fit itself (FittedModel)"
        )
    source = _Source(fit.evaluator(max_draws))
    largest = [float(fit.cells[name].max()) for name in SIZES]
    tables, errors = _refined(source, _Checks.of(fit, source), np.log(MARGIN * np.array(largest)))
    provenance = Provenance(
        name=metadata.name,
        model=metadata.model.name,
        noise=metadata.noise,
        model_sha256=metadata.model.sha256,
        labels=dict(metadata.labels),
        traces=tuple(trace.path for trace in metadata.traces),
        trace_sha256=metadata.trace_sha256,
        rows_used=metadata.rows.used,
        num_draws=len(source.evaluator.mixture.nu),
        converged=metadata.converged,
        fitted_at=metadata.created_at,
        bayes_sched_version=VERSION,
        region_text=fit.region.text,
        errors=errors,
    )
    return Predictor(tables, fit.region, provenance)


@dataclass(frozen=True, eq=False)
class _Source:
    """The exact answers, for arrays of B and S (fewer tokens than requests included), dims (step,)."""

    evaluator: Evaluator

    def moments(self, batch_size: Floats, total_tokens: Floats) -> Floats:
        """Return mean and width, ms, dims (2, step)."""
        return self._ask(batch_size, total_tokens, lambda mixture, mean, scale, x: _moments(mean, scale), 2)

    def logits(self, batch_size: Floats, total_tokens: Floats) -> Floats:
        """Return the logits of P(latency <= x) at even standardised positions, dims (position, step)."""

        def function(mixture: StudentTMixture, mean: Floats, scale: Floats, x: object) -> Floats:
            centre, width = _moments(mean, scale)
            return np.stack([_logit(mixture, mean, scale, centre + width * np.sinh(y)) for y in _POSITIONS])

        return self._ask(batch_size, total_tokens, function, len(_POSITIONS))

    def quantiles(self, batch_size: Floats, total_tokens: Floats, levels: tuple[float, ...]) -> Floats:
        """Return quantiles, ms, dims (quantile, step)."""

        def function(mixture: StudentTMixture, mean: Floats, scale: Floats, x: object) -> Floats:
            return np.stack([mixture.quantile(mean, scale, q) for q in levels])

        return self._ask(batch_size, total_tokens, function, len(levels))

    def _ask(self, batch_size: Floats, total_tokens: Floats, function: OverDraws, size: int) -> Floats:
        # Corners of grid cells may have fewer tokens than requests: the equation holds there too.
        possible = np.ones(batch_size.size, dtype=bool)
        columns = {"batch_size": batch_size, "total_tokens": total_tokens, POSSIBLE: possible}
        steps = xr.Dataset({name: ("step", values) for name, values in columns.items()})
        found = self.evaluator.over_draws(steps, function, leading={"row": np.arange(float(size))})
        return found.transpose("row", "step").to_numpy()


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
    """Steps inside the region and their exact answers."""

    batch_size: Floats
    total_tokens: Floats
    mean: Floats
    quantiles: Floats
    tails: Floats

    @classmethod
    def of(cls, fit: FittedModel, source: _Source) -> _Checks:
        """Take seen steps and places between them, the same ones every time."""
        rng = np.random.default_rng(0)
        seen = np.column_stack([fit.cells["batch_size"], fit.cells["total_tokens"]]).astype(float)
        seen = seen[rng.permutation(len(seen))[: _NUM_CHECKS // 3]]
        batch_size, total_tokens = np.vstack([seen, fit.region.random_steps(rng, _NUM_CHECKS)]).T
        return cls(
            batch_size,
            total_tokens,
            source.moments(batch_size, total_tokens)[0],
            source.quantiles(batch_size, total_tokens, LEVELS),
            source.quantiles(batch_size, total_tokens, TAIL_LEVELS),
        )

    def errors(self, tables: Tables) -> dict[str, float]:
        """Return the largest error of each kind, as in `Provenance`."""
        b, s = self.batch_size, self.total_tokens
        quantiles = np.stack([tables.quantile(b, s, q) for q in LEVELS])
        # Where a quantile is nearly 0 (power-law tails reach below it), its relative error says nothing.
        scale = np.maximum(self.quantiles, 0.05 * self.mean)
        found = np.stack([tables.probability_below(b, s, x) for x in self.quantiles])
        found_tails = np.stack([tables.probability_below(b, s, x) for x in self.tails])
        levels = np.array(TAIL_LEVELS)[:, None]
        found_tails = np.where(levels < 0.5, found_tails, 1.0 - found_tails)
        tail_errors = np.abs(found_tails / np.minimum(levels, 1.0 - levels) - 1.0)
        return {
            "mean": float(np.abs(tables.mean(b, s) / self.mean - 1.0).max()),
            "quantile": float((np.abs(quantiles - self.quantiles) / scale).max()),
            "probability": float(np.abs(found - np.array(LEVELS)[:, None])[self.quantiles > 0].max()),
            "tail": float(tail_errors[self.tails > 0].max()),
        }


def _refined(source: _Source, checks: _Checks, ends: Floats) -> tuple[Tables, dict[str, float]]:
    """Return tables on grids halved until the errors are small enough, and these errors."""
    finer_moments, finer_shapes = iter(_FINE * 0.5**_HALVINGS), iter(_COARSE * 0.5**_HALVINGS)
    moments = _moment_tables(source, ends, next(finer_moments))
    shapes = _shape_tables(source, ends, next(finer_shapes))
    while True:
        tables = Tables(ends, *moments, *shapes)
        errors = checks.errors(tables)
        if errors["mean"] > MEAN_ERROR and (spacing := next(finer_moments, None)) is not None:
            moments = _moment_tables(source, ends, spacing)
        elif errors["quantile"] > QUANTILE_ERROR and (spacing := next(finer_shapes, None)) is not None:
            shapes = _shape_tables(source, ends, spacing)
        else:
            break
    if max(errors["mean"], errors["quantile"]) <= LARGEST_ERROR:
        return tables, errors
    raise InputError(
        f"the tables do not come close enough to this fit (errors: mean {errors['mean']:.2%}, quantiles "
        f"{errors['quantile']:.2%}): use the fit itself (FittedModel)"
    )


def _nodes(ends: Floats, spacing: Floats) -> tuple[tuple[int, int], Floats, Floats]:
    """Return the shape of a grid and B and S of its nodes, dims (node,)."""
    axes = [np.linspace(0.0, end, math.ceil(end / gap) + 1) for end, gap in zip(ends, spacing, strict=True)]
    log_b, log_s = np.meshgrid(*axes, indexing="ij")
    return (axes[0].size, axes[1].size), np.exp(log_b).ravel(), np.exp(log_s).ravel()


def _moment_tables(source: _Source, ends: Floats, spacing: Floats) -> tuple[Floats, Floats]:
    shape, batch_size, total_tokens = _nodes(ends, spacing)
    mean, width = np.log(source.moments(batch_size, total_tokens)).reshape(2, *shape)
    return mean, width


def _shape_tables(source: _Source, ends: Floats, spacing: Floats) -> tuple[Floats, Floats]:
    shape, batch_size, total_tokens = _nodes(ends, spacing)
    logits = np.maximum.accumulate(source.logits(batch_size, total_tokens), axis=0).T
    positions = np.stack([_inverse(column) for column in logits])
    return as_stored(positions.reshape(*shape, -1)), as_stored(logits.reshape(*shape, -1))


def _inverse(logits: Floats) -> Floats:
    """Return the standardised positions at even logits, dims (position,) -> (logit,)."""
    rises = np.concatenate([[True], np.diff(logits) > 1e-9])
    wanted = np.linspace(-LOGIT_END, LOGIT_END, _NUM_LOGITS)
    inside = np.clip(wanted, logits[rises][0], logits[rises][-1])
    found: Floats = PchipInterpolator(logits[rises], _POSITIONS[rises])(inside)
    return np.maximum.accumulate(found)
