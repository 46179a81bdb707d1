"""The judge: what is held out, who meets what, and that numbers come again."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from bayes_sched.checks.scores import LEVELS
from bayes_sched.errors import InputError
from bayes_sched.reports.kinds import report
from bayes_sched.reports.plots.validation import extrapolation_bands
from bayes_sched.reports.terminal import terminal
from bayes_sched.steps import regime, regime_masks
from bayes_sched.studies.forecasts import Forecast, ForecastCache, Predict, from_distribution, from_quantiles
from bayes_sched.studies.prediction import StudySettings, validate
from bayes_sched.studies.splits import SPLITS, Server, cut, servers_of
from tests.made_trace import made_trace


def steps_of(num: int, *, seed: int = 0, traces: int = 1) -> pd.DataFrame:
    """Steps of a server: half of them decode, half of them prefill a chunk beside; latency linear in S."""
    rng = np.random.default_rng(seed)
    decodes = rng.integers(1, 30, num)
    trace = np.arange(num) * traces // num
    chunk = np.where(rng.random(num) < 0.5, 0, rng.integers(2, 200 * (1 + trace)))
    tokens = decodes + chunk
    return pd.DataFrame(
        {
            "batch_size": decodes + (chunk > 0),
            "total_tokens": tokens,
            "latency_ms": 10.0 + 0.05 * tokens + rng.normal(0.0, 0.5, num),
            "num_prefill_reqs": (chunk > 0).astype(int),
            "num_decode_reqs": decodes,
            "context_tokens": 100 * decodes,
            "trace": trace,
            "budget": 200 * (1 + trace),
        }
    )


def server_of(num: int = 600, *, traces: int = 2, name: str = "srv") -> Server:
    steps = steps_of(num, traces=traces)
    return Server(name=name, steps=steps, traces=("a", "b")[:traces], sha256=name)


@dataclass(frozen=True)
class Mean:
    """The competitor of the protocol's docstring."""

    name: str = "mean"
    columns: tuple[str, ...] = ()

    def fit(self, train: pd.DataFrame, *, seed: int) -> Predict:
        noise = stats.norm(train["latency_ms"].mean(), train["latency_ms"].std())
        return lambda steps: from_distribution(noise, steps)


@dataclass(frozen=True)
class Slope:
    """A line through S."""

    name: str = "slope"
    columns: tuple[str, ...] = ("total_tokens",)
    fits: list[int] = field(default_factory=list, repr=False, compare=False)

    def fit(self, train: pd.DataFrame, *, seed: int) -> Predict:
        self.fits.append(len(train))
        line = np.polynomial.Polynomial.fit(train["total_tokens"], train["latency_ms"], 1)
        return lambda steps: from_distribution(stats.norm(line(steps["total_tokens"].to_numpy()), 0.5), steps)


@dataclass(frozen=True)
class Broken:
    """Fails."""

    name: str = "broken"
    columns: tuple[str, ...] = ()

    def fit(self, train: pd.DataFrame, *, seed: int) -> Predict:
        raise KeyError("no\nsolution")


FEW = StudySettings(splits=("random", "budget"), max_train=200, max_test=100)


def test_steps_are_told_apart_by_who_prefills() -> None:
    steps = pd.DataFrame(
        {
            "batch_size": [2, 3, 1],
            "total_tokens": [2, 9, 7],
            "num_prefill_reqs": [0, 1, 1],
            "num_decode_reqs": [2, 2, 0],
        }
    )
    assert list(regime(steps)) == ["decode", "mixed", "prefill"]
    assert list(regime(steps[["batch_size", "total_tokens"]])) == ["decode", "mixed", "mixed"]


def test_a_regime_without_steps_is_left_out() -> None:
    steps = steps_of(200)
    assert set(regime_masks(steps, max_train_tokens=1e9)) == {"all", "decode", "mixed"}
    beyond = regime_masks(steps, max_train_tokens=100.0)["beyond"]
    assert (steps["total_tokens"][beyond] > 100).all()
    assert (steps["total_tokens"][~beyond] <= 100).all()


@pytest.mark.parametrize("name", sorted(SPLITS))
def test_no_step_is_both_learned_from_and_predicted(name: str) -> None:
    steps = steps_of(1200, traces=2).assign(number=range(1200))
    made = cut(steps, SPLITS[name], rng=np.random.default_rng(0), max_train=10_000, max_test=10_000)
    assert not set(made.train["number"]) & set(made.test["number"])
    assert len(made.train) >= 20
    assert len(made.test) >= 20


def test_each_split_holds_out_what_it_says() -> None:
    steps = steps_of(1200, traces=2).assign(number=range(1200))

    def made(name: str) -> Any:
        return cut(steps, SPLITS[name], rng=np.random.default_rng(0), max_train=10_000, max_test=10_000)

    assert len(made("random").test) == 240
    assert set(made("time").test["number"]) == {*range(480, 600), *range(1080, 1200)}
    assert [len(made(f"rows-{n}").train) for n in (50, 200, 1000)] == [50, 200, 1000]
    assert set(made("budget").train["trace"]) == {0}
    assert set(made("budget").test["trace"]) == {1}
    assert set(regime(made("decode-only").train)) == {"decode"}
    assert "decode" not in set(regime(made("decode-only").test))


def test_the_caps_are_kept_and_said() -> None:
    made = cut(steps_of(600), SPLITS["random"], rng=np.random.default_rng(0), max_train=100, max_test=50)
    assert (len(made.train), made.num_train, len(made.test), made.num_test) == (100, 480, 50, 120)


def test_steps_to_learn_from_are_chosen_as_a_fit_chooses_them_if_asked_for() -> None:
    steps = steps_of(600)
    steps.loc[steps.index % 100 > 2, ["batch_size", "total_tokens"]] = [8, 8]
    made, whole = (
        cut(
            steps,
            SPLITS["random"],
            rng=np.random.default_rng(0),
            max_train=most,
            max_test=50,
            rare_first=True,
        )
        for most in (100, 10_000)
    )
    sizes = ["batch_size", "total_tokens"]
    is_rare = [(table[sizes] != 8).any(axis=1) for table in (made.train, whole.train)]
    assert is_rare[0].sum() == is_rare[1].sum() > 5
    assert len(made.train) == 100
    assert whole.train.merge(made.train).shape == made.train.shape


def test_traces_of_one_budget_have_no_budget_to_leave_out() -> None:
    found = validate([server_of(traces=1)], competitors=[Mean()], settings=FEW)
    assert found.splits_of("srv") == ["random"]
    assert found.notes == ("srv: no split budget (all its traces have one token budget, about 200)",)


def test_the_better_model_has_the_better_score_on_every_split() -> None:
    found = validate([server_of()], competitors=[Mean(), Slope()], settings=FEW)
    table = found.table("crps_ms", server="srv")
    assert (table.loc["slope"] < 0.5 * table.loc["mean"]).all()
    assert found.value("coverage_90", server="srv", split="random", model="slope") == pytest.approx(
        0.9, abs=0.1
    )
    assert found.text.startswith("srv: smallest CRPS slope 0.")


def test_the_same_seed_gives_the_same_numbers_whoever_else_takes_part() -> None:
    alone = validate([server_of()], competitors=[Mean()], settings=replace(FEW, splits=("budget",)))
    beside = validate([server_of()], competitors=[Slope(), Mean()], settings=FEW)
    chosen = beside.scores.query("model == 'mean' and split == 'budget'").reset_index(drop=True)
    pd.testing.assert_frame_equal(alone.scores, chosen)
    other = validate([server_of()], competitors=[Mean()], settings=replace(FEW, seed=1))
    assert other.value("crps_ms", server="srv", split="random", model="mean") != beside.value(
        "crps_ms", server="srv", split="random", model="mean"
    )


def test_random_splits_are_repeated_and_averaged_and_the_others_are_not() -> None:
    found = validate([server_of()], competitors=[Mean()], settings=replace(FEW, repeats=3))
    values = found.scores.query("metric == 'crps_ms' and regime == 'all'").groupby("split")["value"]
    assert values.size().to_dict() == {"random": 3, "budget": 1}
    mean = found.value("crps_ms", server="srv", split="random", model="mean")
    assert mean == pytest.approx(values.mean()["random"])


def test_the_scores_are_tidy() -> None:
    found = validate([server_of()], competitors=[Mean()], settings=FEW)
    keys = ["server", "split", "repeat", "model", "regime", "metric"]
    assert list(found.scores) == [*keys[:5], "rows", "metric", "value"]
    assert not found.scores.duplicated(keys).any()
    assert {"all", "decode", "mixed", "beyond"} <= set(found.scores["regime"])
    json.dumps(found.to_dict(), allow_nan=False)
    panels = [ax.get_title(loc="left") for ax in extrapolation_bands(found).axes]
    assert panels == ["srv\nmean"]


def test_a_competitor_that_fails_is_noted_and_the_others_go_on() -> None:
    found = validate([server_of()], competitors=[Broken(), Mean()], settings=FEW)
    assert "srv, random: broken failed (KeyError: 'no\\nsolution')" in found.notes
    assert found.models_of("srv") == ["mean"]
    assert found.fits["error"].notna().sum() == 2


def test_a_competitor_whose_columns_a_trace_lacks_is_skipped_with_a_sentence() -> None:
    found = validate([server_of()], competitors=[Slope("x", ("kv_cache_usage",)), Mean()], settings=FEW)
    assert "srv: x left out, its traces lack kv_cache_usage" in found.notes


def test_nothing_to_score_is_an_error_that_says_why() -> None:
    with pytest.raises(InputError, match=r"nothing could be scored: srv, random: broken failed"):
        validate([server_of()], competitors=[Broken()], settings=FEW)


def test_a_split_that_does_not_exist_is_refused() -> None:
    with pytest.raises(InputError, match=r"fold: no such split; give some of random, blocks"):
        StudySettings(splits=("random", "fold"))


def test_cached_forecasts_are_not_made_again_and_give_the_same_scores(tmp_path: Path) -> None:
    slope, cache = Slope(), ForecastCache(tmp_path / "kept")
    first = validate([server_of()], competitors=[slope], settings=FEW, cache=cache)
    again = validate([server_of()], competitors=[slope], settings=FEW, cache=cache)
    assert len(slope.fits) == 2
    pd.testing.assert_frame_equal(first.scores, again.scores)
    pd.testing.assert_frame_equal(first.fits, again.fits)


def test_forecasts_of_other_steps_settings_or_models_are_not_taken(tmp_path: Path) -> None:
    slope, cache = Slope(), ForecastCache(tmp_path)
    one = replace(FEW, splits=("random",))
    for server, settings in (
        (server_of(), one),
        (server_of(), replace(one, seed=1)),
        (server_of(), replace(one, max_train=150)),
        (replace(server_of(), steps=steps_of(600, seed=5)), one),
    ):
        validate([server], competitors=[slope], settings=settings, cache=cache)
    validate([server_of()], competitors=[replace(slope, columns=("batch_size",))], settings=one, cache=cache)
    assert len(slope.fits) == 5


def test_a_damaged_cached_forecast_costs_a_fit_and_no_study(tmp_path: Path) -> None:
    slope, cache = Slope(), ForecastCache(tmp_path)
    validate([server_of()], competitors=[slope], settings=FEW, cache=cache)
    for path in tmp_path.glob("*.npz"):
        path.write_bytes(path.read_bytes()[:100])
    validate([server_of()], competitors=[slope], settings=FEW, cache=cache)
    assert len(slope.fits) == 4


def test_an_interrupt_while_fitting_keeps_what_was_finished_and_no_more(tmp_path: Path) -> None:
    slope, cache = Slope(), ForecastCache(tmp_path)
    calls: list[str] = []

    def interrupt(stage: str, share: float | None) -> None:
        calls.append(stage)
        if len(calls) == 4:  # after the second fit, before it is kept
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validate([server_of()], competitors=[slope], settings=FEW, cache=cache, progress=interrupt)
    assert len(list(tmp_path.iterdir())) == 1
    assert len(slope.fits) == 2


def test_a_forecast_whose_quantiles_cross_or_are_not_finite_is_refused() -> None:
    good = np.sort(np.random.default_rng(0).normal(size=(3, len(LEVELS))), axis=1)
    for bad, words in ((good[:, ::-1], "decrease"), (good * np.nan, "not finite"), (good[:, 1:], "levels")):
        with pytest.raises(InputError, match=words):
            Forecast(quantiles_ms=bad, point_ms=np.zeros(3), cdf=np.zeros(3))


def test_the_probability_of_what_was_observed_is_interpolated_between_quantiles() -> None:
    quantiles = np.tile(stats.uniform.ppf(LEVELS) * 100.0, (3, 1))
    observed = pd.DataFrame({"latency_ms": [-1.0, 32.0, 200.0]})
    assert from_quantiles(quantiles, observed).cdf == pytest.approx([0.0025, 0.32, 0.9975])


@pytest.fixture
def traces() -> Callable[..., Any]:
    def make(name: str, tokens: int, **labels: str) -> Any:
        trace = made_trace(total_tokens=np.r_[np.full(599, 8), tokens])
        return replace(trace, name=name, labels=labels)

    return make


def test_traces_of_one_server_are_known_by_their_labels_or_by_their_names(traces: Callable[..., Any]) -> None:
    named = [traces("h_chunk512", 512), traces("h_chunk1024", 1024), traces("a_chunk512", 512)]
    found = servers_of(named)
    assert [server.name for server in found] == ["h", "a"]
    assert list(found[0].steps["budget"].unique()) == [512, 1024]
    assert [server.name for server in servers_of(named, pooled=False)] == [t.name for t in named]
    labelled = [traces("one", 512, gpu="H100", llm="q"), traces("two", 1024, gpu="H100", llm="q")]
    assert [server.name for server in servers_of(labelled)] == ["H100 q"]


def test_only_columns_that_all_traces_of_a_server_hold_are_kept(traces: Callable[..., Any]) -> None:
    first, second = traces("h_chunk1", 512), traces("h_chunk2", 1024)
    second = replace(second, steps=second.steps.drop(columns="kv_cache_usage"))
    (server,) = servers_of([first, second])
    assert "kv_cache_usage" not in server.steps
    assert "num_prefill_reqs" in server.steps


def test_steps_that_lack_a_value_are_left_out_and_counted(traces: Callable[..., Any]) -> None:
    trace = traces("h", 512)
    trace.steps.loc[:9, "kv_cache_usage"] = np.nan
    (server,) = servers_of([trace])
    assert len(server.steps) == 590
    assert "h: 10 of 600 steps lack kv_cache_usage: left out" in server.warnings


def test_the_text_marks_the_best_and_the_fits_that_failed_their_gate() -> None:
    found = validate([server_of()], competitors=[Mean(), Slope()], settings=FEW)
    fits = found.fits.assign(converged=(found.fits["model"] != "mean").astype("boolean"))
    text = terminal(report(replace(found, fits=fits)))
    mean, slope = (
        next(line for line in text.splitlines() if line.startswith(f"  {m} ")) for m in ("mean", "slope")
    )
    assert mean.count("!") == 2
    assert slope.count("*") == 2
    assert "thinned at random for random, budget" in text
    assert max(map(len, text.splitlines())) <= 100
