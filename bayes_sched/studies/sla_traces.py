"""Promises made on four fifths of a trace, held against the other steps.

Two things are asked of the held-out steps. Of a limit in ms, whether as many steps exceed it as predicted;
and of the limit promised for a step's (B, S), whether more exceed it than promised.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_sched.arrays import Bools, Floats, Ints
from bayes_sched.checks.scores import effective_tries, share_interval
from bayes_sched.errors import FIT_ERRORS, error_text
from bayes_sched.posterior.fit import fit
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.sla.limits import StepLine, evidence, quantile_draws
from bayes_sched.sla.risk import DEFAULT_CONFIDENCE, DEFAULT_QUANTILE, Objective
from bayes_sched.steps import regime, steps_arrays
from bayes_sched.studies.prediction import NO_LIMITS_MS, Server
from bayes_sched.studies.splits import BLOCK, SPLITS, cut


def neighbour_cells(batch_size: Floats, total_tokens: Floats, *, least: int) -> Ints:
    """Return the cell of each step, dims (step,), counted from 0.

    The steps are halved again and again, across whichever of log B and log S they spread more in, as long as
    both halves keep enough steps. Steps of one (B, S) are never parted.

    Parameters
    ----------
    batch_size, total_tokens : ndarray, dims (step,)
    least : int
        Steps of a cell; where there are fewer in all, they are one cell.
    """
    points = np.log(np.column_stack([batch_size, total_tokens]).astype(np.float64))
    cells = np.zeros(len(points), dtype=np.int64)
    waiting, number = [np.arange(len(points))], 0
    while waiting:
        rows = waiting.pop()
        halves = _halved(points[rows], least)
        if halves is None:
            cells[rows] = number
            number += 1
        else:
            waiting += [rows[~halves], rows[halves]]
    return cells


def _halved(points: Floats, least: int) -> NDArray[np.bool_] | None:
    """Return which points are in the lower half, None where there is no way to halve them."""
    for axis in np.argsort(-np.ptp(points, axis=0)) if len(points) else ():
        values, counts = np.unique(points[:, axis], return_counts=True)
        below = np.cumsum(counts)[:-1]
        smaller = np.minimum(below, len(points) - below)
        if len(smaller) and smaller.max() >= least:
            halves: NDArray[np.bool_] = points[:, axis] <= values[int(smaller.argmax())]
            return halves
    return None


INTERVAL: Final = 0.9
"""Of the realised share of late steps."""
_RUN = ["trace", "split", "regime"]


def calibration_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return predicted and realised shares of late steps for each trace, split, regime and level of limits.

    Parameters
    ----------
    cells : DataFrame
        Rows of :meth:`~bayes_sched.promises.trace_study.TraceStudy.run_one`.

    Returns
    -------
    DataFrame
        ``trace``, ``split``, ``regime``, ``level`` (of the cells' limits), ``steps``, ``effective_steps``,
        ``predicted``, ``realised``, ``lower``, ``upper``: interval of probability :data:`INTERVAL` of the
        realised share.
    """
    return _realised(_of_regimes(cells, "limit"))[
        [*_RUN, "level", "steps", "effective_steps", "predicted", "realised", "lower", "upper"]
    ]


def pooled_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return :func:`calibration_table` of all traces together, each step counting once.

    Traces are independent, so that the variances of their numbers of late steps add up; ``effective_steps``
    are as many independent steps as have that variance, never more than there are.
    """
    keys, sums = ["split", "regime", "level"], ["steps", "predicted", "late", "variance"]
    chosen = _of_regimes(cells, "limit")
    chosen = chosen.assign(
        predicted=chosen["predicted"] * chosen["steps"],
        variance=_variance(chosen["steps"], chosen["late"]) * chosen["steps"] / chosen["effective_steps"],
    )
    total = chosen.groupby(keys, as_index=False)[sums].sum()
    total["predicted"] /= total["steps"]
    independent = _variance(total["steps"], total["late"])
    variance = np.maximum(total["variance"], independent)
    total["effective_steps"] = total["steps"] * np.where(variance > 0.0, independent / variance, 1.0)
    found = _realised(total)
    return found[[*keys, "steps", "effective_steps", "predicted", "realised", "lower", "upper"]]


def kept_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return how many held-out steps exceed the limit promised for their (B, S).

    Returns
    -------
    DataFrame
        ``trace``, ``split``, ``regime``, ``steps``, ``late`` (share), ``lower``, ``upper``; and of promises
        that the fitted steps bear out, ``borne_out`` (share of the steps), ``borne_out_late``,
        ``borne_out_lower``, ``borne_out_upper``.
    """
    made = _realised(_of_regimes(cells, "promise"))[[*_RUN, "steps", "realised", "lower", "upper"]]
    made = made.rename(columns={"realised": "late"})
    borne = _realised(_of_regimes(cells, "borne out"))
    borne = borne[[*_RUN, "steps", "realised", "lower", "upper"]].rename(
        columns={
            "steps": "borne_out",
            "realised": "borne_out_late",
            "lower": "borne_out_lower",
            "upper": "borne_out_upper",
        }
    )
    both = made.merge(borne, on=_RUN, how="left")
    return both.assign(borne_out=both["borne_out"].fillna(0) / both["steps"])


def cell_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return how many cells agree with what was predicted for them.

    Returns
    -------
    DataFrame
        ``split``, ``regime``, ``level``, ``cells``, and ``agree``: the share whose realised share's interval
        of probability :data:`INTERVAL` (all steps taken as independent) holds the predicted one.
    """
    chosen = cells[(cells["cell"] != ALL) & (cells["kind"] == "limit")]
    found = _realised(chosen.assign(effective_steps=chosen["steps"]))
    agree = (found["lower"] <= found["predicted"]) & (found["predicted"] <= found["upper"])
    groups = found.assign(agree=agree).groupby(["split", "regime", "level"])["agree"]
    return groups.agg(cells="size", agree="mean").reset_index()


def _variance(steps: pd.Series, late: pd.Series) -> pd.Series:
    """Return the variance of the number of late ones among independent steps."""
    return late * (1.0 - late / steps)


def _of_regimes(cells: pd.DataFrame, kind: str) -> pd.DataFrame:
    return cells[(cells["cell"] == ALL) & (cells["kind"] == kind)].reset_index(drop=True)


def _realised(rows: pd.DataFrame) -> pd.DataFrame:
    share = rows["late"] / rows["steps"]
    effective = rows["effective_steps"].to_numpy(float)
    lower, upper = share_interval(share.to_numpy(float) * effective, effective, level=INTERVAL)
    return rows.assign(realised=share, lower=lower, upper=upper)


LEVELS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
"""A cell's limits are these quantiles of what is predicted for its middle step."""
LEAST_STEPS = 20
"""Held-out steps of a cell."""
ALL = -1
"""Number of the cell that stands for all steps of a regime."""
COLUMNS = (
    *("trace", "split", "regime", "cell", "kind", "level", "batch_size", "total_tokens", "limit_ms"),
    *("steps", "predicted", "late", "effective_steps"),
    *("rows_fitted", "gate_passed", "seconds", "cpu_seconds", "error"),
)
"""Of a run's table; see :meth:`TraceStudy.run_one`."""

_PREDICTIVE_DRAWS = 1000


class TraceStudy:
    """Traces, each held out in some ways; a run is one way of one trace.

    Parameters
    ----------
    servers : sequence of Server
        One a trace, cleaned.
    splits : sequence of str
        Of `bayes_sched.validation.splits.SPLITS`.
    settings : SamplerSettings
        Of every fit; its seed and the number of the run set everything random.
    max_rows : int
        Steps of a fit.
    quantile, confidence : float
        Of promises.
    """

    def __init__(
        self,
        servers: Sequence[Server],
        *,
        splits: Sequence[str],
        settings: SamplerSettings,
        max_rows: int,
        quantile: float = DEFAULT_QUANTILE,
        confidence: float = DEFAULT_CONFIDENCE,
    ) -> None:
        self.runs = [(server, SPLITS[name]) for server in servers for name in splits]
        self.settings, self.max_rows = settings, max_rows
        self.quantile, self.confidence = quantile, confidence

    def __len__(self) -> int:
        return len(self.runs)

    def title(self, number: int) -> str:
        """Return a run's trace and split."""
        server, split = self.runs[number]
        return f"{server.name}, {split.name}"

    def run_one(self, number: int) -> pd.DataFrame:
        """Hold steps out, fit the others, and count late steps.

        Returns
        -------
        DataFrame
            One row for each limit of each cell (``kind`` is ``limit``, ``level`` its quantile), for the
            promise of each cell (``promise``, ``level`` the promised quantile), and both for all steps of a
            regime (``cell`` is -1; ``level`` of the limits, which differ from cell to cell); there also
            ``borne out``, the promises that the fitted steps do not contradict. ``batch_size`` and
            ``total_tokens`` of a cell's middle step; ``steps`` held out, ``predicted`` mean probability to be
            late, ``late`` steps counted, ``effective_steps`` once stretches of steps that go together are
            accounted for. One row with ``error`` where there is no fit.
        """
        start = time.perf_counter(), time.process_time()
        server, split = self.runs[number]
        steps = server.steps.assign(position=np.arange(len(server.steps)))
        rng = np.random.default_rng([self.settings.seed, number])
        account: dict[str, Any] = {"error": None}
        table = pd.DataFrame([{"cell": ALL}])
        try:
            held = cut(steps, split, rng=rng, max_train=len(steps), max_test=len(steps))
            low, high = NO_LIMITS_MS
            result = fit(
                held.train,
                settings=replace(self.settings, seed=self.settings.seed + number),
                min_latency_ms=low,
                max_latency_ms=high,
                max_rows=self.max_rows,
            )
            account |= {"rows_fitted": len(result.thinned.steps), "gate_passed": result.fit.converged}
            table = self._held_against(result.fit, held.test)
        except FIT_ERRORS as error:
            account["error"] = error_text(error)
        account["seconds"] = time.perf_counter() - start[0]
        account["cpu_seconds"] = time.process_time() - start[1]
        filled = table.assign(**account, trace=server.name, split=split.name).reindex(columns=list(COLUMNS))
        filled.insert(0, "run", number)
        return filled

    def _held_against(self, fitted: FittedModel, test: pd.DataFrame) -> pd.DataFrame:
        kinds = np.where(regime(test) == "decode", "decode", "mixed")
        rows: list[dict[str, Any]] = []
        for name in ("decode", "mixed"):
            part = test[kinds == name].reset_index(drop=True)
            if len(part) >= LEAST_STEPS:
                found = [*self._limits(fitted, part), *self._promises(fitted, part, name)]
                rows += [{"regime": name, **row} for row in found]
        return pd.DataFrame(rows)

    def _limits(self, fitted: FittedModel, part: pd.DataFrame) -> list[dict[str, Any]]:
        """Return the rows of the limits at quantiles of each cell's middle step."""
        cells = _cells(part)
        middle = _middle_steps(part, cells)
        steps = steps_arrays(middle["batch_size"], middle["total_tokens"])
        limits = fitted.quantile(steps, LEVELS, max_draws=_PREDICTIVE_DRAWS)
        limits_ms = limits.transpose("step", "quantile").to_numpy()
        rows = []
        for column, level in enumerate(LEVELS):
            limit_ms = limits_ms[cells, column]
            predicted, late = _late(fitted, part, limit_ms)
            of_cell = middle.assign(limit_ms=limits_ms[:, column])
            key = {"kind": "limit", "level": level}
            rows += [key | row for row in _counts(part, cells, of_cell, predicted, late)]
        return rows

    def _promises(self, fitted: FittedModel, part: pd.DataFrame, name: str) -> list[dict[str, Any]]:
        """Return the rows of the limits promised for each (B, S)."""
        cells = _cells(part)
        middle = _middle_steps(part, cells)
        distinct = part[["batch_size", "total_tokens"]].drop_duplicates().reset_index(drop=True)
        promised = self._promised(fitted, distinct)
        contradicted = [
            _is_contradicted(fitted, name == "decode", step, self._objective(limit))
            for step, limit in zip(distinct.to_numpy(int), promised, strict=True)
        ]
        each = part.merge(
            distinct.assign(limit_ms=promised, contradicted=contradicted), how="left", validate="many_to_one"
        )
        predicted, late = _late(fitted, part, each["limit_ms"].to_numpy())
        level = {"level": self.quantile}
        counts = _counts(part, cells, middle, predicted, late)
        rows = [{"kind": "promise"} | level | row for row in counts]
        kept = ~each["contradicted"].to_numpy(bool)
        if kept.any():
            count = _count(part[kept], predicted[kept], late[kept])
            rows.append({"kind": "borne out", "cell": ALL} | level | count)
        return rows

    def _promised(self, fitted: FittedModel, steps: pd.DataFrame) -> Floats:
        """Return the limits that the quantile keeps with the asked confidence, ms, dims (step,)."""
        table = steps_arrays(steps["batch_size"], steps["total_tokens"])
        draws = quantile_draws(fitted, table, self.quantile, max_draws=None)
        limits: Floats = np.quantile(draws, self.confidence, axis=0)
        return limits

    def _objective(self, limit_ms: float) -> Objective:
        return Objective(limit_ms=limit_ms, quantile=self.quantile, confidence=self.confidence)


def _is_contradicted(
    fitted: FittedModel, is_decode: bool, step: NDArray[np.int64], objective: Objective
) -> bool:
    """Return whether the fitted steps speak against a promise of a step's (B, S), as `sla` would say."""
    requests, tokens = (int(number) for number in step)
    line = StepLine() if is_decode else StepLine(requests)
    return evidence(fitted, line, tokens, objective).is_contradicted


def _cells(part: pd.DataFrame) -> NDArray[np.int64]:
    return neighbour_cells(
        part["batch_size"].to_numpy(float), part["total_tokens"].to_numpy(float), least=LEAST_STEPS
    )


def _middle_steps(part: pd.DataFrame, cells: NDArray[np.int64]) -> pd.DataFrame:
    """Return a step of each cell near its median B and S, index ``cell``."""
    place = part[["batch_size", "total_tokens"]].astype(float)
    typical = place.groupby(cells).transform("median")
    apart = pd.Series(np.abs(np.log(place.to_numpy() / typical.to_numpy())).sum(axis=1), index=place.index)
    nearest = apart.groupby(cells).idxmin().sort_index()
    return pd.DataFrame(place.loc[nearest]).reset_index(drop=True)


def _late(fitted: FittedModel, part: pd.DataFrame, limit_ms: Floats) -> tuple[Floats, Bools]:
    """Return the predicted probability that each step is late, and whether it is, dims (step,)."""
    below = fitted.probability_below(
        part[["batch_size", "total_tokens"]], pd.Series(limit_ms), max_draws=_PREDICTIVE_DRAWS
    )
    return 1.0 - below.to_numpy(), part["latency_ms"].to_numpy() > limit_ms


def _counts(
    part: pd.DataFrame, cells: NDArray[np.int64], of_cell: pd.DataFrame, predicted: Floats, late: Bools
) -> list[dict[str, Any]]:
    """Return what is known of each cell with its count, and the count of all steps."""
    rows = []
    for number, known in enumerate(of_cell.to_dict("records")):
        chosen = cells == number
        rows.append({"cell": number, **known} | _count(part[chosen], predicted[chosen], late[chosen]))
    return [*rows, {"cell": ALL} | _count(part, predicted, late)]


def _count(part: pd.DataFrame, predicted: Floats, late: Bools) -> dict[str, Any]:
    return {
        "steps": len(part),
        "predicted": float(predicted.mean()),
        "late": int(late.sum()),
        "effective_steps": effective_tries(late, part["position"].to_numpy() // BLOCK),
    }
