"""The command: what it prints and where, its exit statuses, and that no failure costs a result."""

from __future__ import annotations

import inspect
import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from bayes_sched.reports import write
from bayes_sched.trace.findings import Limits
from bayes_sched.trace.reader import read_trace
from scripts.analyze_trace import main, parser
from tests.conftest import ROOT, as_bytes, documented_record
from tests.running import fails, full, interrupt, run_python

SCRIPT = ROOT / "scripts" / "analyze_trace.py"

HEAVY = {"numpy", "pandas", "scipy", "xarray", "pymc", "nutpie", "arviz", "matplotlib", "rich", "msgspec"}

pytestmark = pytest.mark.usefixtures("in_an_empty_folder")


def records(count: int = 60) -> list[dict[str, Any]]:
    return [
        documented_record(
            batch_id=i,
            timestamp=1.7e9 + i / 50,
            model_run_duration_ms=10.0 + i,
            total_step_duration_ms=10.5 + i,
            kv_cache_usage=0.5,
        )
        for i in range(count)
    ]


@pytest.fixture
def trace(write_lines: Callable[..., Path]) -> str:
    """A good trace in the current folder."""
    return write_lines(records()).name


@pytest.fixture
def no_figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the figures out, which take the time."""
    monkeypatch.setattr("bayes_sched.reports.trace._figures", lambda _: ())


SLIPS: list[tuple[list[str], str]] = [
    ([], "the following arguments are required: COMMAND"),
    (["look"], "invalid choice: 'look'"),
    (["analyze"], "the following arguments are required: TRACE"),
    (["analyze", "t", "--nonsense"], "unrecognized arguments: --nonsense"),
    (["analyze", "t", "--repor"], "unrecognized arguments: --repor"),
    (["analyze", "t", "--slow-schedule-ms", "0"], "'0' is not a positive number of milliseconds"),
    (["analyze", "t", "--schedule-rise", "1"], "'1' is not a factor above 1"),
    (["analyze", "t", "--schedule-rise", "nan"], "'nan' is not a factor above 1"),
    (["analyze", "t", "--long-queue", "0"], "'0' is not a whole number of at least 1"),
    (["analyze", "t", "--full-kv-cache", "95"], "'95' is not a share above 0 and at most 1"),
    (["analyze", "t", "--top", "-1"], "'-1' is not a whole number of at least 0"),
    (["analyze", "t", "--max-bad-share", "5"], "'5' is not a share between 0 and 1"),
    (["analyze", "missing.jsonl"], "no such file: missing.jsonl"),
    (["analyze", "*.zst"], r"no file matches the pattern \*.zst"),
    (["analyze", "."], "is a directory: name its files"),
    (["analyze", "trace.jsonl", "--name", "x"], "--name names the report: give --report too"),
    (["analyze", "trace.jsonl", "--report", "--name", "../x"], "'../x' cannot name a result"),
    (["analyze", "trace.jsonl", "--report", "--results-dir", "trace.jsonl"], "trace.jsonl is a file"),
    (["analyze", "trace.jsonl", "--report", "--name", "taken"], "results/taken exists: give another --name"),
    (
        ["analyze", "trace.jsonl", "--report", "--name", "fit", "--overwrite"],
        r"results/fit exists, but is no analysis of a trace \(it holds no analysis.json\)",
    ),
    (["analyze", "trace.jsonl", "--csv", "results"], "results is a directory: name a file in it"),
    (["analyze", "trace.jsonl", "--csv", "taken.csv"], "taken.csv exists: name another file, or --overwrite"),
    (["analyze", "trace.jsonl", "--csv", "trace.jsonl", "--overwrite"], "trace.jsonl is one of the traces"),
    (["analyze", "trace.jsonl", "--csv", "nowhere/t.csv"], "there is no folder nowhere"),
    (["watch"], "the following arguments are required: TRACE"),
    (["watch", "-"], "watch follows a file by its name"),
    (["watch", "."], "is a directory: name the log in it"),
    (["watch", "missing.jsonl", "--once"], "no such file: missing.jsonl"),
    (["watch", "trace.jsonl", "--interval", "0"], "'0' is not a number of seconds of at least 0.05"),
    (["watch", "trace.jsonl", "--window", "inf"], "'inf' is not a number of seconds"),
    (["watch", "trace.jsonl", "--duration", "-1"], "--duration"),
]


def lay_traps() -> None:
    """Write what arguments can trip over."""
    Path("taken.csv").write_bytes(b"precious")
    for name, file in (("taken", "analysis.json"), ("fit", "posterior.nc")):
        Path("results", name).mkdir(parents=True)
        Path("results", name, file).write_bytes(b"precious")


@pytest.mark.parametrize(("arguments", "message"), SLIPS)
def test_a_slip_is_answered_with_one_line_before_anything_is_read(
    arguments: list[str], message: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_traps()
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert re.search(message, printed.err), printed.err
    for precious in ("taken.csv", "results/taken/analysis.json", "results/fit/posterior.nc"):
        assert Path(precious).read_bytes() == b"precious"
    assert read_trace(trace).bad_lines.num_bad == 0


def test_slips_about_traces_and_results_load_no_heavy_library(trace: str) -> None:
    lay_traps()
    slips = [arguments for arguments, _ in SLIPS if arguments[:1] == ["analyze"]]
    code = (
        "import json, sys\nfrom scripts.analyze_trace import main\n"
        "statuses = [main(slip) for slip in json.loads(sys.argv[1])]\n"
        "print(json.dumps([statuses, sorted({name.split('.')[0] for name in sys.modules})]))"
    )
    statuses, loaded = json.loads(run_python("-c", code, json.dumps(slips)).stdout)
    assert statuses == [2] * len(slips)
    assert not HEAVY & set(loaded)


@pytest.mark.parametrize("name", ["analyze", "watch"])
def test_help_shows_options_and_examples_and_loads_no_library(name: str) -> None:
    done = run_python("-X", "importtime", str(SCRIPT), name, "--help")
    assert done.returncode == 0
    text = done.stdout.decode()
    assert "examples:" in text
    assert "exit status:" in text
    assert {"analyze": "--slow-schedule-ms", "watch": "--interval"}[name] in text
    loaded = {line.rpartition("|")[2].strip().split(".")[0] for line in done.stderr.decode().splitlines()}
    assert not loaded & HEAVY


def test_defaults_of_the_command_are_those_of_the_library() -> None:
    options = parser().parse_args(["analyze", "t"])
    limits = Limits()
    for name in ("slow_schedule_ms", "schedule_rise", "long_queue", "full_kv_cache"):
        assert getattr(options, name) == getattr(limits, name), name
    assert options.top == limits.num_slowest
    assert options.max_bad_share == inspect.signature(read_trace).parameters["max_bad_share"].default


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "t.jsonl is empty"),
        (b"\x89PNG\r\n\x1a\n", "t.jsonl is no trace: it is a PNG image"),
        (b"a,b\n1,2\n", "t.jsonl is no trace: it looks like a CSV table"),
        (b'{"total_scheduled_tokens": 1e308}\n', "t.jsonl holds no usable step"),
        (as_bytes(documented_record([], 0)) + b"\n", "every step of t is idle"),
        (
            as_bytes(documented_record(model_run_duration_ms=float("nan"))) + b"\n",
            r"first t.jsonl:1: .* is NaN",
        ),
    ],
)
def test_what_is_no_trace_is_refused(
    content: bytes, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("t.jsonl").write_bytes(content)
    assert re.search(message, fails(main, ["analyze", "t.jsonl", "--report", "--csv", "x.csv"], capsys))
    assert os.listdir() == ["t.jsonl"]


def test_too_many_bad_lines_are_refused_and_the_option_accepts_them(
    write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_lines([*["no JSON"] * 10, *records()]).name
    assert "--max-bad-share 0.15" in fails(main, ["analyze", name], capsys)
    assert main(["analyze", name, "--max-bad-share", "0.15"]) == 0
    printed = capsys.readouterr().out
    assert "10 of 70 lines could not be used" in printed
    assert "trace.jsonl:1: " in printed


def test_the_analysis_is_printed_and_nothing_is_written(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", trace, "--top", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("Measured: 60 batches in 1.18 s from 2023-11-14 22:13:20.000 UTC")
    assert max(map(len, printed.out.splitlines())) <= 100
    assert "trace.jsonl:60" in printed.out
    assert "trace.jsonl:58" not in printed.out
    assert printed.err.splitlines()[0] == "analyze_trace: reading the trace"
    assert os.listdir() == ["trace.jsonl"]


def test_limits_reach_the_findings(
    write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_lines(records()).name
    options = ["--slow-schedule-ms", "0.4", "--long-queue", "4", "--full-kv-cache", "0.5", "--json"]
    assert main(["analyze", name, *options]) == 0
    document = json.loads(capsys.readouterr().out)
    kinds = [finding["kind"] for finding in document["findings"]]
    assert kinds == ["slow scheduling", "queue build-up", "KV cache near full"]
    assert document["limits"]["slow_schedule_ms"] == 0.4


def test_json_is_one_document_and_nothing_else_on_standard_output(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", trace, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["num_steps"], document["paths"]) == (60, {})
    assert document["seconds"] >= 0


def test_csv_holds_the_statistics_and_replaces_only_what_it_may(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["analyze", trace, "--csv", "out.csv"]) == 0
    assert "Saved out.csv" in capsys.readouterr().out
    table = pd.read_csv("out.csv").set_index("quantity")
    assert table.loc["latency_ms", "max"] == 69.0
    assert main(["analyze", trace, "--csv", "out.csv"]) == 2
    Path("out.csv").write_text("old")
    assert main(["analyze", trace, "--csv", "out.csv", "--overwrite"]) == 0
    assert Path("out.csv").read_text().startswith("quantity,")
    assert sorted(os.listdir()) == ["out.csv", "trace.jsonl"]


def test_the_report_lies_where_it_is_said_to_lie(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["analyze", trace, "--report", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    for path in document["paths"].values():
        assert Path(path).exists(), path
    assert document["paths"]["report"] == "results/trace-analysis/report.html"
    stored = json.loads(Path(document["paths"]["analysis"]).read_text("utf-8"))
    assert stored.pop("command") == "python scripts/analyze_trace.py analyze trace.jsonl --report --json"
    assert stored == {key: value for key, value in document.items() if key not in {"paths", "seconds"}}
    assert len(list(Path("results/trace-analysis/figures").glob("*.png"))) == 7
    assert os.listdir("results") == ["trace-analysis"]


@pytest.mark.usefixtures("no_figures")
def test_an_existing_report_is_replaced_only_when_asked(trace: str) -> None:
    assert main(["analyze", trace, "--report"]) == 0
    Path("results/trace-analysis/note.txt").write_text("of the first")
    assert main(["analyze", trace, "--report"]) == 2
    assert Path("results/trace-analysis/note.txt").exists()
    assert main(["analyze", trace, "--report", "--overwrite"]) == 0
    assert not Path("results/trace-analysis/note.txt").exists()
    assert os.listdir("results") == ["trace-analysis"]


@pytest.fixture
def existing(trace: str, no_figures: None) -> Iterator[str]:
    """A trace whose report exists; it must be the same, and alone, in the end."""
    assert main(["analyze", trace, "--report"]) == 0
    page = Path("results/trace-analysis/report.html")
    before = page.read_bytes()
    yield trace
    assert page.read_bytes() == before
    assert os.listdir("results") == ["trace-analysis"]


def test_an_interrupt_costs_no_existing_report(
    existing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(write, "write_report", interrupt)
    assert main(["analyze", existing, "--report", "--overwrite"]) == 130
    assert capsys.readouterr().err.endswith("interrupted; existing results are as they were\n")


def test_a_full_disk_costs_no_existing_report(
    existing: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    monkeypatch.setattr(write, "write_report", full)
    message = fails(main, ["analyze", existing, "--report", "--overwrite"], capsys)
    assert "results/trace-analysis: cannot write the result (No space left on device)" in message


def test_a_full_disk_leaves_no_half_a_table(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(os, "replace", full)
    assert "out.csv: cannot write the file (No space left on device)" in fails(
        main, ["analyze", trace, "--csv", "out.csv"], capsys
    )
    assert os.listdir() == [trace]


def test_traces_may_stand_before_and_after_the_options(
    write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    names = [write_lines(records(count), name).name for count, name in ((60, "a-1.jsonl"), (50, "a-2.jsonl"))]
    assert main(["analyze", names[0], "--json", names[1]]) == 0
    assert json.loads(capsys.readouterr().out)["num_steps"] == 110


def test_standard_input_is_read(
    monkeypatch: pytest.MonkeyPatch, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(Path(trace).read_bytes())))
    assert main(["analyze", "-", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "stdin"


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(trace: str) -> None:
    code = f"{sys.executable} {SCRIPT} analyze {trace} 2>err | head -c 1; exit ${{PIPESTATUS[0]}}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["bash", "-c", code], capture_output=True, env=environment)
    assert (done.returncode, done.stdout) == (0, b"M")
    assert "rror" not in Path("err").read_text()


def test_a_trace_without_most_columns_is_analysed(
    write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    optional = ("timestamp", "schedule_duration_ms", "total_step_duration_ms", "num_waiting_reqs")
    bare: dict[str, Any] = dict.fromkeys((*optional, "num_running_reqs", "kv_cache_usage"), ...)
    name = write_lines([documented_record(**bare)] * 30).name
    assert main(["analyze", name]) == 0
    printed = capsys.readouterr().out
    assert "Missing in the trace: timestamps, the schedule time, the waiting queue" in printed
    assert "schedule time (ms)" not in printed
