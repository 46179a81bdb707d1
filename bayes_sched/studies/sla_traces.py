"""SLA calibration on real traces: promises made on four fifths of a trace, held against the other steps.

Two things are asked of the held-out steps. Of a limit in ms, whether as many steps exceed it as predicted;
and of the limit promised for a step's (B, S), whether more exceed it than promised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_sched.arrays import Bools, Floats, Ints
from bayes_sched.checks.scores import effective_tries, share_interval
from bayes_sched.errors import InputError
from bayes_sched.posterior.fit import fit
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.sla.evidence import Observed
from bayes_sched.sla.limits import quantile_draws
from bayes_sched.sla.risk import DEFAULT_CONFIDENCE, DEFAULT_QUANTILE, Objective
from bayes_sched.steps import regime, steps_arrays
from bayes_sched.studies.folder import StudyFolder
from bayes_sched.studies.runs import Findings, noted
from bayes_sched.studies.splits import BLOCK, NO_LIMITS_MS, SPLITS, Server, cut

LEVELS = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99, 0.999)
"""A cell's limits are these quantiles of what is predicted for its middle step."""
LEAST_STEPS = 20
"""Held-out steps of a cell."""
ALL = -1
"""Number of the cell that stands for all steps of a regime."""
INTERVAL: Final = 0.9
"""Of the realised share of late steps."""
COLUMNS = (
    *("run", "trace", "split", "regime", "cell", "kind", "level", "batch_size", "total_tokens", "limit_ms"),
    *("steps", "predicted", "late", "effective_steps"),
    *("rows_fitted", "gate_passed", "seconds", "cpu_seconds", "error"),
)
"""Of a run's table; see :meth:`TraceStudy.run`."""

_STEP = ["batch_size", "total_tokens"]
_OF_TRACE = ["trace", "split", "regime"]
_PREDICTIVE_DRAWS = 1000


class TraceStudy:
    """Traces, each held out in some ways; a run is one way of one trace."""

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
        self._runs = [(server, SPLITS[name]) for server in servers for name in splits]
        self.settings, self.max_rows = settings, max_rows
        self.quantile, self.confidence = quantile, confidence

    @property
    def num_runs(self) -> int:
        """Ways of all traces."""
        return len(self._runs)

    def title(self, number: int) -> str:
        """Return a run's trace and split."""
        server, split = self._runs[number]
        return f"{server.name}, {split.name}"

    def run(self, number: int) -> pd.DataFrame:
        """Hold steps out, fit the others, and count late steps.

        One row for each limit of each cell (``kind`` is ``limit``, ``level`` its quantile), for the
        promise of each cell (``promise``, ``level`` the promised quantile), and both for all steps of a
        regime (``cell`` is -1; ``level`` of the limits, which differ from cell to cell); there also
        ``borne out``, the promises that the fitted steps do not contradict. ``batch_size`` and
        ``total_tokens`` of a cell's middle step; ``steps`` held out, ``predicted`` mean probability to be
        late, ``late`` steps counted, ``effective_steps`` once stretches of steps that go together are
        accounted for. One row with ``error`` where there is no fit.
        """
        server, split = self._runs[number]
        steps = server.steps.assign(position=np.arange(len(server.steps)))
        rng = np.random.default_rng([self.settings.seed, number])
        found: dict[str, Any] = {}
        table = pd.DataFrame([{"cell": ALL}])
        with noted(found):
            held = cut(steps, split, rng=rng, max_train=len(steps), max_test=len(steps))
            result = fit(
                held.train,
                settings=replace(self.settings, seed=self.settings.seed + number),
                min_latency_ms=NO_LIMITS_MS[0],
                max_latency_ms=NO_LIMITS_MS[1],
                max_rows=self.max_rows,
            )
            found |= {"rows_fitted": len(result.thinned.steps), "gate_passed": result.fit.converged}
            table = self._held_against(result.fit, held.test)
        return table.assign(**found, run=number, trace=server.name, split=split.name).reindex(
            columns=list(COLUMNS)
        )

    def _held_against(self, fitted: FittedModel, test: pd.DataFrame) -> pd.DataFrame:
        is_decode = (regime(test) == "decode").to_numpy()
        rows: list[dict[str, Any]] = []
        for name, mask in (("decode", is_decode), ("mixed", ~is_decode)):
            if mask.sum() >= LEAST_STEPS:
                held = _HeldOut(fitted, test[mask].reset_index(drop=True))
                found = [*held.limits(), *self._promises(held, is_decode=name == "decode")]
                rows += [{"regime": name, **row} for row in found]
        return pd.DataFrame(rows)

    def _promises(self, held: _HeldOut, *, is_decode: bool) -> list[dict[str, Any]]:
        """Return the rows of the limits promised for each (B, S)."""
        distinct = held.steps[_STEP].drop_duplicates().reset_index(drop=True)
        draws = quantile_draws(
            held.fit, steps_arrays(*(distinct[name] for name in _STEP)), self.quantile, max_draws=None
        )
        promised = np.quantile(draws, self.confidence, axis=0)
        contradicted = [
            self._is_contradicted(held.fit, is_decode, int(requests), int(tokens), limit)
            for (requests, tokens), limit in zip(distinct.to_numpy(int), promised, strict=True)
        ]
        of_step = distinct.assign(limit_ms=promised, contradicted=contradicted)
        each = held.steps.merge(of_step, how="left", validate="many_to_one")
        predicted, late = held.late(each["limit_ms"].to_numpy())
        level = {"level": self.quantile}
        rows = [{"kind": "promise"} | level | row for row in held.counts(held.middle, predicted, late)]
        kept = ~each["contradicted"].to_numpy(bool)
        if kept.any():
            rows.append({"kind": "borne out", "cell": ALL} | level | held.count(kept, predicted, late))
        return rows

    def _is_contradicted(
        self, fitted: FittedModel, is_decode: bool, requests: int, tokens: int, limit_ms: float
    ) -> bool:
        """Return whether the fitted steps speak against a promise of a (B, S), as an SLA would say."""
        objective = Objective(limit_ms=limit_ms, quantile=self.quantile, confidence=self.confidence)
        observed = Observed.of(fitted, objective)
        return observed.near(None if is_decode else requests, tokens).is_contradicted

    def summary(self, runs: pd.DataFrame, folder: StudyFolder) -> TracePromises:
        """Compare realised with predicted shares, and count steps beyond promised limits."""
        if runs["steps"].isna().all():
            raise InputError(
                f"no trace could be fitted; see the column error of the table in {folder.folder}"
            )
        each, agree = runs.drop_duplicates("run"), cell_table(runs)
        return TracePromises(
            settings=folder.settings,
            tables={
                "kept": kept_table(runs),
                "pooled": pooled_table(runs),
                "cells_agree": agree,
                "calibration": calibration_table(runs),
            },
            agreement=agree.pivot_table(
                index=["split", "regime", "cells"], columns="level", values="agree"
            ).reset_index(),
            num_fits=len(each),
            errors=tuple(each.loc[each["error"].notna(), "error"]),
            num_passed=int(each["gate_passed"].fillna(False).astype(bool).sum()),
            cpu_seconds=each["cpu_seconds"],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class TracePromises(Findings):
    """What became of promises on held-out steps."""

    agreement: pd.DataFrame
    num_fits: int
    num_passed: int
    errors: tuple[str, ...]
    cpu_seconds: pd.Series


class _HeldOut:
    """Held-out steps of one regime, in cells of like (B, S), beside what a fit predicts for them."""

    def __init__(self, fitted: FittedModel, steps: pd.DataFrame) -> None:
        self.fit, self.steps = fitted, steps
        sizes = steps[_STEP].astype(float)
        self.cells = neighbour_cells(*(sizes[name].to_numpy() for name in _STEP), least=LEAST_STEPS)
        typical = sizes.groupby(self.cells).transform("median")
        apart = pd.Series(
            np.abs(np.log(sizes.to_numpy() / typical.to_numpy())).sum(axis=1), index=sizes.index
        )
        nearest = apart.groupby(self.cells).idxmin().sort_index()
        self.middle = pd.DataFrame(sizes.loc[nearest]).reset_index(drop=True)
        """A step of each cell near its median B and S."""

    def limits(self) -> list[dict[str, Any]]:
        """Return the rows of the limits at quantiles of each cell's middle step."""
        steps = steps_arrays(*(self.middle[name] for name in _STEP))
        limits = self.fit.quantile(steps, LEVELS, max_draws=_PREDICTIVE_DRAWS)
        limits_ms = limits.transpose("step", "quantile").to_numpy()
        rows = []
        for column, level in enumerate(LEVELS):
            predicted, late = self.late(limits_ms[self.cells, column])
            of_cell = self.middle.assign(limit_ms=limits_ms[:, column])
            key = {"kind": "limit", "level": level}
            rows += [key | row for row in self.counts(of_cell, predicted, late)]
        return rows

    def late(self, limit_ms: Floats) -> tuple[Floats, Bools]:
        """Return the predicted probability that each step is late, and whether it is, dims (step,)."""
        below = self.fit.probability_below(
            self.steps[_STEP], pd.Series(limit_ms), max_draws=_PREDICTIVE_DRAWS
        )
        return 1.0 - below.to_numpy(), self.steps["latency_ms"].to_numpy() > limit_ms

    def counts(self, of_cell: pd.DataFrame, predicted: Floats, late: Bools) -> list[dict[str, Any]]:
        """Return what is known of each cell with its count, and the count of all steps."""
        rows = [
            {"cell": number, **known} | self.count(self.cells == number, predicted, late)
            for number, known in enumerate(of_cell.to_dict("records"))
        ]
        return [*rows, {"cell": ALL} | self.count(np.ones(len(self.steps), dtype=bool), predicted, late)]

    def count(self, chosen: Bools, predicted: Floats, late: Bools) -> dict[str, Any]:
        """Count the late ones of some steps."""
        position = self.steps["position"].to_numpy()[chosen]
        return {
            "steps": int(chosen.sum()),
            "predicted": float(predicted[chosen].mean()),
            "late": int(late[chosen].sum()),
            "effective_steps": effective_tries(late[chosen], position // BLOCK),
        }


def neighbour_cells(batch_size: Floats, total_tokens: Floats, *, least: int) -> Ints:
    """Return the cell of each step, dims (step,), counted from 0.

    The steps are halved again and again, across whichever of log B and log S they spread more in, as long as
    both halves keep `least` steps. Steps of one (B, S) are never parted; few steps are one cell.
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


def calibration_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return predicted and realised shares of late steps for each trace, split, regime and level of limits.

    ``trace``, ``split``, ``regime``, ``level`` (of the cells' limits), ``steps``, ``effective_steps``,
    ``predicted``, ``realised``, ``lower``, ``upper``: interval of probability :data:`INTERVAL` of the
    realised share. `cells` are rows of :meth:`TraceStudy.run`, here and below.
    """
    return _realised(_of_regimes(cells, "limit"))[
        [*_OF_TRACE, "level", "steps", "effective_steps", "predicted", "realised", "lower", "upper"]
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

    ``trace``, ``split``, ``regime``, ``steps``, ``late`` (share), ``lower``, ``upper``; and of promises that
    the fitted steps bear out, ``borne_out`` (share of the steps), ``borne_out_late``, ``borne_out_lower``,
    ``borne_out_upper``.
    """
    made, borne = (
        _realised(_of_regimes(cells, kind)).rename(columns={"late": "count", "realised": "late"})[
            [*_OF_TRACE, "steps", "late", "lower", "upper"]
        ]
        for kind in ("promise", "borne out")
    )
    names = {name: f"borne_out_{name}" for name in ("late", "lower", "upper")}
    both = made.merge(borne.rename(columns={"steps": "borne_out"} | names), on=_OF_TRACE, how="left")
    return both.assign(borne_out=both["borne_out"].fillna(0) / both["steps"])


def cell_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return how many cells agree with what was predicted for them.

    ``split``, ``regime``, ``level``, ``cells``, and ``agree``: the share whose realised share's interval of
    probability :data:`INTERVAL` (all steps taken as independent) holds the predicted one.
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
