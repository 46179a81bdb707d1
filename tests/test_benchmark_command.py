"""The benchmark and calibration commands: quick answers, one-line errors, and the tables."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from bayes_sched.reports.studies import fits_text
from bayes_sched.studies import speed as benchmarking
from bayes_sched.studies.runs import SETTINGS
from bayes_sched.trace.cleaning import choose_rows
from scripts import benchmark, calibrate
from tests.conftest import ROOT, documented_record

HEAVY = {"pandas", "scipy", "xarray", "pymc", "nutpie", "arviz", "matplotlib"}
SCRIPTS = ("benchmark", "calibrate")


@pytest.fixture
def trace(write_lines: Callable[..., Path]) -> Path:
    lines = [documented_record(prefill=[16 * i], model_run_duration_ms=4.0 + i) for i in range(1, 41)]
    return write_lines(lines)


def measured(method: str, **changes: Any) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": method,
        "gate_passed": method == "ours",
        "divergences": 0,
        "worst_r_hat": 1.004,
        "min_ess_bulk": 900.0,
        "min_ess_tail": 800.0,
        "effective_per_1000_gradients": 10.0,
        "effective_per_1000_gradients_all": 5.0,
        "effective_per_second": 20.0,
        "gradients": 90_000,
        "gradients_all": 180_000,
        "sampling_s": 45.0,
        "share_at_max_depth": 0.25,
        "problems": [],
    }
    return row | changes


DIRECT = (
    measured("direct, diag", effective_per_1000_gradients=0.5, effective_per_second=2.0),
    measured("direct, low_rank", effective_per_1000_gradients=2.0, effective_per_second=1.0),
)
OURS = measured("ours")


@pytest.mark.parametrize("name", SCRIPTS)
@pytest.mark.parametrize("arguments", [["--help"], ["--nonsense"]], ids=["help", "usage error"])
def test_help_and_usage_errors_load_nothing_heavy(name: str, arguments: list[str]) -> None:
    code = (
        f"import sys; from scripts.{name} import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        f"print(sorted({HEAVY!r} & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == "[]"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "sampling|fits"),
        (["sampling"], "TRACE"),
        (["sampling", "none.jsonl"], "none.jsonl"),
        (["fits", "none.jsonl"], "none.jsonl"),
        (["fits", "none.jsonl", "--seeds", "1,x"], "list of whole numbers"),
        (["fits", "none.jsonl", "--seeds=-1"], "list of whole numbers"),
        (["sampling", "none.jsonl", "--rows", "3"], "at least 20"),
        (["fits", "-"], "reads files"),
    ],
)
def test_bad_input_to_the_benchmark_is_one_line_and_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert len(printed.err.splitlines()) == 1
    assert words in printed.err


def test_an_unknown_model_is_refused_before_anything_is_read(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert benchmark.main(["sampling", str(trace), "--model", "nosuch"]) == 2
    assert "no such model" in capsys.readouterr().err


def test_sampling_shows_each_method_and_the_ratio_to_the_best_direct_one(
    trace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    def direct(_model: object, steps: pd.DataFrame, *_: object, **_options: object) -> list[Any]:
        seen.append(len(steps))
        return [SimpleNamespace(to_dict=lambda row=row: row) for row in DIRECT]

    monkeypatch.setattr(benchmarking, "measure_direct", direct)
    monkeypatch.setattr(benchmarking, "measure_ours", lambda *_, **__: SimpleNamespace(to_dict=lambda: OURS))
    assert benchmark.main(["sampling", str(trace), "--rows", "25"]) == 0
    text = capsys.readouterr().out
    assert seen == [25]
    assert "25 of 40 cleaned steps" in text
    assert text.count("failed") == 2
    assert "a gradient x 5.0, a second x 10.0" in text
    assert benchmark.main(["sampling", str(trace), "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert found["ratios"]["effective_per_1000_gradients"] == 5.0
    assert [row["method"] for row in found["methods"]] == ["direct, diag", "direct, low_rank", "ours"]


def test_the_table_of_fits_shows_every_seed_and_how_far_they_agree() -> None:
    row: dict[str, Any] = {
        "trace": "a.jsonl.gz",
        "rows": 40,
        "compile_s": 1.0,
        "pilot_s": 2.0,
        "sampling_s": 3.0,
        "total_s": 7.0,
        "peak_memory_mb": 512.0,
        "divergences": 0,
        "worst_r_hat": 1.0031,
        "min_ess_bulk": 1000.0,
        "min_ess_tail": 900.0,
        "leapfrogs_per_draw": 7.1,
        "effective_per_1000_gradients": 33.3,
        "modes": 2,
        "parts": 1,
    }
    text = fits_text(
        [
            row | {"seed": 1, "probability_a_1_above_tau_S": 0.41, "gate_passed": True},
            row | {"seed": 2, "probability_a_1_above_tau_S": 0.46, "gate_passed": False},
        ]
    )
    assert "a.jsonl.gz: P(a_1 > tau_S) from 0.410 to 0.460 over the seeds" in text
    assert [line.split()[-1] for line in text.splitlines()[2:4]] == ["passed", "failed"]


def test_rows_are_chosen_by_the_seed_and_stay_in_order() -> None:
    steps = pd.DataFrame({"line": np.arange(500)})
    first, again, other = (choose_rows(steps, 50, seed=seed) for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)
    assert first["line"].is_monotonic_increasing
    assert len(first["line"].unique()) == 50
    assert len(choose_rows(steps, 1000, seed=1)) == 500


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--design", "none.jsonl"], "no such file"),
        (["--simulations", "5"], "at least 10"),
        (["--draws", "30", "--chains", "2"], "too few"),
        (["--resume", "--overwrite"], "contradict"),
        (["--resume"], "holds no study"),
    ],
)
def test_bad_input_to_the_calibration_is_one_line_and_status_2(
    arguments: list[str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert calibrate.main(arguments) == 2
    printed = capsys.readouterr()
    assert len(printed.err.splitlines()) == 1
    assert words in printed.err


def test_a_study_is_neither_replaced_nor_continued_with_other_settings_by_accident(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "simulations.csv").write_text("simulation\n0\n")
    options = calibrate.parser().parse_args([])
    (tmp_path / SETTINGS).write_text(json.dumps(calibrate.settings_of(options)))
    folder = ["--results-dir", str(tmp_path)]
    assert calibrate.main(folder) == 2
    assert "holds a study" in capsys.readouterr().err
    assert calibrate.main([*folder, "--resume", "--rows", "77"]) == 2
    assert "has rows 160, not 77" in capsys.readouterr().err


@pytest.mark.slow
def test_sampling_measures_both_formulations_on_the_same_rows(
    capsys: pytest.CaptureFixture[str],
) -> None:
    example = ROOT / "examples" / "vllm_cpu_12m_sweep.jsonl.gz"
    arguments = ["sampling", str(example), "--rows", "60", "--draws", "100", "--tune", "100"]
    assert benchmark.main([*arguments, "--max-depth", "6", "--json"]) == 0
    (found,) = json.loads(capsys.readouterr().out)
    assert [row["method"].split(",")[0] for row in found["methods"]] == ["direct"] * 3 + ["ours"]
    for row in found["methods"]:
        assert row["gradients_all"] > row["gradients"] > 0
        assert row["sampling_s"] > 0.0
