"""The command ``analyze``: what it prints and where, and that no failure costs a result."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from tests.conftest import as_bytes, documented_record
from tests.running import fails, printed_json, subcommand

main = subcommand("analyze")

pytestmark = pytest.mark.usefixtures("in_an_empty_folder", "blank_figures")


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
    assert re.search(message, fails(main, ["t.jsonl", "--report", "--csv", "x.csv"], capsys))
    assert os.listdir() == ["t.jsonl"]


def test_too_many_bad_lines_are_refused_and_the_option_accepts_them(
    write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_lines([*["no JSON"] * 10, *records()]).name
    assert "--max-bad-share 0.15" in fails(main, [name], capsys)
    assert main([name, "--max-bad-share", "0.15"]) == 0
    printed = capsys.readouterr().out
    assert "10 of 70 lines could not be used" in printed
    assert "trace.jsonl:1: " in printed


def test_the_analysis_is_printed_and_nothing_is_written(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([trace, "--top", "2"]) == 0
    printed = capsys.readouterr()
    assert printed.out.startswith("Measured: 60 batches in 1.18 s from 2023-11-14 22:13:20.000 UTC")
    assert max(map(len, printed.out.splitlines())) <= 100
    assert "trace.jsonl:60" in printed.out
    assert "trace.jsonl:58" not in printed.out
    assert printed.err.splitlines()[0] == "bayes-sched analyze: reading the trace"
    assert os.listdir() == ["trace.jsonl"]


def test_limits_reach_the_findings(
    write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    name = write_lines(records()).name
    options = ["--slow-schedule-ms", "0.4", "--long-queue", "4", "--full-kv-cache", "0.5", "--json"]
    assert main([name, *options]) == 0
    document = printed_json(capsys)
    kinds = [finding["kind"] for finding in document["findings"]]
    assert kinds == ["slow scheduling", "queue build-up", "KV cache near full"]
    assert document["limits"]["slow_schedule_ms"] == 0.4
    assert (document["num_steps"], document["paths"]) == (60, {})


def test_csv_holds_the_statistics_and_replaces_only_what_it_may(
    trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([trace, "--csv", "out.csv"]) == 0
    assert "Saved out.csv" in capsys.readouterr().out
    table = pd.read_csv("out.csv").set_index("quantity")
    assert table.loc["latency_ms", "max"] == 69.0
    assert main([trace, "--csv", "out.csv"]) == 2
    Path("out.csv").write_text("old")
    assert main([trace, "--csv", "out.csv", "--overwrite"]) == 0
    assert Path("out.csv").read_text().startswith("quantity,")
    assert sorted(os.listdir()) == ["out.csv", "trace.jsonl"]


def test_the_report_lies_where_it_is_said_to_lie(trace: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([trace, "--report", "--json"]) == 0
    document = printed_json(capsys)
    for path in document["paths"].values():
        assert Path(path).exists(), path
    assert document["paths"]["report"] == "results/trace-analysis/report.html"
    stored = json.loads(Path(document["paths"]["analysis"]).read_text("utf-8"))
    assert stored.pop("command") == "bayes-sched analyze trace.jsonl --report --json"
    assert stored == {key: value for key, value in document.items() if key not in {"paths", "seconds"}}
    assert len(list(Path("results/trace-analysis/figures").glob("*.png"))) == 7
    assert os.listdir("results") == ["trace-analysis"]


@pytest.mark.usefixtures("no_figures")
def test_an_existing_report_is_replaced_only_when_asked(trace: str) -> None:
    assert main([trace, "--report"]) == 0
    Path("results/trace-analysis/note.txt").write_text("of the first")
    assert main([trace, "--report"]) == 2
    assert Path("results/trace-analysis/note.txt").exists()
    assert main([trace, "--report", "--overwrite"]) == 0
    assert not Path("results/trace-analysis/note.txt").exists()
    assert os.listdir("results") == ["trace-analysis"]


def test_a_reader_that_has_seen_enough_ends_the_command_quietly(
    trace: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    mine, theirs = os.pipe()
    os.close(mine)
    with os.fdopen(theirs, "w") as closed:
        monkeypatch.setattr("sys.stdout", closed)
        assert main([trace]) == 0
        monkeypatch.undo()
    assert "rror" not in capsys.readouterr().err


def test_a_trace_without_most_columns_is_analysed(
    write_lines: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    optional = ("timestamp", "schedule_duration_ms", "total_step_duration_ms", "num_waiting_reqs")
    bare: dict[str, Any] = dict.fromkeys((*optional, "num_running_reqs", "kv_cache_usage"), ...)
    name = write_lines([documented_record(**bare)] * 30).name
    assert main([name]) == 0
    printed = capsys.readouterr().out
    assert "Missing in the trace: timestamps, the schedule time, the waiting queue" in printed
    assert "schedule time (ms)" not in printed
