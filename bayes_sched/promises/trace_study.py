"""Promises made on four fifths of a trace, held against the other steps.

Two things are asked of the held-out steps. Of a limit in ms, whether as many steps exceed it as predicted;
and of the limit promised for a step's (B, S), whether more exceed it than promised.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from bayes_sched.binomial import effective_tries
from bayes_sched.errors import FIT_ERRORS, error_text
from bayes_sched.fitted import FittedModel
from bayes_sched.fitting import fit
from bayes_sched.promises.neighbours import neighbour_cells
from bayes_sched.settings import SamplerSettings
from bayes_sched.sla.evidence import evidence
from bayes_sched.sla.line import Line
from bayes_sched.sla.objective import DEFAULT_CONFIDENCE, DEFAULT_QUANTILE, Objective
from bayes_sched.sla.search import quantile_draws
from bayes_sched.steps import steps_arrays
from bayes_sched.validation.regimes import regime
from bayes_sched.validation.servers import NO_LIMITS_MS, Server
from bayes_sched.validation.splits import BLOCK, SPLITS, cut

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

type Floats = NDArray[np.float64]
type Bools = NDArray[np.bool_]


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
    return evidence(fitted, Line() if is_decode else Line(requests), tokens, objective).is_contradicted


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
