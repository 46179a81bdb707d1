"""The command: what it prints and where, its exit statuses, that it goes on, and that nothing is lost."""

from __future__ import annotations

import csv
import inspect
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from bayes_sched.studies.prediction import StudySettings, servers_of
from bayes_sched.studies.splits import SPLITS as LIBRARY_SPLITS
from scripts.validate import SPLITS, main, parser
from tests.conftest import documented_record

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"numpy", "pandas", "scipy", "xarray", "pymc", "nutpie", "arviz", "matplotlib", "rich", "lightgbm"}
CHEAP = ["--models", "line,baseline", "--splits", "random,rows-50"]


@pytest.fixture(autouse=True)
def _in_an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def trace(write_lines: Callable[..., Path]) -> str:
    """300 steps of a server, latency nearly linear in S."""
    records = []
    for number in range(300):
        decode, chunk = 1 + number % 17, [] if number % 3 else [16 + (37 * number) % 400]
        latency = 12.0 + 0.04 * (decode + sum(chunk)) + 0.1 * ((7 * number) % 11)
        records.append(documented_record(chunk, decode, model_run_duration_ms=latency))
    return write_lines(records, "t.jsonl").name


SLIPS: list[tuple[list[str], str]] = [
    ([], "the following arguments are required: TRACE"),
    (["none.jsonl"], "no such file: none.jsonl"),
    (["t.jsonl", "--nonsense"], "unrecognized arguments: --nonsense"),
    (["t.jsonl", "--splits", "fold"], "--splits fold: no such split; give some of random, blocks"),
    (["t.jsonl", "--splits", "time,time"], "--splits time: given twice"),
    (["t.jsonl", "--splits", ","], "',' names nothing"),
    (["t.jsonl", "--models", "xgboost"], "--models xgboost: no such contender; give some of line"),
    (["t.jsonl", "--models", "line,line"], "--models line: given twice"),
    (["t.jsonl", "--repeats", "0"], "'0' is not a whole number of at least 1"),
    (["t.jsonl", "--max-train", "5"], "'5' is not a whole number of at least 20"),
    (["t.jsonl", "--min-latency-ms", "9", "--max-latency-ms", "8"], "--min-latency-ms 9 is not below"),
    (["t.jsonl", "--name", "../x"], "'../x' cannot name a result"),
    (["t.jsonl", "--name", "taken"], "results/taken exists: give another --name, or --overwrite"),
    (["t.jsonl", "--name", "fit", "--overwrite"], "results/fit exists, but is no validation of models"),
    (["t.jsonl", "--resume"], "--resume: there are no forecasts of validation"),
    (["t.jsonl", "--resume", "--overwrite"], "--resume and --overwrite contradict each other"),
    (["t.jsonl", "--name", "half"], "results/.half.unfinished.tmp holds forecasts of a run"),
]


def lay_traps() -> None:
    for name, file in (
        ("taken", "validation.csv"),
        ("fit", "posterior.nc"),
        (".half.unfinished.tmp", "a.npz"),
    ):
        Path("results", name).mkdir(parents=True)
        Path("results", name, file).write_bytes(b"precious")


@pytest.mark.parametrize(("arguments", "message"), SLIPS)
def test_a_slip_is_answered_with_one_line_and_nothing_is_touched(
    arguments: list[str], message: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_traps()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert printed.err.startswith("validate: ")
    assert message in printed.err
    assert len(list(Path("results").rglob("*"))) == 6


@pytest.mark.parametrize(
    "arguments", [["--help"], ["t.jsonl", "--models", "xgboost"], ["t.jsonl", "--resume"]]
)
def test_help_and_slips_load_no_heavy_library(arguments: list[str], trace: str) -> None:
    code = (
        "import sys, contextlib, scripts.validate as c\n"
        "with contextlib.suppress(SystemExit): c.main(sys.argv[1:])\n"
        "print('LOADED', *{name.split('.')[0] for name in sys.modules})"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert not set(done.stdout.partition("LOADED")[2].split()) & HEAVY


def test_defaults_are_those_of_the_library() -> None:
    options, study = parser().parse_args(["t.jsonl"]), StudySettings()
    assert tuple(LIBRARY_SPLITS) == SPLITS
    for name in ("splits", "repeats", "seed", "max_train", "max_test"):
        assert getattr(options, name) == getattr(study, name)
    library = inspect.signature(servers_of).parameters
    assert options.server_mark == library["mark"].default
    assert options.min_latency_ms == library["min_latency_ms"].default
    assert options.max_latency_ms == library["max_latency_ms"].default


def test_a_validation_prints_a_table_and_writes_one_tidy_csv_and_a_page(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([trace, *CHEAP]) == 0
    printed = capsys.readouterr()
    assert "  CRPS (ms)  random  rows-50\n" in printed.out
    assert "Saved results/validation/report.html" in printed.out
    assert "validate: t, rows-50: baseline" in printed.err
    folder = Path("results/validation")
    assert [path.name for path in Path("results").iterdir()] == ["validation"]
    figures = {path.stem for path in (folder / "figures").glob("*.png")}
    assert figures == {"validation_scores", "validation_calibration", "validation_errors"}
    with (folder / "validation.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["server", "split", "repeat", "model", "regime", "rows", "metric", "value"]
    assert {row["model"] for row in rows} == {"line", "baseline"}
    page = (folder / "report.html").read_text("utf-8")
    assert 'src="data:image/png' in page
    assert "python scripts/validate.py t.jsonl --models line,baseline" in page


def test_json_is_one_document_and_comes_again(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    documents = []
    for name in ("a", "b"):
        assert main([trace, *CHEAP, "--json", "--no-report", "--name", name, "--seed", "4"]) == 0
        documents.append(json.loads(capsys.readouterr().out))
    assert documents[0]["scores"] == documents[1]["scores"]
    assert documents[0]["settings"]["seed"] == 4
    assert not Path("results/a/report.html").exists()


def test_an_interrupted_study_goes_on_where_it_stopped(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from bayes_sched.studies.competitors import Baseline

    fit = Baseline.fit

    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Baseline, "fit", interrupted)
    assert main([trace, *CHEAP, "--no-report"]) == 130
    assert not Path("results/validation").exists()
    (kept,) = Path("results/.validation.unfinished.tmp").iterdir()
    written = kept.stat().st_mtime_ns
    assert main([trace, *CHEAP, "--no-report"]) == 2
    monkeypatch.setattr(Baseline, "fit", fit)
    assert main([trace, *CHEAP, "--no-report", "--resume", "--keep"]) == 0
    assert kept.stat().st_mtime_ns == written
    assert len(list(kept.parent.iterdir())) == 4
    capsys.readouterr()
    more = ["--models", "line,baseline,baseline-huber", "--splits", "random,rows-50", "--no-report"]
    assert main([trace, *more, "--resume"]) == 0
    assert "baseline-huber" in capsys.readouterr().out
    assert not kept.parent.exists()


def test_a_failed_run_leaves_an_existing_validation_as_it_was(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path("results/validation")
    folder.mkdir(parents=True)
    (folder / "validation.csv").write_bytes(b"precious")

    def full_disk(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("bayes_sched.reports.validation.write_tables", full_disk)
    assert main([trace, *CHEAP, "--no-report", "--overwrite"]) == 2
    assert "No space left on device" in capsys.readouterr().err
    assert (folder / "validation.csv").read_bytes() == b"precious"


def test_budgets_of_one_server_are_left_out_and_drawn(
    shared_traces: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    traces = str(shared_traces / "h100_*")
    small = ["--models", "line", "--splits", "budget", "--max-train", "300", "--max-test", "200"]
    assert main([traces, *small]) == 0
    out = capsys.readouterr().out
    assert out.startswith("h100_qwq-32b-fp8: at most 300 steps to learn from (thinned at random for budget)")
    assert Path("results/validation/figures/validation_extrapolation.png").is_file()
