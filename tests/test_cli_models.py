"""The command ``models``: models on the same steps, what is printed, files written whole."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bayes_sched.sampling import sample as sampling
from tests.conftest import recorded_record
from tests.running import fails, full, interrupt, printed_json, subcommand
from tests.stub_sampling import unmixed_sample

pytestmark = pytest.mark.usefixtures("blank_figures")

main = subcommand("models")
TWO = ["--models", "saturation,saturation:constant", "--draws", "300"]


@pytest.fixture
def long_trace(write_lines: Callable[..., Path]) -> str:
    """Write a trace with context, 120 steps, into the empty folder; return its name."""
    records: list[Any] = [
        recorded_record([1, 16 * i % 400 + 1], [300 * i % 4000, 40], model_run_duration_ms=8.0 + i % 40)
        for i in range(1, 121)
    ]
    return write_lines(records, "long.jsonl").name


def test_the_models_are_ranked_on_the_same_steps_with_what_they_cost(
    stubbed_sampling: None, long_trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    models = ["--models", "saturation,saturation_context:constant", "--draws", "300", "--rows", "100"]
    assert main([long_trace, *models, "--csv", "t.csv", "--figure", "t.png"]) == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert " ".join(lines[0].split()) == "model elpd difference SE stretches p_loo k > 0.68 weight"
    assert max(map(len, lines)) <= 100
    assert "ESS/1,000 gradients" in printed.out
    assert "Steps of a trace are autocorrelated" in " ".join(lines)
    assert "bayes-sched models: 100 of 120 cleaned steps are compared on" in printed.err
    assert "saturation_context:constant (2 of 2): leaving out each step" in printed.err
    with Path("t.csv").open(encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["model"] for row in rows} == {"saturation", "saturation_context:constant"}
    assert float(rows[0]["difference"]) == 0.0 > float(rows[1]["difference"])
    assert Path("t.png").read_bytes().startswith(b"\x89PNG")


def test_json_is_one_document_and_the_same_seed_gives_it_again(
    stubbed_sampling: None, long_trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    documents = []
    for seed in ("4", "4", "5"):
        one = ["--models", "saturation", "--rows", "30", "--draws", "200", "--chains", "2", "--json"]
        assert main([long_trace, *one, "--seed", seed]) in (0, 3)
        documents.append(printed_json(capsys))
    first, again, other = documents
    assert first["models"] == again["models"] != other["models"]
    assert first["models"][0]["model"] == first["best"]
    assert first["steps"] == 30
    assert first["fits"]["saturation"]["effective_per_1000_gradients"] > 0
    assert {"pareto_k_limit", "unreliable_steps", "difference_se"} <= set(first["models"][0])


def test_a_model_whose_columns_the_trace_lacks_is_one_sentence(
    stubbed_sampling: None, short_trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    last = fails(main, [short_trace, "--models", "saturation,saturation_context"], capsys)
    assert (
        "the model saturation_context needs context_tokens, prefill_pairs, which the trace does not" in last
    )


def test_of_the_models_that_nobody_named_those_without_their_columns_are_left_out(
    stubbed_sampling: None, short_trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([short_trace, "--rows", "30", "--draws", "200", "--chains", "2", "--json"]) in (0, 3)
    printed = capsys.readouterr()
    compared = {row["model"] for row in json.loads(printed.out)["models"]}
    assert compared == {
        "saturation",
        "saturation_kv_cache",
        "saturation_levels",
        "saturation_levels_kv_cache",
    }
    assert "saturation_context left out: the trace lacks context_tokens, prefill_pairs" in printed.err
    assert "saturation_kv_cache left out" not in printed.err


def test_a_noise_option_that_a_model_lacks_is_one_sentence(
    stubbed_sampling: None, short_trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    last = fails(main, [short_trace, "--models", "saturation:regime"], capsys)
    assert "noise 'regime': the model saturation has proportional, constant" in last


def test_a_fit_that_failed_its_gate_is_said_and_sets_the_exit_status(
    stubbed_sampling: None,
    short_trace: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sampling, "sample", unmixed_sample)
    assert main([short_trace, *TWO]) == 3
    printed = capsys.readouterr()
    assert "saturation: the fit failed its convergence gate" in " ".join(printed.out.split())
    assert "bayes-sched models: not converged: saturation: R-hat" in printed.err


def test_an_interrupt_and_a_full_disk_leave_existing_files_as_they_were(
    stubbed_sampling: None,
    short_trace: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path("t.csv").write_text("precious", encoding="utf-8")
    arguments = [short_trace, *TWO, "--csv", "t.csv", "--overwrite"]
    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", full)
        message = fails(main, arguments, capsys)
    assert "t.csv: cannot write the file (No space left on device)" in message
    monkeypatch.setattr(sampling, "sample", interrupt)
    assert main(arguments) == 130
    assert Path("t.csv").read_text(encoding="utf-8") == "precious"
    assert sorted(path.name for path in Path().iterdir()) == ["t.csv", short_trace]
