"""Where the modes of a posterior are, and a mixture of Gaussians that resembles it.

1. From many starts, climb to modes; at each, the curvature gives a Gaussian (Laplace's approximation).
2. From a widened mixture of these, adaptive multiple importance sampling: draw, weight by the posterior, fit
   a mixture to the weighted draws of the last stages, repeat. While the weights are too uneven, the target is
   tempered towards the first mixture. Cappé et al. (2008), Statistics and Computing 18; Cornuet et al.
   (2012), Scandinavian Journal of Statistics 39.

The result need not be exact: NUTS corrects it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq, minimize
from scipy.special import logsumexp
from scipy.stats import norm, qmc

from bayes_sched.arrays import Floats
from bayes_sched.sampling.components import Density
from bayes_sched.sampling.mixture import GaussianMixture, fit_mixture

NUM_COMPONENTS = 12
GOOD_EFFICIENCY = 0.5  # effective over actual draws at which the mixture is good enough
_NUM_STARTS = 64
_WIDENING = 1.5  # of the Laplace approximations, for the first mixture
_NEGLIGIBLE = 12.0  # modes this many nats below the best, by Laplace's evidence, are left out
_DRAWS = 2000  # per stage
_ENOUGH = 0.2 * _DRAWS  # effective draws of the pooled ones, below which the target is tempered
_MAX_STAGES = 12
_REMEMBERED = 5  # stages whose draws are pooled
_BACKGROUND = (0.1, 1.5)  # share and width of a broad component, while exploring


@dataclass(frozen=True)
class Exploration:
    """A mixture that approximates a posterior, and how it was found."""

    mixture: GaussianMixture
    num_modes: int  # distinct ones that the starts climbed to
    efficiency: float  # effective over actual draws of the last stage's importance sampling
    num_evaluations: int  # of the log density, most with its gradient


def explore(
    density: Density,
    *,
    start: Floats,
    scan_mean: Floats,
    scan_scale: Floats,
    rng: np.random.Generator,
    wide: bool = False,
    progress: Callable[[str], None] = lambda text: None,
) -> Exploration:
    """Explore a posterior: climb from `start`, then from points drawn by `scan_mean` and `scan_scale`.

    These are normal in the coordinates with a positive scale, at the best mode in the others. `wide` says
    that there are too many coordinates for importance sampling: the mixture is then Laplace's, its
    efficiency 0, and the first climb is in steps that the curvature at `start` sets, because a wide
    posterior has basins that a bold first step would leap into.
    """
    before = density.num_evaluations
    progress("looking for modes")
    scale = np.full(density.dim, 0.5)
    if wide:
        scale = np.minimum(_conditional_scale(density, start, density(start)[0], scale), 2.0)
    first, num_modes = _laplace_mixture(density, start, scale, (scan_mean, scan_scale), rng)
    mixture, efficiency = (first, 0.0) if wide else _adapt(density, first, rng, progress)
    return Exploration(mixture, num_modes, efficiency, density.num_evaluations - before)


def _laplace_mixture(
    density: Density, start: Floats, scale: Floats, scan: tuple[Floats, Floats], rng: np.random.Generator
) -> tuple[GaussianMixture, int]:
    """Climb from many starts; return a widened mixture of Laplace approximations and the number of modes."""
    point, height = _climb(density, start, scale)
    scale = np.sqrt(np.diag(_laplace(density, point, height, scale)))
    point, height = _climb(density, point, scale)
    scale = np.minimum(np.sqrt(np.diag(_laplace(density, point, height, scale))), 2.0)
    found, (scan_mean, scan_scale) = [(height, point)], scan
    for row in norm.ppf(qmc.LatinHypercube(density.dim, rng=rng).random(_NUM_STARTS)):
        best = max(found, key=lambda pair: pair[0])[1]
        begin = np.where(scan_scale > 0.0, scan_mean + scan_scale * row, best)
        point, height = _climb(density, begin, scale)
        found.append((height, point))
    modes: list[tuple[float, Floats, Floats]] = []  # evidence, point, covariance
    for height, point in sorted(found, key=lambda pair: -pair[0]):
        if height < found[0][0] - 2.0 * _NEGLIGIBLE or any(
            np.max(np.abs(point - other) / np.sqrt(np.diag(spread))) < 0.7 for _, other, spread in modes
        ):
            continue
        spread = _laplace(density, point, height, scale)
        modes.append((height + 0.5 * float(np.linalg.slogdet(spread)[1]), point, spread))
    best_evidence = max(mode[0] for mode in modes)
    modes = [mode for mode in modes if mode[0] > best_evidence - _NEGLIGIBLE]
    weights = np.exp([mode[0] - best_evidence for mode in modes])
    weights = 0.8 * weights / weights.sum() + 0.2 / len(modes)
    mixture = GaussianMixture(weights, np.array([m[1] for m in modes]), np.array([m[2] for m in modes]))
    return mixture.inflated(_WIDENING), len(modes)


def _climb(density: Density, start: Floats, scale: Floats) -> tuple[Floats, float]:
    def negative(step: Floats) -> tuple[float, Floats]:
        value, gradient = density(start + scale * step)
        return -value, -gradient * scale

    step = np.zeros_like(start)
    with np.errstate(all="ignore"):
        # Taken up again, a search that lost its way on a bend or lingered on a saddle goes on.
        for tolerance in (0.05, 1e-3):
            result = minimize(
                negative, step, jac=True, method="BFGS", options={"maxiter": 300, "gtol": tolerance}
            )
            step = np.asarray(result.x)
    return start + scale * result.x, -float(result.fun)


def _laplace(density: Density, mode: Floats, height: float, scale: Floats) -> Floats:
    """Return the inverse of the curvature at a mode.

    It is taken from gradients half a conditional standard deviation away.
    """
    scale = _conditional_scale(density, mode, height, scale)
    hessian = np.empty((density.dim, density.dim))
    for j, step in enumerate(np.diag(0.5 * scale)):
        hessian[j] = (density(mode - step)[1] - density(mode + step)[1]) / scale[j]
    hessian = 0.5 * (hessian + hessian.T) * np.outer(scale, scale)
    eigenvalues, vectors = np.linalg.eigh(hessian)
    eigenvalues = np.clip(eigenvalues, 0.05, None)  # flat or rising directions: at most some four scales wide
    return np.outer(scale, scale) * ((vectors / eigenvalues) @ vectors.T)


def _conditional_scale(density: Density, mode: Floats, height: float, scale: Floats) -> Floats:
    """Return steps along each coordinate that cost about half a nat."""
    scale = scale.copy()
    for j in range(density.dim):
        for _ in range(40):
            step = np.zeros(density.dim)
            step[j] = scale[j]
            cost = height - 0.5 * (density(mode + step)[0] + density(mode - step)[0])
            if cost > 1.0:
                scale[j] *= max(0.1, 0.7 / np.sqrt(cost))
            elif cost < 0.25 and scale[j] < 5.0:
                scale[j] *= 1.6
            else:
                break
    return scale


@dataclass(frozen=True)
class _Stage:
    proposal: GaussianMixture
    points: Floats
    target: Floats


def _adapt(
    density: Density, first: GaussianMixture, rng: np.random.Generator, progress: Callable[[str], None]
) -> tuple[GaussianMixture, float]:
    """Adapt a mixture by importance sampling; return it and its efficiency."""
    proposal = first.with_background(*_BACKGROUND)
    stages: list[_Stage] = []
    fitted: GaussianMixture | None = None
    best = (first, 0.0)
    for number in range(_MAX_STAGES):
        points = proposal.sample(_DRAWS, rng)
        stages = [*stages[1 - _REMEMBERED :], _Stage(proposal, points, density.values(points))]
        weights, tempering = _pooled_weights(stages, first)
        efficiency = effective_number(stages[-1].target - proposal.logpdf(points)) / _DRAWS
        progress(f"stage {number + 1}: efficiency {efficiency:.0%}")
        pool = np.concatenate([stage.points for stage in stages])
        if fitted is not None and efficiency > best[1]:
            best = (fitted, efficiency)
        beginning = best[0] if number else None
        fitted = fit_mixture(pool, weights, num_components=NUM_COMPONENTS, rng=rng, start=beginning)
        proposal = fitted.with_background(*_BACKGROUND)
        if tempering == 1.0 and efficiency > GOOD_EFFICIENCY:
            return fitted, efficiency  # fitted to more draws than the one that was good enough
    return best


def effective_number(log_weights: Floats) -> float:
    """Return the effective number of weighted draws (Kish)."""
    return float(np.exp(2.0 * logsumexp(log_weights) - logsumexp(2.0 * log_weights)))


def _pooled_weights(stages: list[_Stage], first: GaussianMixture) -> tuple[Floats, float]:
    """Return weights of the pooled draws against the tempered target, and the tempering exponent in use."""
    points = np.concatenate([stage.points for stage in stages])
    target = np.concatenate([stage.target for stage in stages])
    proposed = logsumexp([stage.proposal.logpdf(points) for stage in stages], axis=0) - np.log(len(stages))
    base = first.logpdf(points)

    def log_weights(exponent: float) -> Floats:
        tempered: Floats = (1.0 - exponent) * base + exponent * target - proposed
        return tempered

    def surplus(exponent: float) -> float:
        return effective_number(log_weights(exponent)) - _ENOUGH

    exponent, low = 1.0, 1e-6
    if surplus(1.0) < 0.0:
        exponent = low if surplus(low) <= 0.0 else float(brentq(surplus, low, 1.0, xtol=1e-4))
    weights = np.exp(log_weights(exponent) - logsumexp(log_weights(exponent)))
    return np.minimum(weights, 1.0 / 30.0), exponent
