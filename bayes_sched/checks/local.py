"""Where the fit is right and where it is not: its own trace, bin by bin, against the bands it draws there.

A bin is *contradicted* where a 99 % interval leaves no doubt that the fit is further off than the margins
below allow: those within which a person would still act on it. A calibrated fit is well inside of them, so
that chance contradicts it in fewer than one of a thousand bins: the margins, and no correction of the level,
take care of there being many bins and of neighbouring steps being alike.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike
from scipy.stats import binomtest, quantile_test

from bayes_sched.arrays import Floats, Ints
from bayes_sched.format import number, percent, span
from bayes_sched.posterior.fitted import DEFAULT_PROBABILITY, FittedModel
from bayes_sched.posterior.prediction import band_levels
from bayes_sched.region import ALIKE

HOLDS, WIDE, CONTRADICTED, FEW = "holds", "too wide", "contradicted", "too few steps"
"""Verdicts. *Too wide*: more of the steps lie in the band than it says: what it promises is cautious."""
DECODE, MIXED, FULL = "decode-only", "with prefill", "full budget"
MAX_ERROR = 0.03
"""A median may be off by that much."""
MIN_COVERAGE, MAX_COVERAGE = 0.85, 0.95
"""So much of the steps may lie in a 90 % band; outside of any half to one and a half times what should."""
MAX_LATE = 0.02
"""So much of the steps may take longer than the 99th percentile."""
INTERVAL = 0.99
"""Of the intervals that decide."""
MIN_STEPS = 30
"""A bin with fewer steps can be contradicted; that it holds is not said."""

_SEEN = {
    "num_steps": "seen_steps",
    "observed_lower_ms": "seen_lower_ms",
    "observed_ms": "seen_ms",
    "observed_upper_ms": "seen_upper_ms",
}
_MAX_DRAWS, _MAX_ROWS = 200, 1000  # a coverage is then known to 2 %, and the answer takes a second
_LIKE = 1.05 * ALIKE  # so that each covered step has a bin: a region knows its factor to 2 %
_WIDEST = 2.0  # largest number of a bin over its smallest
_BY_REQUESTS = 100  # steps with prefill are parted by requests, too, where so many are left in each part
_MIN_FULL_SHARE = 0.05  # so many of the steps with prefill have the most tokens where there is a budget
_EDGES = np.unique(np.floor(np.outer(2.0 ** np.arange(24), 1.0 + 0.25 * np.arange(4))))


@dataclass(frozen=True, slots=True, kw_only=True)
class Bin:
    """Steps of a trace that are alike, and what the fit says of them; latencies in ms.

    ``observed`` are the steps' own quantiles, ``fitted`` those of the typical step among them, at the ends
    and in the middle of a band; ``error`` is the median of observed over fitted, less 1; ``coverage`` the
    share of the steps in their bands, ``late`` that above their 99th percentile; each with its 99 % interval.
    """

    kind: str
    first_requests: int
    last_requests: int
    first_tokens: int
    last_tokens: int
    num_steps: int
    observed_lower_ms: float
    observed_ms: float
    observed_upper_ms: float
    fitted_lower_ms: float
    fitted_ms: float
    fitted_upper_ms: float
    error: float
    error_lower: float | None
    error_upper: float | None  # None where the steps are too few for an end
    coverage: float
    coverage_lower: float
    coverage_upper: float
    late: float
    late_lower: float
    late_upper: float
    verdict: str

    @property
    def is_contradicted(self) -> bool:
        """Whether the trace contradicts the fit here."""
        return self.verdict == CONTRADICTED

    @property
    def is_slower(self) -> bool:
        """Whether that is because the trace is slower than the fit."""
        return self.is_contradicted and (self.error > MAX_ERROR or self.late_lower > MAX_LATE)

    @property
    def name(self) -> str:
        """Which steps these are."""
        requests = f"{_range(self.first_requests, self.last_requests)} request"
        requests += "" if self.last_requests == 1 else "s"
        if self.kind == DECODE:
            return f"decode-only steps of {requests}"
        return f"steps of {_range(self.first_tokens, self.last_tokens)} tokens and {requests}"

    @property
    def seen_text(self) -> str:
        """What the trace itself says of such steps."""
        ends = span(self.observed_lower_ms, self.observed_upper_ms)
        return f"its own {self.num_steps:,} {self.name} took {number(self.observed_ms)} ms ({ends})"

    @property
    def text(self) -> str:
        """How the fit differs from that."""
        return (
            f"{self.name}: fitted {number(self.fitted_ms)} ms, observed {number(self.observed_ms)} "
            f"({100 * self.error:+.1f}%); "
            f"{percent(self.coverage)} of {self.num_steps:,} in their band"
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LocalCheck:
    """A fit against its own trace, bin by bin; without bins where the fit keeps no steps of its trace."""

    probability: float
    bins: tuple[Bin, ...]

    @property
    def contradicted(self) -> tuple[Bin, ...]:
        """The bins that the trace contradicts, that with most steps first."""
        return tuple(sorted((b for b in self.bins if b.is_contradicted), key=lambda b: -b.num_steps))

    @property
    def table(self) -> pd.DataFrame:
        """One row a bin: the fields of :class:`Bin`."""
        return pd.DataFrame([asdict(b) for b in self.bins], columns=list(Bin.__dataclass_fields__))

    @property
    def text(self) -> str:
        """Sentences a person can paste."""
        if not self.bins:
            return "The fit keeps no steps of its trace and could not be held against them: fit it again."
        wrong, total = self.contradicted, sum(b.num_steps for b in self.bins)
        held = f"Held against its own trace in {len(self.bins)} bins, the fit is contradicted in"
        if not wrong:
            return f"{held} none."
        share = percent(sum(b.num_steps for b in wrong) / total, 2)
        worst = max(wrong, key=lambda b: (abs(b.error), 1.0 - b.coverage))
        return f"{held} {len(wrong)} ({share} of the steps). The worst: {worst.text}."

    def places(self, batch_size: ArrayLike, total_tokens: ArrayLike) -> Ints:
        """Return the number of the bin of each step's like, -1 where none is; arrays that broadcast."""
        b, s = np.broadcast_arrays(np.asarray(batch_size, float), np.asarray(total_tokens, float))
        found, nearest = np.full(b.shape, -1, dtype=np.int64), np.full(b.shape, _LIKE)
        for place, of in enumerate(self.bins):
            away = np.maximum.reduce(
                [
                    *(of.first_requests / b, b / of.last_requests),
                    *(of.first_tokens / s, s / of.last_tokens),
                    np.where((s <= b) == (of.kind == DECODE), 1.0, np.inf),
                ]
            )
            is_nearer = away < nearest
            found[is_nearer], nearest[is_nearer] = place, away[is_nearer]
        return found

    def at(self, batch_size: float, total_tokens: float) -> Bin | None:
        """Return the bin of a step's like, None where the trace holds nothing like it."""
        place = int(self.places(batch_size, total_tokens))
        return None if place < 0 else self.bins[place]

    def holds_at(self, batch_size: float, total_tokens: float) -> bool | None:
        """Return whether the trace bears the fit out at a step; None where too few steps tell."""
        found = self.at(batch_size, total_tokens)
        return None if found is None or found.verdict == FEW else not found.is_contradicted

    def beside(self, steps: pd.DataFrame) -> pd.DataFrame:
        """Return a table of steps with the trace's own answer, missing where the trace holds nothing like it.

        ``verdict``, and of the steps of the bin ``seen_steps``, ``seen_lower_ms``, ``seen_ms``,
        ``seen_upper_ms``.
        """
        table = self.table.reindex(self.places(steps["batch_size"], steps["total_tokens"]))
        told = table[["verdict", *_SEEN]].rename(columns=_SEEN).set_index(steps.index)
        return steps.join(told.astype({"seen_steps": "Int64"}))

    def factors(self, batch_size: ArrayLike, total_tokens: ArrayLike) -> Floats:
        """Return what makes the fitted medians those of the trace where it contradicts the fit, else 1."""
        found = np.array([*(1.0 + of.error if of.is_contradicted else 1.0 for of in self.bins), 1.0])
        factors: Floats = found[self.places(batch_size, total_tokens)]
        return factors

    def is_contradicted(self, batch_size: ArrayLike, total_tokens: ArrayLike) -> Any:
        """Return for each step whether the trace contradicts the fit there, bools of the arrays' shape."""
        wrong = np.array([*(of.is_contradicted for of in self.bins), False])
        return wrong[self.places(batch_size, total_tokens)]


def check_locally(
    fit: FittedModel, steps: pd.DataFrame | None = None, *, probability: float = DEFAULT_PROBABILITY
) -> LocalCheck:
    """Hold a fit against steps, by default those of its own trace that it keeps.

    Parameters
    ----------
    fit : FittedModel
    steps : DataFrame, optional
        ``latency_ms`` (ms) and the columns of the model.
    probability : float
        Of the bands.
    """
    steps = fit.observed if steps is None else steps
    if steps.empty or not set(fit.model.columns) <= set(steps):
        return LocalCheck(probability=probability, bins=())
    levels = np.array([*band_levels(probability), 0.99])
    parts = list(_parts(steps))
    chosen = [_chosen(rows) for _, rows in parts]
    points = pd.concat(chosen, ignore_index=True)
    fitted = fit.quantile(points, levels, max_draws=_MAX_DRAWS).transpose("step", ...).to_numpy()
    ends = np.cumsum([len(rows) for rows in chosen])[:-1]
    bins = (_bin(*part, of, probability) for part, of in zip(parts, np.split(fitted, ends), strict=True))
    return LocalCheck(probability=probability, bins=tuple(bins))


def _chosen(steps: pd.DataFrame) -> pd.DataFrame:
    """Return at most so many steps as are worth their time, evenly spread."""
    places = np.linspace(0, len(steps) - 1, min(len(steps), _MAX_ROWS))
    return steps.iloc[np.unique(places.astype(np.int64))]


def _parts(steps: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the kind and the steps of each bin, decode-only ones first."""
    b, s = steps["batch_size"], steps["total_tokens"]
    for low, high in _groups(b[s <= b], MIN_STEPS):
        yield DECODE, steps[(s <= b) & b.between(low, high)]
    mixed = steps[s > b]
    most = mixed["total_tokens"].max()
    is_full = mixed["total_tokens"] == most
    if is_full.sum() < max(MIN_STEPS, _MIN_FULL_SHARE * len(mixed)):
        is_full &= False
    for low, high in _groups(mixed.loc[~is_full, "total_tokens"], MIN_STEPS):
        yield from _by_requests(MIXED, mixed[~is_full & mixed["total_tokens"].between(low, high)])
    if is_full.any():
        yield from _by_requests(FULL, mixed[is_full])


def _by_requests(kind: str, steps: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield parts of steps with prefill that have alike tokens."""
    requests = steps["batch_size"]
    for first, last in _groups(requests, max(_BY_REQUESTS, len(steps) // 3), widest=np.inf):
        yield kind, steps[requests.between(first, last)]


def _groups(values: pd.Series[Any], least: int, *, widest: float = _WIDEST) -> list[tuple[int, int]]:
    """Return ranges of some sizes that hold as many steps as asked for where that does not make them wide.

    From the largest on, which are few and matter most; they begin and end where batches are padded to.
    """
    place, counts = np.unique(np.searchsorted(_EDGES, values.to_numpy(float)), return_counts=True)
    groups: list[list[int]] = []
    num = least
    for of, count in zip(place[::-1].tolist(), counts[::-1].tolist(), strict=True):
        is_wide = bool(groups) and _EDGES[groups[-1][0]] > widest * _first(of)
        if num >= least or is_wide:
            groups.append([of, of])
            num = 0
        groups[-1][1] = of
        num += count
    if len(groups) > 1 and num < least and _EDGES[groups[-2][0]] <= widest * _first(groups[-1][1]):
        smallest = groups.pop()
        groups[-1][1] = smallest[1]
    return [(_first(low), int(_EDGES[high])) for high, low in reversed(groups)]


def _first(place: int) -> int:
    return int(_EDGES[place - 1]) + 1 if place else 1


def _bin(kind: str, steps: pd.DataFrame, fitted: Floats, probability: float) -> Bin:
    """Return what a bin's steps say of the quantiles fitted for some of them, dims (step, quantile)."""
    observed = _chosen(steps)["latency_ms"].to_numpy(float)
    lower, median, upper, limit = fitted.T
    error = observed / median - 1.0
    inside, late = (observed >= lower) & (observed <= upper), observed > limit
    off = quantile_test(error, p=0.5).confidence_interval(INTERVAL)
    in_band, above = (
        binomtest(int(flags.sum()), len(flags)).proportion_ci(INTERVAL) for flags in (inside, late)
    )
    outside = (1.0 - probability) / (1.0 - DEFAULT_PROBABILITY)  # the margins are those of a 90 % band
    is_wrong = (
        off.low > MAX_ERROR
        or off.high < -MAX_ERROR
        or 1.0 - in_band.high > outside * (1.0 - MIN_COVERAGE)
        or above.low > MAX_LATE
    )
    is_wide = 1.0 - in_band.low < outside * (1.0 - MAX_COVERAGE)
    sound = WIDE if is_wide else HOLDS if len(steps) >= MIN_STEPS else FEW
    seen, typical = np.quantile(observed, band_levels(probability)), np.median(fitted, axis=0)
    return Bin(
        kind=kind,
        first_requests=int(steps["batch_size"].min()),
        last_requests=int(steps["batch_size"].max()),
        first_tokens=int(steps["total_tokens"].min()),
        last_tokens=int(steps["total_tokens"].max()),
        num_steps=len(steps),
        observed_lower_ms=float(seen[0]),
        observed_ms=float(seen[1]),
        observed_upper_ms=float(seen[2]),
        fitted_lower_ms=float(typical[0]),
        fitted_ms=float(typical[1]),
        fitted_upper_ms=float(typical[2]),
        error=float(np.median(error)),
        error_lower=None if np.isnan(off.low) else float(off.low),
        error_upper=None if np.isnan(off.high) else float(off.high),
        coverage=float(inside.mean()),
        coverage_lower=float(in_band.low),
        coverage_upper=float(in_band.high),
        late=float(late.mean()),
        late_lower=float(above.low),
        late_upper=float(above.high),
        verdict=CONTRADICTED if is_wrong else sound,
    )


def _range(first: int, last: int) -> str:
    return f"{first:,}" if first == last else f"{first:,} to {last:,}"
