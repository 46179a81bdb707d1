"""Shares of counted events, and how well so many tries tell them."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betaincinv

type Floats = NDArray[np.float64]


def share_interval(count: ArrayLike, number: ArrayLike, *, level: float) -> tuple[Floats, Floats]:
    """Return the exact interval (Clopper and Pearson, equal tails) of a share.

    Parameters
    ----------
    count, number : array-like
        Events and tries; they broadcast and need not be whole, as effective numbers are not.
    level : float
        Probability with which the interval holds the share, at least.

    Returns
    -------
    lower, upper : ndarray
        0 and 1 where there are no tries.
    """
    events, tries = np.broadcast_arrays(np.asarray(count, float), np.asarray(number, float))
    others, tail = tries - events, 0.5 * (1.0 - level)
    lower, upper = np.zeros(events.shape), np.ones(events.shape)
    has_events, has_others = events > 0.0, others > 0.0
    lower[has_events] = betaincinv(events[has_events], others[has_events] + 1.0, tail)
    upper[has_others] = betaincinv(events[has_others] + 1.0, others[has_others], 1.0 - tail)
    return lower, upper


def effective_tries(happened: ArrayLike, cluster: ArrayLike) -> float:
    """Return how many independent tries tell a share as well as these, which come in clusters.

    The variance of the share is estimated from how it differs between clusters (as in Korn and Graubard,
    1998, Survey Methodology 24), and never taken to be less than that of independent tries. Where no try, or
    every one, is an event, clusters cannot differ and the number of tries is returned.

    Parameters
    ----------
    happened : array-like of bool, dims (try,)
    cluster : array-like of int, dims (try,)
        Tries of one cluster go together.
    """
    events = np.asarray(happened, float)
    number, share = len(events), float(events.mean())
    _, which = np.unique(np.asarray(cluster), return_inverse=True)
    num_clusters = int(which.max()) + 1
    if share in (0.0, 1.0) or num_clusters < 2:
        return float(number)
    residual = np.bincount(which, weights=events - share)
    variance = num_clusters / (num_clusters - 1.0) * float(np.square(residual).sum()) / number**2
    independent = share * (1.0 - share) / number
    return number * independent / max(variance, independent)
