"""Capacity plans: how many servers a workload needs, how sure that is, and when it is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import xarray as xr

from bayes_sched.errors import InputError
from bayes_sched.planning.capacity import CapacityPlan, plan_capacity
from bayes_sched.planning.replay import SchedulerSettings
from bayes_sched.planning.simulator import FEWEST_DRAWS
from bayes_sched.planning.workload import Lengths, PoissonWorkload, Workload
from tests.conftest import known
from tests.synthetic_fit import server, synthetic_metadata, with_trace

SETTINGS = SchedulerSettings(token_budget=512, max_num_seqs=32)
BUSY = PoissonWorkload(rate_per_s=200.0, prompt=Lengths(300, 2.0), output=Lengths(30), num_requests=300)
IDLE = PoissonWorkload(rate_per_s=1.0, prompt=Lengths(50), output=Lengths(5), num_requests=60)
FEW: dict[str, Any] = {"num_draws": 48, "ttft_ms": 300.0, "tpot_ms": 30.0, "quantile": 0.9, "confidence": 0.9}


@pytest.fixture(scope="module")
def plan() -> CapacityPlan:
    return plan_capacity(server(), BUSY, SETTINGS, **FEW)


def test_the_smallest_number_of_servers_is_found(plan: CapacityPlan) -> None:
    assert plan.is_promised
    replicas = known(plan.replicas)
    by_number = {simulation.replicas: simulation for simulation in plan.simulations}
    assert by_number[replicas].confidence >= 0.9 > by_number[replicas - 1].confidence
    assert by_number[1].confidence == 0.0
    assert len(by_number[1].draws) == FEWEST_DRAWS, "what is hopeless is given up early"
    assert len(plan.shown.draws) == 48
    assert f"{plan.replicas} servers keep every limit" in plan.text


def test_more_servers_do_not_hurt(plan: CapacityPlan) -> None:
    confidences = [simulation.confidence for simulation in plan.simulations]
    assert confidences == sorted(confidences)
    medians = [simulation.times["e2e"]["p50_ms"]["median"] for simulation in plan.simulations]
    assert medians == sorted(medians, reverse=True)


def test_a_plan_is_plain_values(plan: CapacityPlan) -> None:
    back = json.loads(json.dumps(plan.to_dict(), allow_nan=False))
    assert back["replicas"] == plan.replicas
    assert back["steps_per_second"] > 0
    assert plan.table["confidence"].tolist() == [row["confidence"] for row in back["simulations"]]
    times = plan.request_times
    for key, found in plan.shown.times.items():
        (row,) = times[(times["time"] == key) & np.isclose(times["level"], 0.95)].itertuples()
        shown = (row.ms, row.ms_lower, row.ms_upper)
        assert shown == tuple(found["p95_ms"][name] for name in ("median", "lower", "upper"))


def test_the_same_seed_gives_the_same_plan() -> None:
    few = {**FEW, "num_draws": 6, "replicas": 2}
    numbers = [
        plan_capacity(server(), BUSY, SETTINGS, **few, seed=seed).table.to_json() for seed in (0, 0, 1)
    ]
    assert numbers[0] == numbers[1]
    assert numbers[0] != numbers[2]


def test_a_number_that_is_asked_for_is_judged(plan: CapacityPlan) -> None:
    assert plan_capacity(server(), BUSY, SETTINGS, **FEW, replicas=plan.replicas).is_promised


@pytest.mark.parametrize(
    ("changes", "tried", "sentences"),
    [
        ({"replicas": 1}, [1], ["1 server does NOT keep every limit", "OVERLOAD"]),
        ({"ttft_ms": 1.0}, [1], ["No number of servers will do", "time to first token within 1 ms"]),
        ({"max_replicas": 2}, [1, 2], ["no number up to 2 does"]),
    ],
)
def test_what_will_not_do_is_said_with_what_was_tried(
    changes: dict[str, Any], tried: list[int], sentences: list[str]
) -> None:
    refused = plan_capacity(server(), BUSY, SETTINGS, **{**FEW, **changes})
    assert not refused.is_promised
    assert [simulation.replicas for simulation in refused.simulations] == tried
    assert all(sentence in refused.text for sentence in sentences)


def test_without_limits_the_servers_have_to_keep_up() -> None:
    assert plan_capacity(server(), IDLE, SETTINGS, num_draws=8).replicas == 1
    flooded = plan_capacity(server(), BUSY, SETTINGS, num_draws=8, replicas=1)
    assert not flooded.is_promised
    assert flooded.shown.p_overloaded == 1.0


def test_what_is_not_known_of_the_server_widens_the_intervals() -> None:
    log = BUSY.draw(np.random.default_rng(3))  # the same arrivals in every draw

    def width(spread: float) -> float:
        found = plan_capacity(server(spread=spread), log, SETTINGS, num_draws=48, replicas=4)
        half = found.shown.times["tpot"]["p50_ms"]
        return float(half["upper"] - half["lower"])

    assert width(0.2) > 2.0 * width(0.01)


def test_all_requests_at_once_are_served() -> None:
    burst = Workload(np.zeros(50), np.full(50, 100), np.full(50, 10))
    found = plan_capacity(server(), burst, SETTINGS, num_draws=4, replicas=2)
    assert found.is_promised
    assert max(draw.queue_max for draw in found.shown.draws) <= 25.0


def test_steps_beyond_the_data_are_not_promised() -> None:
    many = SchedulerSettings(token_budget=512, max_num_seqs=500)
    crowd = Workload(np.zeros(200), np.full(200, 10), np.full(200, 50))
    refused = plan_capacity(server(), crowd, many, num_draws=4)
    assert not refused.is_promised
    assert "more requests or tokens than any of the trace" in refused.text
    assert plan_capacity(server(), crowd, many, num_draws=4, extrapolate=True).is_promised


def test_a_fit_that_has_not_converged_plans_nothing() -> None:
    bad = replace(server(), metadata=synthetic_metadata(converged=False))
    assert not plan_capacity(bad, IDLE, SETTINGS, num_draws=2).is_promised
    assert plan_capacity(bad, IDLE, SETTINGS, num_draws=2, accept_unconverged=True).is_promised


def test_progress_is_told() -> None:
    told: list[tuple[str, float | None]] = []
    plan_capacity(server(), IDLE, SETTINGS, num_draws=4, progress=lambda *stage: told.append(stage))
    assert told[0] == ("tabulating step times", None)
    assert told[1:] == [("simulating 1 server", share) for share in (0.25, 0.5, 0.75, 1.0)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replicas": 0}, "replicas = 0"),
        ({"num_draws": 0}, "num_draws = 0"),
        ({"max_replicas": -1}, "max_replicas = -1"),
        ({"ttft_ms": -5.0}, "a limit of -5 ms"),
        ({"quantile": 1.0}, "quantile = 1"),
        ({"confidence": 0.0}, "confidence = 0"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        plan_capacity(server(), BUSY, SETTINGS, **{**FEW, **changes})


GAP = Workload(np.zeros(3), np.full(3, 200), np.full(3, 200))


def test_steps_that_the_trace_does_not_hold_are_not_promised_unless_that_is_asked_for() -> None:
    """Three requests decode together: 2 and 4 were seen, and nothing between 4 and 32 is needed."""
    seen = server().cells.to_dataframe().query("batch_size != 2 and batch_size != 4")
    tree = server().data.copy()
    tree["cells"] = xr.DataTree(xr.Dataset({str(k): ("cell", v.to_numpy()) for k, v in seen.items()}))
    fit = replace(server(), data=tree)
    refused = plan_capacity(fit, GAP, SETTINGS, num_draws=4)
    assert refused.shown.beyond == 0.0
    assert not refused.is_promised
    assert "lies in steps that the trace does not cover" in refused.text
    assert plan_capacity(fit, GAP, SETTINGS, num_draws=4, extrapolate=True).is_promised


@pytest.mark.parametrize(("factor", "is_promised"), [(1.0, True), (1.2, True), (4.0, False)])
def test_a_plan_is_made_again_with_the_traces_own_medians(factor: float, is_promised: bool) -> None:
    limits: dict[str, Any] = {**FEW, "tpot_ms": 40.0, "num_draws": 16}
    found = plan_capacity(with_trace(server(), factor), IDLE, SETTINGS, replicas=1, **limits)
    assert found.shown.confidence == 1.0
    assert found.is_promised == is_promised
    assert (found.own is not None) == (factor > 1.0)
    assert ("Undecided: the trace's own steps give another answer" in found.text) == (not is_promised)
    if found.own is not None:
        assert found.shown.contradicted > 0.9
        medians = [of.times["tpot"]["p50_ms"]["median"] for of in (found.shown, found.own)]
        assert medians[1] / medians[0] == pytest.approx(factor, rel=0.1)
