"""A promise is held against the trace: what contradicts it, and what rests on the equation alone."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.sla.limits import FEW, Evidence, StepLine, evidence
from bayes_sched.sla.risk import Objective
from bayes_sched.sla.steps import step_sla
from tests.synthetic_fit import server, synthetic_cells
from tests.test_sla_steps import SLO_MS

OBJECTIVE = Objective(limit_ms=SLO_MS)


def seen(cells: list[tuple[int, int, int, float, float, float]]) -> FittedModel:
    """A server whose trace also holds some cells: B, S, count, and three quantiles of their latency, ms."""
    fit = server()
    names = ["batch_size", "total_tokens", "count", "q05_ms", "median_ms", "q95_ms"]
    further = xr.Dataset(
        {
            name: ("cell", np.array(values))
            for name, values in zip(names, zip(*cells, strict=True), strict=True)
        }
    )
    tree = fit.data.copy()
    tree["cells"] = xr.DataTree(xr.concat([synthetic_cells(), further], "cell"))
    return replace(fit, data=tree)


@pytest.mark.parametrize(
    ("quantiles", "late"),
    [
        ((10.0, 12.0, 15.0), 0),
        ((10.0, 12.0, 21.0), 5),  # the 95 % quantile of 100 steps and those above it
        ((10.0, 21.0, 30.0), 50),
        ((21.0, 25.0, 30.0), 95),
    ],
)
def test_late_steps_are_counted_from_below(quantiles: tuple[float, float, float], late: int) -> None:
    found = evidence(seen([(8, 100, 100, *quantiles)]), StepLine(8), 100, OBJECTIVE)
    assert found.num_steps == 100
    assert found.late_share == pytest.approx(late / 100)
    assert found.is_contradicted == (late > 0)


def test_the_count_is_never_above_what_really_was_late() -> None:
    rng = np.random.default_rng(3)
    for count in (1, 2, 7, 19, 20, 21, 150):
        latency = rng.gamma(4.0, 4.0, count)
        q05, q50, q95 = np.quantile(latency, [0.05, 0.5, 0.95])
        found = evidence(seen([(8, 100, count, q05, q50, q95)]), StepLine(8), 100, OBJECTIVE)
        assert found.late_share is not None
        assert found.late_share * count <= (latency > SLO_MS).sum() + 1e-9


def test_one_late_step_in_a_hundred_is_no_contradiction() -> None:
    cells: list[Any] = [(8, 100, 99, 10.0, 11.0, 12.0), (8, 99, 1, 30.0, 30.0, 30.0)]
    found = evidence(seen(cells), StepLine(8), 100, OBJECTIVE)
    assert found.late_share == pytest.approx(0.01)
    assert not found.is_contradicted


def test_steps_far_from_a_promise_do_not_speak() -> None:
    cells: list[Any] = [
        (8, 300, 100, 30.0, 31.0, 32.0),
        (8, 20, 100, 30.0, 31.0, 32.0),
        (40, 100, 50, 30.0, 31.0, 32.0),
    ]
    found = evidence(seen(cells), StepLine(8), 100, OBJECTIVE)
    assert found == Evidence(num_steps=0, late_share=None, is_contradicted=False)
    assert "The trace holds 0 steps near it: this rests on the equation" in found.text


def test_what_the_trace_contradicts_is_not_promised() -> None:
    honest = step_sla(server(), slo_ms=SLO_MS, decodes=7)
    assert honest.token_budget is not None
    assert honest.token_budget.promised is not None
    most = honest.token_budget.promised.number
    assert honest.is_promised
    assert honest.token_budget.promised.evidence.num_steps < FEW
    stairs = seen([(8, most - 10, 200, 25.0, 26.0, 27.0)])
    for asked in (None, most - 5):
        refused = step_sla(stairs, slo_ms=SLO_MS, decodes=7, token_budget=asked)
        assert not refused.is_promised
        assert (
            "The trace CONTRADICTS this: of its 200 steps near it at least 95.0% took longer" in refused.text
        )
    assert step_sla(stairs, slo_ms=SLO_MS, decodes=7, token_budget=most // 2).is_promised
    assert bool(refused.frontier["is_contradicted"].any())
