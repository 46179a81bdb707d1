"""The command ``plan``: its exit statuses as a gate, what it prints and writes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.running import fails, printed_json, subcommand

pytestmark = pytest.mark.usefixtures("blank_figures")

main = subcommand("plan")
OPTIMIZE = ["optimize", "results/good", "--draws", "60"]
CAPACITY = ["capacity", "results/good", "--max-num-seqs", "32", "--token-budget", "512", "--draws", "20"]
RATE = ["--rate", "10/s", "--prompt-tokens", "200", "--output-tokens", "20", "--requests", "100"]


@pytest.fixture(autouse=True)
def _requests(among_kept_fits: None) -> None:
    """Lay logs of requests beside the fits."""
    lines = ["arrival_s,prompt_tokens,output_tokens", *(f"{i / 20},{100 + i},{5 + i % 3}" for i in range(40))]
    Path("requests.csv").write_text("\n".join(lines))
    Path("none.csv").write_text(f"{lines[0]}\n")
    Path("wrong.csv").write_text(f"{lines[0]}\n1,2,3\n2,-7,3\n")


def test_optimize_prints_settings_and_where_the_time_goes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OPTIMIZE, "--slo-ms", "20"]) == 0
    out = capsys.readouterr().out
    assert "Largest token budget for so many requests" in out
    assert "where its time goes" in out
    assert out.rstrip().endswith("The plan CAN be made.")
    assert max(map(len, out.splitlines())) <= 100


def test_a_limit_below_the_floor_is_answered_with_no(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*OPTIMIZE, "--slo-ms", "0.1"]) == 1
    assert "No settings keep 0.1 ms: the quickest need" in capsys.readouterr().out
    assert main([*CAPACITY, *RATE, "--ttft-ms", "0.1"]) == 1
    assert "No number of servers will do" in capsys.readouterr().out


def test_capacity_is_a_gate(capsys: pytest.CaptureFixture[str]) -> None:
    asked = [*CAPACITY, *RATE, "--ttft-ms", "300", "--tpot-ms", "40", "--quantile", "0.9", "--json"]
    assert main(asked) == 0
    found = printed_json(capsys)
    assert found["replicas"] == 1
    assert found["steps_per_second"] > 0
    assert main([*asked, "--e2e-ms", "60"]) == 1
    assert printed_json(capsys)["is_promised"] is False


def test_capacity_of_a_log_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["--workload", "requests.csv", "--e2e-ms", "2000", "--kv-tokens", "4096"]
    assert main([*CAPACITY, *asked]) == 0
    printed = capsys.readouterr()
    assert "40 requests, 20 a second" in printed.out
    assert "4,096 tokens of KV cache" in printed.out
    assert "steps, " in printed.out
    assert "a second." in printed.out
    assert "bayes-sched plan capacity: simulating 1 server\n" in printed.err
    assert max(map(len, printed.out.splitlines())) <= 100


def test_overload_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    flood = ["--rate", "2000/s", "--prompt-tokens", "400", "--output-tokens", "50", "--requests", "300"]
    assert main([*CAPACITY, *flood, "--replicas", "1"]) == 1
    assert "OVERLOAD" in capsys.readouterr().out


def test_the_next_step_is_answered_with_the_time_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["budget", "results/good", "--slo-ms", "20", "--decodes", "8"]
    assert main([*asked, "--waiting-tokens", "9000"]) == 0
    out = capsys.readouterr().out
    assert "Next step:" in out
    assert "An answer takes" in out
    assert main([*asked, "--slo-ms", "0.1", "--json"]) == 1
    assert printed_json(capsys)["is_kept"] is False


def test_a_fit_that_has_not_converged_is_refused_unless_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["optimize", "results/bad", "--slo-ms", "500", "--draws", "40"]
    assert main(asked) == 1
    assert "has not converged" in capsys.readouterr().out
    assert main([*asked, "--accept-unconverged"]) == 0
    assert "warning: the fit has not converged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "tables"),
    [
        (
            [*OPTIMIZE, "--slo-ms", "20"],
            {"frontier", "settings", "terms_any_step", "terms_decode_only_steps"},
        ),
        ([*CAPACITY, *RATE, "--ttft-ms", "300"], {"servers", "request_times"}),
    ],
)
def test_a_report_needs_no_other_file(
    arguments: list[str], tables: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = ["--report", "--results-dir", str(tmp_path)]
    assert main([*arguments, *place]) == 0
    folder = tmp_path / f"good-{arguments[0]}"
    page = (folder / "report.html").read_text("utf-8")
    assert "the plan can be made" in page
    assert page.count("data:image/png;base64,") == 2
    assert str(tmp_path) not in page
    assert json.loads((folder / "plan.json").read_text("utf-8"))["is_promised"] is True
    assert {path.stem for path in (folder / "tables").iterdir()} == tables
    capsys.readouterr()
    assert main([*arguments, *place]) == 2
    assert "exists: give another --name, or --overwrite" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workload", "none.csv"], "none.csv: the file holds no request"),
        (["--workload", "wrong.csv"], "wrong.csv, line 3: prompt_tokens is '-7'"),
        ([*RATE, "--kv-tokens", "64"], "100 of 100 requests do not fit into the KV cache"),
    ],
)
def test_a_workload_that_cannot_be_served_is_one_line(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(main, [*CAPACITY, *options], capsys)
