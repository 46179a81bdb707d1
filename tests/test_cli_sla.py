"""The command ``sla``: its exit statuses as a gate, what it prints and writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.running import fails, printed_json, subcommand

pytestmark = pytest.mark.usefixtures("blank_figures", "among_kept_fits")

main = subcommand("sla")
REQUEST = ["--prompt-tokens", "900", "--output-tokens", "20", "--decodes", "7", "--token-budget", "512"]


def test_the_exit_status_is_a_gate(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["results/good", "--slo-ms", "20", "--json", "--batch-size"]
    assert main([*asked, "1"]) == 0
    most = printed_json(capsys)["steps"]["decode_only"]["promised"]["number"]
    assert main([*asked, str(most)]) == 0
    capsys.readouterr()
    assert main([*asked, str(most + 1)]) == 1
    assert printed_json(capsys)["is_promised"] is False


def test_steps_are_printed_with_their_frontier(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results/good/posterior.nc", "--slo-ms", "20", "--decodes", "7"]) == 0
    out = capsys.readouterr().out
    assert "Largest token budget with 7 decodes and a prefill:" in out
    assert "A point estimate allows" in out
    assert "Most tokens of a step with B requests:" in out
    assert out.rstrip().endswith("The promise CAN be made.")
    assert max(map(len, out.splitlines())) <= 100


def test_requests_are_printed_with_their_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results/good", *REQUEST, "--ttft-ms", "500", "--e2e-ms", "20"]) == 1
    out = capsys.readouterr().out
    assert re.search(r"TTFT .*500 .*yes", out)
    assert re.search(r"E2E .*20 .*NO", out)
    assert out.rstrip().endswith("The promise can NOT be made.")
    assert max(map(len, out.splitlines())) <= 100


def test_a_missing_token_budget_is_the_largest_seen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results/good", "--prompt-tokens", "900"]) == 0
    printed = capsys.readouterr()
    assert "--token-budget is taken to be 4,096" in printed.err
    assert "token budget 4,096" in " ".join(printed.out.split())


def test_a_limit_below_the_floor_is_answered_with_no(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["results/good", "--slo-ms", "0.1"]) == 1
    assert "No step of this server keeps 0.1 ms" in capsys.readouterr().out


def test_a_fit_that_has_not_converged_is_refused_unless_accepted(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["results/bad", "--slo-ms", "500"]
    assert main(asked) == 1
    assert "has not converged" in capsys.readouterr().out
    assert main([*asked, "--accept-unconverged"]) == 0
    assert "warning: the fit has not converged" in capsys.readouterr().err


def test_a_report_needs_no_other_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["results/good", "--slo-ms", "20", *REQUEST, "--ttft-ms", "500", "--report", "--svg"]
    place = ["--results-dir", str(tmp_path)]
    assert main([*asked, *place]) == 0
    folder = tmp_path / "good-sla"
    page = (folder / "report.html").read_text("utf-8")
    assert "the promise can be made" in page
    assert page.count("data:image/png;base64,") == 3
    assert str(tmp_path) not in page
    numbers = json.loads((folder / "sla.json").read_text("utf-8"))
    assert numbers["is_promised"] is True
    assert {path.stem for path in (folder / "tables").iterdir()} == {
        *("frontier", "probability_map", "decode_only", "request_times", "request_steps")
    }
    assert len(list((folder / "figures").iterdir())) == 6
    capsys.readouterr()
    before = (folder / "report.html").read_bytes()
    assert main([*asked, *place]) == 2
    assert "exists: give another --name, or --overwrite" in capsys.readouterr().err
    assert (folder / "report.html").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["results/good", "--slo-ms", "5", "--decodes", "9", "--token-budget", "9"], "leaves no token"),
        (["results/posterior.nc", "--slo-ms", "5"], "results/posterior.nc: not a saved fit"),
        (["results/good", "--slo-ms", "5", "--model", "none.py"], "none.py: no such model"),
    ],
)
def test_what_cannot_be_answered_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in fails(main, arguments, capsys)
