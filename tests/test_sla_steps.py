"""Promises of steps: caps that hold for all steps up to them, risk beside confidence, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import xarray as xr

from bayes_sched import report
from bayes_sched.errors import InputError
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.region import region_of
from bayes_sched.reports.terminal import terminal
from bayes_sched.sla.evidence import FEW, Evidence, Observed
from bayes_sched.sla.limits import (
    EXTRAPOLATION_FACTOR,
    StepLine,
    StepSearch,
    largest_kept,
    steps_on,
)
from bayes_sched.sla.risk import Objective, step_risk
from bayes_sched.sla.steps import StepSLA, risk_map, step_sla
from bayes_sched.steps import steps_arrays
from tests.conftest import known
from tests.synthetic_fit import server, synthetic_cells, synthetic_metadata

SLO_MS = 20.0
OBJECTIVE = Objective(limit_ms=SLO_MS)
quick_sla = partial(step_sla, max_draws=100)


@pytest.fixture(scope="module")
def sla() -> StepSLA:
    return step_sla(server(), slo_ms=SLO_MS, decodes=7)


@pytest.mark.parametrize(("name", "first", "last"), [("decode_only", 1, 64), ("token_budget", 8, 4096)])
def test_the_largest_cap_is_that_of_an_exhaustive_search(
    sla: StepSLA, name: str, first: int, last: int
) -> None:
    numbers = np.arange(first, last + 1)
    steps = steps_arrays(numbers if name == "decode_only" else 8, numbers)
    draws = server().quantile_draws(steps, 0.99, max_draws=None).to_numpy().reshape(-1, len(numbers))
    kept = (np.maximum.accumulate(draws, axis=1) <= SLO_MS).mean(axis=0) >= 0.95
    limit = getattr(sla, name)
    assert first < limit.promised.number == numbers[kept][-1] < last
    assert limit.limited_by == "slo"


def test_a_cap_is_not_promised_over_a_slower_small_batch() -> None:
    def slow_at_3(steps: xr.Dataset) -> np.ndarray[Any, Any]:
        return np.where(steps["batch_size"].to_numpy() == 3, 30.0, 10.0)[None, :]

    for first, found in ((1, 2), (3, None)):
        spans, kept = [(first, 30)], lambda running: running[0] <= SLO_MS
        assert largest_kept([StepLine()], spans, evaluate=slow_at_3, is_kept=kept) == (found,)


def test_small_slow_batches_stop_a_cap_of_the_saturation_equation() -> None:
    limit = step_sla(server(k_B=1.0, tau_B=1.0), slo_ms=SLO_MS).decode_only
    first, last = known(limit.alone)
    assert (limit.promised, last) == (None, 67)
    assert 1 < first < last
    assert "not even the smallest" in limit.text
    assert f"steps of {first} to 67 would keep it" in limit.text


@pytest.mark.parametrize("stop", [1, 2, 33, 34, 777, 4096])
def test_the_search_finds_every_end(stop: int) -> None:
    def rising(steps: xr.Dataset) -> np.ndarray[Any, Any]:
        return steps["total_tokens"].to_numpy()[None, :].astype(float)

    lines, spans = [StepLine(), StepLine(1)], [(1, 4096), (1, 5)]
    found = largest_kept(lines, spans, evaluate=rising, is_kept=lambda running: running[0] <= stop + 0.5)
    assert found == (stop, min(stop, 5))


def test_risk_and_confidence_are_what_the_draws_say() -> None:
    steps = steps_arrays([8, 8, 40], [8, 900, 40])
    risk = step_risk(server(), steps, OBJECTIVE, max_draws=None)
    below = server().probability_below_draws(steps, SLO_MS, max_draws=None)
    np.testing.assert_allclose(risk["probability"], below.mean(("chain", "draw")))
    np.testing.assert_allclose(risk["lower"], below.quantile(0.05, ("chain", "draw")))
    quantiles = server().quantile_draws(steps, 0.99, max_draws=None)
    np.testing.assert_allclose(risk["confidence"], (quantiles <= SLO_MS).mean(("chain", "draw")))
    surface = risk_map(server(), OBJECTIVE, num=6)
    assert surface["probability"].dims == ("batch_size", "total_tokens")
    assert bool(surface["probability"].isnull().equals(~surface["possible"]))
    assert {"probability", "lower", "upper", "confidence", "extrapolation"} <= set(surface)


def test_more_knowledge_raises_confidence_and_leaves_risk() -> None:
    steps = steps_arrays(30, 30)
    wide, narrow = (step_risk(server(spread=s), steps, OBJECTIVE).isel(step=0) for s in (0.1, 0.005))
    assert float(narrow["upper"] - narrow["lower"]) < 0.2 * float(wide["upper"] - wide["lower"])
    assert float(narrow["probability"]) == pytest.approx(float(wide["probability"]), abs=0.05)


def test_a_higher_confidence_or_quantile_promises_less() -> None:
    def budget(**changes: float) -> int:
        objective = Objective(limit_ms=SLO_MS, **changes)
        search = StepSearch(server(), objective, extrapolate=False, probability=0.9, max_draws=400)
        return known(search.promised([StepLine(8)], [(8, 4096)])[0])

    assert budget(confidence=0.99) < budget(confidence=0.9) < budget(confidence=0.5)
    assert budget(quantile=0.999) < budget(quantile=0.9)


def test_a_point_estimate_allows_what_breaks_half_of_the_time(sla: StepSLA) -> None:
    limit = known(sla.token_budget)
    point, promised = known(limit.point), known(limit.promised)
    assert point.number > promised.number
    assert point.probability == pytest.approx(0.5, abs=0.02)
    assert promised.probability > 0.99
    assert "A point estimate allows" in limit.text


def test_the_frontier_is_that_of_single_lines(sla: StepSLA) -> None:
    row = sla.frontier.iloc[10]
    line = StepLine(int(row["batch_size"]))
    assert line.span(server().region) == (row["first_tokens"], row["last_tokens"])
    search = StepSearch(server(), OBJECTIVE, extrapolate=False, probability=0.9, max_draws=2000)
    limit = search.limit(line)
    promised = known(limit.promised)
    assert (promised.number, limit.limited_by) == (row["total_tokens"], row["limited_by"])
    assert row["probability"] == pytest.approx(promised.probability, abs=1e-3)


def test_nothing_outside_the_data_is_promised_unless_asked() -> None:
    inside = quick_sla(server(), slo_ms=500.0, decodes=500, batch_size=100)
    limit, unseen = inside.decode_only, known(inside.token_budget)
    assert known(limit.promised).number == 67  # 64 and the tolerance of the region
    assert (limit.limited_by, limit.asked_is_kept, inside.is_promised) == ("data", False, False)
    assert "the trace holds no larger steps" in inside.text
    assert (unseen.limited_by, unseen.promised) == ("nothing seen", None)
    assert not quick_sla(server(), slo_ms=500.0, decodes=500).is_promised
    outside = quick_sla(server(), slo_ms=500.0, batch_size=100, extrapolate=True)
    assert outside.is_promised
    assert outside.decode_only.last == EXTRAPOLATION_FACTOR * 67
    assert known(outside.decode_only.promised).extrapolation
    assert "EXTRAPOLATION" in outside.text


def test_a_span_is_all_that_a_trace_covers_of_a_line() -> None:
    region = region_of(np.array([6, 24, 12, 1, 10]), np.array([6, 24, 40, 512, 512]), count=5)
    assert StepLine().span(region) == (6, 25)
    assert StepLine(1).span(region) is not None
    assert StepLine(40).span(region) is None
    steps = steps_on([StepLine(10)], np.maximum(np.arange(1, 600), 10)[None, :])
    seen = steps["total_tokens"].to_numpy()[region.contains(steps["batch_size"], steps["total_tokens"])]
    assert StepLine(10).span(region) == (seen.min(), seen.max())


def test_a_limit_below_the_floor_is_an_answer() -> None:
    answer = quick_sla(server(), slo_ms=0.5)
    assert not answer.is_promised
    assert answer.is_below_floor
    assert "No step of this server keeps 0.5 ms" in answer.text
    assert not quick_sla(server(), slo_ms=1.01 * answer.floor_ms).is_below_floor


def test_what_was_asked_decides_alone() -> None:
    most = known(quick_sla(server(), slo_ms=SLO_MS).decode_only.promised).number
    assert quick_sla(server(), slo_ms=SLO_MS, batch_size=most).is_promised
    assert not quick_sla(server(), slo_ms=SLO_MS, batch_size=most + 1).is_promised
    too_large = quick_sla(server(), slo_ms=SLO_MS, batch_size=most, decodes=7, token_budget=4000)
    assert not too_large.is_promised


def test_a_fit_that_has_not_converged_promises_nothing() -> None:
    fit = replace(server(), metadata=synthetic_metadata(converged=False))
    refused = quick_sla(fit, slo_ms=SLO_MS)
    assert refused.decode_only.promised is not None
    assert not refused.is_promised
    assert "has not converged" in refused.text
    assert quick_sla(fit, slo_ms=SLO_MS, accept_unconverged=True).is_promised


def test_an_answer_is_plain_values(sla: StepSLA) -> None:
    back = json.loads(json.dumps(sla.to_dict(), allow_nan=False))
    assert back["decode_only"]["promised"]["number"] > 0
    assert len(back["frontier"]) == len(sla.table)
    assert back["is_promised"] is True


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"slo_ms": -1.0}, "a limit of -1 ms"),
        ({"slo_ms": float("nan")}, "a limit of nan ms"),
        ({"slo_ms": float("inf")}, "a limit of inf ms"),
        ({"quantile": 1.0}, "quantile = 1: give a probability between 0 and 1"),
        ({"confidence": 0.0}, "confidence = 0: give a probability between 0 and 1"),
        ({"probability": 2.0}, "probability = 2: give a probability between 0 and 1"),
        ({"batch_size": 0}, "batch_size = 0: give at least 1 request"),
        ({"decodes": -1}, "decodes = -1"),
        ({"token_budget": 100}, "give their number too"),
        ({"decodes": 100, "token_budget": 100}, "leaves no token for a prefill"),
        ({"max_draws": 0}, "max_draws = 0"),
    ],
)
def test_bad_input_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        step_sla(server(), **{"slo_ms": SLO_MS, **changes})


def seen(*cells: tuple[float, ...]) -> FittedModel:
    """A server whose trace also holds some cells: B, S, count, and three quantiles of their latency, ms."""
    names = ["batch_size", "total_tokens", "count", "q05_ms", "median_ms", "q95_ms"]
    columns = dict(zip(names, np.array(cells).T, strict=True))
    further = xr.Dataset({name: ("cell", values) for name, values in columns.items()})
    tree = server().data.copy()
    tree["cells"] = xr.DataTree(xr.concat([synthetic_cells(), further], "cell"))
    return replace(server(), data=tree)


def near(fit: FittedModel) -> Evidence:
    """What the trace says of steps of 8 requests and up to 100 tokens."""
    return Observed.of(fit, OBJECTIVE).near(8, 100)


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
    found = near(seen((8, 100, 100, *quantiles)))
    assert found.num_steps == 100
    assert found.late_share == pytest.approx(late / 100)
    assert found.is_contradicted == (late > 0)


def test_the_count_is_never_above_what_really_was_late() -> None:
    rng = np.random.default_rng(3)
    for count in (1, 2, 7, 19, 20, 21, 150):
        latency = rng.gamma(4.0, 4.0, count)
        cell = (8, 100, count, *np.quantile(latency, [0.05, 0.5, 0.95]))
        found = near(seen(cell))
        assert known(found.late_share) * count <= (latency > SLO_MS).sum() + 1e-9


def test_few_late_steps_and_far_ones_are_no_contradiction() -> None:
    one = seen((8, 100, 99, 10.0, 11.0, 12.0), (8, 99, 1, 30.0, 30.0, 30.0))
    found = near(one)
    assert found.late_share == pytest.approx(0.01)
    assert not found.is_contradicted
    far = seen(*((b, s, 100, 30.0, 31.0, 32.0) for b, s in ((8, 300), (40, 100))))
    found = near(far)
    assert (found.num_steps, found.late_share, found.is_contradicted) == (0, None, False)
    assert "The trace holds 0 steps near it: this rests on the equation" in found.text


def test_what_the_trace_contradicts_is_not_promised() -> None:
    honest = quick_sla(server(), slo_ms=SLO_MS, decodes=7)
    promised = known(known(honest.token_budget).promised)
    most = promised.number
    assert honest.is_promised
    assert promised.evidence.num_steps < FEW
    stairs = seen((8, most - 10, 200, 25.0, 26.0, 27.0))
    words = "The trace CONTRADICTS this: of its 200 steps near {:,} 190 took longer"
    for asked in (None, most - 5):
        refused = quick_sla(stairs, slo_ms=SLO_MS, decodes=7, token_budget=asked)
        assert not refused.is_promised
        assert words.format(asked or most) in refused.text
    assert quick_sla(stairs, slo_ms=SLO_MS, decodes=7, token_budget=most // 2).is_promised
    assert bool(refused.frontier["is_contradicted"].any())


def test_an_answer_alone_has_a_report_without_figures(sla: StepSLA) -> None:
    document = report(sla)
    assert document.numbers["steps"] == sla.to_dict()
    assert not document.figures
    assert known(sla.decode_only.promised).number > 0
    assert sla.decode_only.text in terminal(document).replace("\n", " ")


def watched(*decodes: tuple[int, int, float]) -> FittedModel:
    """A server whose trace holds decode-only steps: requests, how many, and the latency of each, ms."""
    size, count, latency = (np.array(values) for values in zip(*decodes, strict=True))
    columns = {"batch_size": size, "total_tokens": size, "latency_ms": latency}
    steps = {name: ("step", np.repeat(values, count)) for name, values in columns.items()}
    tree = server().data.copy()
    tree["observed"] = xr.DataTree(xr.Dataset(steps))
    return replace(server(), data=tree)


def test_a_refusal_that_enough_steps_contradict_is_withdrawn() -> None:
    """The model has 42 requests; steps of more were never late."""
    limit = quick_sla(
        watched((30, 300, 12.0), (45, 400, 14.0), (60, 400, 15.0)), slo_ms=SLO_MS, batch_size=60
    ).decode_only
    asked = known(limit.asked)
    assert (limit.asked_is_trusted, limit.asked_is_kept) == (False, True)
    assert (asked.evidence.num_late, asked.evidence.num_steps) == (0, 400)
    assert asked.evidence.late_upper < 0.01
    assert (
        "Asked for 60 requests: may be promised, on the word of the trace (0 of its 400 steps" in limit.text
    )
    assert "By the trace alone, 60 requests: 0 of its 400 steps near that were late" in limit.text


def test_a_refusal_that_few_steps_contradict_is_undecided_and_not_promised() -> None:
    answer = quick_sla(watched((30, 300, 12.0), (60, 100, 15.0)), slo_ms=SLO_MS, batch_size=60)
    limit = answer.decode_only
    assert not answer.is_promised
    assert "Asked for 60 requests: UNDECIDED, and not promised" in limit.text
    assert "299, none late, would promise it" in limit.text
    assert known(limit.refuted).number == 60
    assert "that CONTRADICTS the limit, and up to 60 is undecided" in limit.text
    assert "decode-only steps of 60 requests: fitted" in limit.text


def test_a_gap_below_is_not_borne_out() -> None:
    """Quick steps of 60 requests do not promise those of 40, of which none were seen."""
    fit = watched((20, 300, 12.0), (60, 400, 15.0))
    limit = quick_sla(fit, slo_ms=SLO_MS, batch_size=60).decode_only
    assert not limit.asked_is_kept
    assert "UNDECIDED" in limit.text


def test_a_refusal_that_the_trace_confirms_stays() -> None:
    limit = quick_sla(watched((30, 300, 12.0), (60, 400, 25.0)), slo_ms=SLO_MS, batch_size=60).decode_only
    assert not limit.asked_is_kept
    assert "Asked for 60 requests: may NOT be promised" in limit.text
    assert (known(limit.seen).number, limit.refuted) == (30, None)


def test_a_promise_is_contradicted_by_late_steps_of_any_smaller_batch() -> None:
    late = watched((8, 300, 25.0), (40, 300, 12.0))
    refused = quick_sla(late, slo_ms=SLO_MS, batch_size=40)
    assert not refused.is_promised
    assert "of its 300 steps near 8 300 took longer" in refused.text


def test_a_promise_on_steps_slower_than_the_model_is_undecided_where_few_bear_it_out() -> None:
    few, enough = (watched((10, 300, 9.0), (30, num, 19.0)) for num in (60, 400))
    assert (
        "UNDECIDED, and not promised: the trace is slower" in quick_sla(few, slo_ms=22.0, batch_size=30).text
    )
    assert quick_sla(enough, slo_ms=22.0, batch_size=30).is_promised
