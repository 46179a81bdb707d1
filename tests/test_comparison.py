"""Comparisons: known ratios come out, and all that is asked of a comparison is in it."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError

import numpy as np
import pytest
from bayes_sched.comparison.words import certainty

import bayes_sched
from bayes_sched.comparison.compare import Comparison, compare
from bayes_sched.comparison.verdicts import IN_TRACES, MEASURED, ON_GRID, data_factor
from bayes_sched.posterior.fitted import FittedModel
from tests.comparison_fits import RATIO, SMALL, by, server


def test_the_public_name_is_the_function() -> None:
    assert bayes_sched.compare is compare


def test_a_known_ratio_comes_out_at_every_step(comparison: Comparison) -> None:
    covered = comparison.table[~comparison.table["extrapolation"]]
    assert len(covered) > 50
    assert covered["ratio_median"].to_numpy() == pytest.approx(RATIO, rel=0.01)
    assert (covered["verdict"] == "faster").all()
    assert (covered["p_faster"] > 0.99).all()
    assert (covered["ratio_lower"] < covered["ratio_upper"]).all()


def test_arrays_carry_the_dims_that_are_promised(comparison: Comparison) -> None:
    assert comparison.mean_latency_ms.dims == ("gpu", "draw", "batch_size", "total_tokens")
    assert comparison.mean_latency_ms["gpu"].to_numpy().tolist() == ["X100", "Y50"]
    assert set(comparison.maps["ratio_median"].dims) == {"pair", "batch_size", "total_tokens"}
    assert comparison.maps["pair"].to_numpy().tolist() == ["X100 / Y50"]
    assert comparison.mean_latency_ms.attrs["units"] == "ms"


def test_probabilities_to_be_fastest_add_up_to_one() -> None:
    three = [server(f, name=n) for f, n in ((1.0, "a"), (1.01, "b"), (1.02, "c"))]
    found = compare(three, **SMALL)
    total = found.maps["p_fastest"].sum("gpu", skipna=False)
    assert total.to_numpy()[found.grid["possible"].to_numpy()] == pytest.approx(1.0)
    assert found.maps["pair"].to_numpy().tolist() == ["a / b", "a / c", "b / c"]
    assert len(found.steps) == 9


def test_more_data_are_asked_for_where_the_ratio_is_least_known() -> None:
    vague = server(1.04, name="vague", spread=0.05)
    found = compare([vague, server(name="sure", spread=0.001)])
    open_rows = found.table[(found.table["verdict"] == "undecided") & ~found.table["extrapolation"]]
    width = (open_rows["ratio_upper"] / open_rows["ratio_lower"] - 1.0).max()
    assert found.wanted["width"].iloc[0] == pytest.approx(width)
    assert found.wanted["width"].is_monotonic_decreasing
    assert set(found.wanted["measure"]) == {"vague"}
    assert "on vague" in found.text


def test_the_data_that_would_decide_follow_from_the_interval() -> None:
    edge = np.log(1.05)
    assert data_factor(np.exp(-0.1), 1.0, np.exp(0.1), rope=0.05) == pytest.approx((0.1 / edge) ** 2)
    assert data_factor(0.9, 1.05, 1.2, rope=0.05) is None


def test_shares_are_of_the_grid_of_measured_steps_and_of_the_traces(
    comparison: Comparison, compared_fits: list[FittedModel]
) -> None:
    rows = by(comparison.shares, "of")
    assert set(rows) == {ON_GRID, MEASURED, IN_TRACES}
    words = ["faster", "slower", "equivalent", "undecided"]
    assert comparison.shares[words].sum(axis=1).to_numpy() == pytest.approx(1.0)
    assert rows[MEASURED]["num_steps"] < rows[ON_GRID]["num_steps"]
    assert rows[IN_TRACES]["num_steps"] == compared_fits[0].cells.sizes["cell"]


def test_the_result_is_frozen_and_ready_for_json(comparison: Comparison) -> None:
    with pytest.raises(FrozenInstanceError):
        comparison.rope = 0.1  # type: ignore[misc]
    numbers = json.loads(json.dumps(comparison.to_dict(), allow_nan=False))
    assert numbers["labels"] == ["X100", "Y50"]
    assert numbers["grid"][0]["gpu"] == "X100"
    assert numbers["fits"][0]["price_per_hour"] == 2.0
    assert numbers["text"] in comparison.text


def test_no_probability_is_written_as_certain() -> None:
    assert [certainty(p) for p in (0.0, 0.25, 1.0)] == ["below 0.1%", "25.0%", "above 99.9%"]
