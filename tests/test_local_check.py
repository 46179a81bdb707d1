"""A fit is held against its own trace, bin by bin, and what a bin contradicts is not said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import xarray as xr

from bayes_sched.checks.local import CONTRADICTED, DECODE, FEW, FULL, WIDE, LocalCheck, check_locally
from bayes_sched.checks.summary import FitSummary, summarize
from bayes_sched.format import number
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.region import region_of
from bayes_sched.reports.document import report
from bayes_sched.reports.fit import sentences_of
from bayes_sched.reports.terminal import terminal
from tests.conftest import known
from tests.synthetic_fit import served, simulated_steps, synthetic_fit

FIT = synthetic_fit(spread=0.002, chains=2, draws=50)
_DECODES = pd.DataFrame({"batch_size": np.repeat(2 ** np.arange(7), 200)})
_MIXED = simulated_steps(3000, seed=5).query("total_tokens > batch_size")
STEPS = pd.concat(
    [served(_DECODES.assign(total_tokens=_DECODES["batch_size"]), np.random.default_rng(1)), _MIXED],
    ignore_index=True,
)
IS_LARGE = (STEPS["batch_size"] == STEPS["total_tokens"]) & (STEPS["batch_size"] > 4)


def large(factor: float) -> pd.DataFrame:
    """The steps of the server, but that large decode-only ones take so many times as long."""
    return STEPS.assign(latency_ms=STEPS["latency_ms"].where(~IS_LARGE, factor * STEPS["latency_ms"]))


@pytest.fixture(scope="module")
def wrong() -> LocalCheck:
    return check_locally(FIT, large(0.75))


def test_chance_contradicts_fewer_than_one_bin_in_a_hundred() -> None:
    checks = [check_locally(FIT, simulated_steps(1500, seed=100 + seed)) for seed in range(20)]
    bins = [of for check in checks for of in check.bins]
    assert len(bins) > 400
    assert sum(of.is_contradicted for of in bins) <= 0.01 * len(bins)
    assert sum(of.verdict == WIDE for of in bins) <= 0.01 * len(bins)


@pytest.mark.parametrize("factor", [0.75, 1.3])
def test_bins_that_the_trace_contradicts_are_found_and_no_others(factor: float) -> None:
    for of in check_locally(FIT, large(factor)).bins:
        is_wrong = of.kind == DECODE and of.first_requests > 4
        assert of.is_contradicted == is_wrong, of.text
        if is_wrong:
            assert of.error == pytest.approx(factor - 1.0, abs=0.03)
            assert known(of.error_lower) < of.error < known(of.error_upper)


def test_a_noise_that_is_too_small_or_too_large_is_found() -> None:
    def scaled(factor: float) -> FittedModel:
        data = FIT.data.copy()
        data["posterior"] = xr.DataTree(
            FIT.posterior.assign(
                {name: factor * FIT.posterior[name] for name in ("sigma_rel", "sigma_floor")}
            )
        )
        return replace(FIT, data=data)

    quiet, loud = (check_locally(scaled(factor), STEPS) for factor in (0.2, 10.0))
    assert all(of.is_contradicted for of in quiet.bins if of.num_steps > 60)
    assert {of.verdict for of in loud.bins if of.num_steps > 100} == {WIDE}


def test_bins_hold_every_step_once_and_enough_of_them_where_steps_are_alike() -> None:
    check = check_locally(FIT, STEPS)
    assert sum(of.num_steps for of in check.bins) == len(STEPS)
    places = check.places(STEPS["batch_size"], STEPS["total_tokens"])
    assert np.bincount(places).tolist() == [of.num_steps for of in check.bins]
    assert sum(of.num_steps >= 30 for of in check.bins) >= 0.8 * len(check.bins)
    assert all(of.last_tokens <= 2 * of.first_tokens for of in check.bins)


def test_steps_of_the_full_budget_are_a_kind_of_their_own() -> None:
    steps = simulated_steps(2000, seed=3)
    mixed = steps["total_tokens"] > steps["batch_size"]
    steps["total_tokens"] = steps["total_tokens"].where(~mixed, np.minimum(steps["total_tokens"], 256))
    full = [of for of in check_locally(FIT, steps).bins if of.kind == FULL]
    assert {(of.first_tokens, of.last_tokens) for of in full} == {(256, 256)}
    assert sum(of.num_steps for of in full) == (steps["total_tokens"] == 256).sum()


def test_a_step_is_looked_up_by_its_like(wrong: LocalCheck) -> None:
    assert known(wrong.at(40, 40)).is_contradicted
    assert wrong.holds_at(40, 40) is False
    assert wrong.holds_at(2, 2) is True
    assert wrong.at(40, 41) != wrong.at(40, 40)
    assert wrong.at(4000, 4000) is None
    assert wrong.holds_at(4000, 4000) is None
    assert wrong.is_contradicted([[2], [40]], [[2, 40], [40, 40]])[:, 1].tolist() == [False, True]


def test_every_covered_step_has_a_bin() -> None:
    region = region_of(STEPS["batch_size"].to_numpy(), STEPS["total_tokens"].to_numpy())
    steps = region.random_steps(np.random.default_rng(3), 3000)
    assert (check_locally(FIT, STEPS).places(*steps.T) >= 0).all()


def test_few_steps_can_contradict_and_cannot_bear_out() -> None:
    few = pd.DataFrame({"batch_size": 8, "total_tokens": 8, "latency_ms": np.full(8, 100.0)})
    middle = float(FIT.mean_latency(few.head(1)).mean())
    assert [of.verdict for of in check_locally(FIT, few).bins] == [CONTRADICTED]
    assert [of.verdict for of in check_locally(FIT, few.assign(latency_ms=middle)).bins] == [FEW]


def test_a_fit_that_keeps_no_steps_says_so() -> None:
    check = check_locally(FIT)
    assert check.bins == ()
    assert check.at(4, 4) is None
    assert "fit it again" in check.text


@pytest.fixture(scope="module")
def found() -> FitSummary:
    return summarize(FIT, large(0.75), is_drawn=False)


def test_the_summary_gives_the_traces_own_answer_where_the_model_is_contradicted(found: FitSummary) -> None:
    text = " ".join(sentences_of(found))
    (largest,) = found.table[found.table["step"] == "largest decode step"].to_dict("records")
    steps = large(0.75)[IS_LARGE]
    assert largest["seen_ms"] < 0.8 * largest["median_ms"]
    assert f"of its {largest['seen_steps']} such steps" in text
    assert f"which CONTRADICTS the model, which says {number(float(largest['median_ms']))} ms" in text
    assert steps["latency_ms"].min() < largest["seen_ms"] < steps["latency_ms"].max()
    assert "But its trace contradicts it in" in text


def test_a_cost_between_contradicted_steps_is_undecided(found: FitSummary) -> None:
    costs = found.costs.set_index("cost")["is_contradicted"]
    assert costs["one more decoding request"]
    assert not costs["one more prefill token"]
    assert "What one more decoding request adds is undecided" in " ".join(sentences_of(found))


def test_the_bins_are_in_the_report(found: FitSummary) -> None:
    document = report(found)
    assert len(document.frames["local"]) == len(found.local.bins)
    assert document.numbers["local"][0]["verdict"] == found.local.bins[0].verdict
    wrong = len(found.local.contradicted)
    assert f"The trace contradicts the fit in {wrong} of" in terminal(document)
    assert any("is contradicted in" in note for note in document.numbers["warnings"])
