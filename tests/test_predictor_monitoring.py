"""The monitor of a server: few false alarms by a bound that holds, drift noticed, the level followed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xarray as xr

from bayes_sched.cli.main import run_script
from bayes_sched.errors import InputError
from bayes_sched.predictor.compile import compile_predictor
from bayes_sched.predictor.monitor import NUM_BINS, MonitorSettings, Observation, calibrated
from bayes_sched.predictor.predictor import Predictor
from bayes_sched.studies import predictor as predictor_trial
from bayes_sched.studies.predictor import replay
from tests.comparison_fits import with_groups
from tests.conftest import documented_record, known
from tests.synthetic_fit import simulated_steps, synthetic_fit

COMPILED = compile_predictor(synthetic_fit(chains=2, draws=40, spread=0.005))


def predictor(**changes: Any) -> Predictor:
    """A predictor that has seen nothing."""
    return Predictor(
        COMPILED._tables, COMPILED.region, COMPILED.provenance, settings=MonitorSettings(**changes)
    )


def served(num_steps: int, *, seed: int, spread: float = 1.0) -> Iterator[tuple[float, float, float]]:
    """Steps of a server that is exactly as the fit says; `spread` stretches the noise."""
    rng = np.random.default_rng(seed)
    b = 64.0 ** rng.random(num_steps)
    s = np.minimum(b * np.exp(rng.uniform(0.0, 4.0, num_steps)), 4096.0)
    for batch_size, total_tokens, u in zip(b, s, rng.uniform(1e-5, 1.0 - 1e-5, num_steps), strict=True):
        x = COMPILED.quantile(batch_size, total_tokens, float(u))
        mean = COMPILED.mean_latency(batch_size, total_tokens)
        yield float(batch_size), float(total_tokens), max(mean + spread * (x - mean), 1e-3)


def first_alarm(watching: Predictor, steps: Iterator[tuple[float, float, float]], factor: float) -> int:
    """The step that raises the alarm; a large number if none does."""
    for number, (b, s, x) in enumerate(steps, start=1):
        if watching.observe(b, s, factor * x).alarm is not None:
            return number
    return 10**9


def test_false_alarms_are_as_rare_as_promised_without_any_tolerance() -> None:
    # The mean time to a false alarm is at least 100 steps; runs are cut at 600, which only lowers it.
    watching = predictor(tolerance=0.0, false_alarm_rate=0.01)
    times = []
    for seed in range(40):
        watching.monitor.reset()
        times.append(min(first_alarm(watching, served(600, seed=seed), 1.0), 600))
    assert np.mean(times) >= 100.0
    assert min(times) < 600  # the test can fail: the bound is not so loose that nothing ever fires


@pytest.mark.parametrize("factor", [1 / 1.075, 1.0, 1.075])
def test_a_server_within_the_tolerance_raises_no_alarm(factor: float) -> None:
    assert first_alarm(predictor(), served(4000, seed=1), factor) == 10**9


@pytest.mark.parametrize(("factor", "kind"), [(1.2, "slower"), (1.5, "slower"), (0.8, "faster")])
def test_a_server_that_drifts_is_noticed_within_200_steps(factor: float, kind: str) -> None:
    watching = predictor()
    assert first_alarm(watching, served(2000, seed=2), 1.0) == 10**9
    assert first_alarm(watching, served(2000, seed=3), factor) < 200
    alarm = known(watching.monitor.alarm)
    assert alarm.kind == kind
    assert kind in alarm.text
    assert f"{alarm.num_steps:,}" in alarm.text


def test_noise_that_grows_without_a_change_of_level_is_noticed_as_erratic() -> None:
    watching = predictor()
    assert first_alarm(watching, served(2000, seed=4, spread=6.0), 1.0) < 1000
    alarm = known(watching.monitor.alarm)
    assert alarm.kind == "erratic"
    assert "more erratic" in alarm.text


def test_an_alarm_stays_until_it_is_cleared_and_clearing_keeps_the_level() -> None:
    watching = predictor()
    first_alarm(watching, served(2000, seed=3), 1.3)
    raised = watching.monitor.alarm
    for step in served(300, seed=5):
        assert watching.observe(*step).alarm is raised
    level = watching.level
    watching.monitor.clear_alarm()
    assert watching.monitor.alarm is None
    assert watching.level == level != 1.0
    assert set(watching.monitor.evidence.values()) == {0.0}
    watching.monitor.reset()
    assert watching.level == 1.0
    assert watching.monitor.num_steps == 0


def test_the_level_follows_the_server_and_corrects_every_answer() -> None:
    watching = predictor()
    for b, s, x in served(1500, seed=6):
        watching.observe(b, s, 1.25 * x)
    assert watching.level == pytest.approx(1.25, rel=0.01)
    level = watching.level
    assert watching.mean_latency(8, 100) == pytest.approx(level * COMPILED.mean_latency(8, 100))
    assert watching.quantile([8], [100], 0.9)[0] == pytest.approx(level * COMPILED.quantile(8, 100, 0.9))
    below = COMPILED.probability_below(8, 100, 5.0)
    assert watching.probability_below(8, 100, 5.0 * level) == pytest.approx(below)
    assert watching.probability_below([8], 100, 5.0 * level)[0] == pytest.approx(below)
    assert 0.87 < watching.monitor.coverage < 0.93
    # Answers stay those of the fit where the level is not to be followed.
    watching = predictor(follow_level=False)
    for b, s, x in served(800, seed=6):
        watching.observe(b, s, 1.25 * x)
    assert watching.monitor.level == pytest.approx(1.25, rel=0.03)
    assert watching.level == 1.0
    assert watching.mean_latency(8, 100) == COMPILED.mean_latency(8, 100)
    assert watching.monitor.coverage < 0.5


def test_coverage_and_histogram_are_even_while_the_fit_describes_the_server() -> None:
    watching = predictor(memory=5000.0)
    assert np.isnan(watching.monitor.coverage)
    for step in served(5000, seed=7):
        watching.observe(*step)
    histogram = watching.monitor.histogram
    assert len(histogram) == NUM_BINS
    assert sum(histogram) == pytest.approx(1.0)
    assert max(abs(share - 1.0 / NUM_BINS) for share in histogram) < 0.02
    assert watching.monitor.coverage == pytest.approx(0.9, abs=0.02)


def test_a_slow_step_is_anomalous_has_its_tail_probability_and_hardly_moves_the_level() -> None:
    watching = predictor()
    for step in served(500, seed=8):
        watching.observe(*step)
    level, count = watching.level, watching.monitor.num_anomalous
    x = 40.0 * watching.mean_latency(16, 256)
    seen = watching.observe(16, 256, x)
    assert seen.anomalous
    assert seen.tail_probability == pytest.approx(2.0 * (1.0 - seen.probability_below), rel=1e-6)
    assert seen.tail_probability < 1e-3
    assert watching.monitor.num_anomalous == count + 1
    assert watching.level == pytest.approx(level, rel=0.01)
    ordinary = watching.observe(16, 256, watching.quantile(16, 256, 0.6))
    assert not ordinary.anomalous
    assert ordinary.probability_below == pytest.approx(0.6, abs=0.01)


@pytest.mark.parametrize("step", [(250.0, 250.0), (1.0, 1e7)], ids=["in the tables", "beyond them"])
def test_a_step_outside_the_region_is_marked_and_counts_for_nothing(step: tuple[float, float]) -> None:
    watching = predictor()
    seen = watching.observe(*step, 1e4)
    assert isinstance(seen, Observation)
    assert seen.extrapolation
    assert not seen.anomalous
    assert (watching.monitor.num_steps, watching.monitor.num_outside) == (0, 1)
    assert watching.level == 1.0


def test_a_short_memory_never_overflows_and_settings_that_make_no_sense_are_refused() -> None:
    watching = predictor(memory=2.0)
    for step in served(1500, seed=9):
        watching.observe(*step)
    assert sum(watching.monitor.histogram) == pytest.approx(1.0)
    wrong = {"tolerance": -0.1, "false_alarm_rate": 0.0, "memory": 1.0, "anomaly_probability": float("nan")}
    for name, value in wrong.items():
        with pytest.raises(InputError, match=name):
            predictor(**{name: value})


def test_a_replay_says_when_a_drift_in_the_middle_was_noticed() -> None:
    steps = simulated_steps(1500, seed=2)
    quiet, drifted = replay(predictor(), steps), replay(predictor(), steps, factor=1.3)
    assert (quiet["alarms_before"], quiet["alarms_after"], quiet["delay"]) == (0, 0, None)
    assert drifted["alarms_before"] == 0
    assert known(drifted["delay"]) < 200
    assert drifted["level"] == pytest.approx(1.3, rel=0.03)
    assert quiet["coverage"] == pytest.approx(0.9, abs=0.03)


def test_the_benchmark_prints_speed_accuracy_and_replays(
    tmp_path: Path,
    write_lines: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for name in ("NUM_MANY", "_NUM_SINGLE", "_NUM_REPEATS"):
        monkeypatch.setattr(predictor_trial, name, 2)
    steps = simulated_steps(400, seed=1)
    lines = [
        documented_record(
            prefill=[int(s - b) + 1], decode=int(b) - 1, model_run_duration_ms=max(x, 1.5), timestamp=float(i)
        )
        for i, (b, s, x) in enumerate(steps.to_numpy(float).tolist())
    ]
    trace, compiled = write_lines(lines), tmp_path / "predictor.npz"
    COMPILED.save(compiled)
    assert (
        run_script("benchmark_predictor.py", [str(compiled), str(trace), "--runs", "1", "--factors", "1.5"])
        == 0
    )
    text = capsys.readouterr().out
    assert "x the import of numpy alone" in " ".join(text.split())
    assert "equation in numpy" in text
    assert "x 1.5" in text


def wandering(
    num_steps: int, *, seed: int, size: float, length: float
) -> Iterator[tuple[float, float, float]]:
    """Steps of the server, whose level wanders by `size` over some `length` steps."""
    rng = np.random.default_rng(seed)
    level = 0.0
    for b, s, x in served(num_steps, seed=seed):
        level += -level / length + size * (2.0 / length) ** 0.5 * rng.standard_normal()
        yield b, s, x * float(np.exp(level))


@pytest.mark.parametrize(("size", "length"), [(0.0, 100.0), (0.04, 300.0)])
def test_calibrated_on_its_trace_it_is_quiet_on_other_steps_of_the_server_and_finds_a_drift(
    size: float, length: float
) -> None:
    server = predictor()
    trace = [(server.step(b, s, {})[0], x) for b, s, x in wandering(6000, seed=20, size=size, length=length)]
    learned = calibrated([trace])
    assert learned.evidence <= 1e-3
    assert learned.tolerance <= 0.1
    assert (learned.tolerance > 0.05) == (size > 0.0)

    def watching() -> Predictor:
        known_drift = replace(COMPILED.provenance, drift=asdict(learned))
        return Predictor(COMPILED._tables, COMPILED.region, known_drift)

    for seed in (21, 22, 23):
        held_out = wandering(3000, seed=seed, size=size, length=length)
        assert first_alarm(watching(), held_out, 1.0) == 10**9
    for factor in (0.9, 1.1) if size == 0.0 else (0.8, 1.2):
        assert first_alarm(watching(), wandering(3000, seed=24, size=size, length=length), factor) < 600


def test_compiling_replays_the_trace_of_the_fit() -> None:
    steps = simulated_steps(1500, seed=5)
    fit = with_groups(
        synthetic_fit(chains=2, draws=40, spread=0.005),
        observed=xr.Dataset.from_dataframe(steps.rename_axis("step")),
    )
    compiled = compile_predictor(fit)
    assert compiled.monitor.tolerance == compiled.provenance.drift["tolerance"] == 0.05
    assert compiled.provenance.drift["evidence"] <= 1e-3
    assert replay(compiled, steps)["alarms_before"] == 0
    assert predictor().monitor.tolerance == 0.075  # of a fit that does not keep its steps
