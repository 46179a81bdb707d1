"""The command: its exit statuses as a gate, what it prints and writes, and each slip with its message."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bayes_sched import DEFAULT_PROBABILITY
from bayes_sched.sla.request import request_sla
from bayes_sched.sla.risk import DEFAULT_CONFIDENCE, DEFAULT_QUANTILE
from bayes_sched.sla.steps import step_sla
from scripts.sla import main, parser
from tests.synthetic_fit import server, synthetic_fit

ROOT = Path(__file__).resolve().parents[1]
HEAVY = {"numpy", "pandas", "scipy", "xarray", "pymc", "nutpie", "arviz", "matplotlib", "rich"}
REQUEST = ["--prompt-tokens", "900", "--output-tokens", "20", "--decodes", "7", "--token-budget", "512"]


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of results: a fit that converged and one that did not."""
    folder = tmp_path_factory.mktemp("work")
    for name, fit in {"good": server(), "bad": synthetic_fit(converged=False)}.items():
        place = folder / "results" / name
        place.mkdir(parents=True)
        fit.save(place / "posterior.nc")
    (folder / "results" / "empty").mkdir()
    (folder / "results" / "posterior.nc").write_text("no fit")
    return folder


@pytest.fixture(autouse=True)
def _in_the_folder(fits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(fits)


def printed_json(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


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
    asked = ["results/good", "--slo-ms", "20", *REQUEST, "--ttft-ms", "500", "--report"]
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
        ([], "the following arguments are required: FIT"),
        (["results/good"], "there is no promise to judge: give --slo-ms, or --prompt-tokens"),
        (["results/good", "--slo-ms", "-5"], "--slo-ms: '-5' is not a positive number of milliseconds"),
        (["results/good", "--slo-ms", "inf"], "--slo-ms: 'inf'"),
        (["results/good", "--slo-ms", "5", "--quantile", "1"], "--quantile: '1' is not a probability"),
        (["results/good", "--slo-ms", "5", "--confidence", "0"], "--confidence: '0' is not a probability"),
        (["results/good", "--slo-ms", "5", "--batch-size", "0"], "--batch-size: '0' is not a whole number"),
        (["results/good", "--slo-ms", "5", "--decodes", "-1"], "--decodes: '-1' is not a whole number"),
        (["results/good", "--slo-ms", "5", "--token-budget", "9"], "--token-budget is one of steps with"),
        (["results/good", "--slo-ms", "5", "--decodes", "9", "--token-budget", "9"], "leaves no token"),
        (["results/good", "--batch-size", "5"], "there is no promise to judge"),
        (["results/good", "--prompt-tokens", "5", "--batch-size", "5"], "--batch-size is judged by a limit"),
        (["results/good", "--ttft-ms", "5"], "--ttft-ms is a limit on requests: give --prompt-tokens too"),
        (["results/good", "--slo-ms", "5", "--e2e-ms", "5"], "--e2e-ms is a limit on requests"),
        (["results/good", "--prompt-tokens", "5", "--e2e-ms", "5"], "--e2e-ms needs --output-tokens"),
        (
            ["results/good", "--prompt-tokens", "0"],
            "--prompt-tokens: '0' is not a whole number of at least 1",
        ),
        (["results/good", "--slo-ms", "5", "--output-tokens", "5"], "--output-tokens belongs to a request"),
        (["results/missing", "--slo-ms", "5"], "results/missing: no such fit"),
        (
            ["results/empty", "--slo-ms", "5"],
            "results/empty: no fit in this folder (it holds no",
        ),
        (["results/posterior.nc", "--slo-ms", "5"], "results/posterior.nc: not a saved fit"),
        (["results/good", "--slo-ms", "5", "--name", "x"], "--name names the report: give --report too"),
        (["results/good", "--slo-ms", "5", "--report", "--name", "good"], "exists, but is no answer about"),
        (["results/good", "--slo-ms", "5", "--model", "none.py"], "none.py: no such model"),
    ],
)
def test_a_slip_is_answered_with_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("sla: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err


def test_help_and_slips_load_no_heavy_library() -> None:
    code = (
        "import sys; from scripts.sla import main\n"
        "for given in (['results/missing', '--slo-ms', '5'], ['results/good'], ['--help']):\n"
        "    try: main(given)\n"
        "    except SystemExit: pass\n"
        "sys.stderr.write(' '.join(sorted({name.split('.')[0] for name in sys.modules})))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stderr.split())
    assert "examples:" in done.stdout


def test_the_defaults_are_those_of_the_library() -> None:
    options = vars(parser().parse_args(["results/good"]))
    assert options["probability"] == DEFAULT_PROBABILITY
    assert (options["quantile"], options["confidence"]) == (DEFAULT_QUANTILE, DEFAULT_CONFIDENCE)
    for function in (step_sla, request_sla):
        for name, parameter in inspect.signature(function).parameters.items():
            is_plain = parameter.default not in (inspect.Parameter.empty, None)
            if name in options and is_plain and name != "decodes":
                assert options[name] == parameter.default, name
