"""What a comparison says in other words: equivalent loads, throughput and cost."""

from __future__ import annotations

import json

import numpy as np
import pytest

from bayes_sched.comparison.compare import Comparison, compare
from bayes_sched.comparison.throughput import (
    BY_LIMIT,
    BY_TRACE,
    COST,
    TOKENS,
    equivalent_sentence,
    largest_within,
    rates_of,
)
from bayes_sched.format import records
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.steps import steps_arrays
from tests.comparison_fits import RATIO, SMALL, by, servers_of


def test_equivalent_decodes_take_equally_long(
    comparison: Comparison, compared_fits: list[FittedModel]
) -> None:
    rows = comparison.equivalents[~comparison.equivalents["extrapolation"]]
    assert set(rows["gpu"]) == {"X100", "Y50"}
    fits = dict(zip(comparison.labels, compared_fits, strict=True))
    for row in records(rows[rows["median"] >= 1.0]):
        asked = ((row["gpu"], row["batch_size"]), (row["other"], row["median"]))
        at = [fits[gpu].mean_band(steps_arrays(n, n))["median"].item() for gpu, n in asked]
        assert at[0] == pytest.approx(at[1], rel=0.02)
        assert row["lower"] <= row["median"] <= row["upper"]


def test_the_largest_number_within_a_limit_is_interpolated_and_bounded() -> None:
    points = np.array([1.0, 2.0, 4.0])
    latency = np.array([[10.0, 12.0, 20.0]] * 4)
    assert largest_within(points, latency, np.array([9.0, 10.0, 16.0, 25.0])).tolist() == [
        0.0,
        1.0,
        3.0,
        np.inf,
    ]
    falling = np.array([[15.0, 12.0, 20.0]])
    assert largest_within(points, falling, np.array([13.0])).tolist() == [2.25]


def test_an_equivalent_beyond_the_search_is_said_so() -> None:
    row = {"batch_size": 32, "gpu": "A", "other": "B", "limit": 400.0, "extrapolation": True}
    text = equivalent_sentence({**row, "median": None, "lower": 390.0, "upper": None})
    assert text == "32 decodes on A cost what more than 400 on B do (390 to more than 400; an extrapolation)"
    assert "less than 1" in equivalent_sentence({**row, "median": 0.0, "lower": 0.0, "upper": 2.0})


def test_throughput_and_cost_follow_from_latency(
    comparison: Comparison, compared_fits: list[FittedModel]
) -> None:
    is_case = comparison.throughput["case"].str.startswith("largest decode")
    row = by(comparison.throughput[is_case], "gpu")["X100"]
    mean_ms = compared_fits[0].mean_band(steps_arrays(64, 64))["median"].item()
    assert row["tokens_per_s"] == pytest.approx(64_000 / mean_ms, rel=1e-3)
    assert row["cost"] == pytest.approx(2.0 * 1e6 / (3600 * 64_000 / mean_ms), rel=1e-3)
    assert row["cost_lower"] < row["cost"] < row["cost_upper"]
    money = by(comparison.money[comparison.money["case"].str.startswith("largest decode")], "quantity")
    assert money[TOKENS]["ratio_median"] == pytest.approx(1.0 / RATIO, rel=0.01)
    assert money[TOKENS]["verdict"] == "more tokens"
    assert money[COST]["ratio_median"] == pytest.approx(2.0 * RATIO, rel=0.01)
    assert money[COST]["verdict"] == "dearer"
    assert money[COST]["p_better"] == 0.0


def test_a_latency_limit_is_kept_and_what_sets_the_throughput_is_said(
    comparison: Comparison, compared_fits: list[FittedModel]
) -> None:
    within = comparison.throughput[comparison.throughput["case"].str.contains("within 30 ms")]
    assert len(within) == 4
    for row in records(within):
        fit = compared_fits[comparison.labels.index(row["gpu"])]
        steps = steps_arrays(row["batch_size"], row["total_tokens"])
        assert fit.quantile(steps, 0.9).item() < 30.0 * 1.02
        assert fit.in_region(steps).item()
    servers = servers_of(compared_fits)
    set_by = {
        slo_ms: {
            rate.set_by for rate in rates_of(servers, comparison.steps[:0], slo_ms=slo_ms, slo_quantile=0.9)
        }
        for slo_ms in (12.0, 1e6)
    }
    assert BY_LIMIT in set_by[12.0]
    assert set_by[1e6] == {BY_TRACE}


def test_no_step_within_the_limit_is_no_throughput_and_no_cost(compared_fits: list[FittedModel]) -> None:
    found = compare(compared_fits, slo_ms=0.1, prices={"fast": 1.0, "slow": 1.0}, **SMALL)
    none = found.throughput[found.throughput["case"].str.contains("within")]
    assert (none["tokens_per_s"] == 0.0).all()
    assert none["cost"].isna().all()
    assert not found.money["case"].str.contains("within").any()
    json.dumps(found.to_dict(), allow_nan=False)
