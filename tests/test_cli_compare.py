"""The command ``compare``: what it prints and where, and that no failure costs a result."""

from __future__ import annotations

from pathlib import Path

import pytest

from bayes_sched.posterior.fitted import FittedModel
from tests.comparison_fits import server
from tests.running import fails, printed_json, subcommand

main = subcommand("compare")

pytestmark = pytest.mark.usefixtures("in_an_empty_folder", "blank_figures")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Results of three servers: two sound ones, one that has not converged."""
    folder = tmp_path_factory.mktemp("results")
    fits: dict[str, FittedModel] = {
        "fast": server(0.8, name="fast", gpu="X100"),
        "slow": server(name="slow", gpu="Y50"),
        "bad": server(name="bad", gpu="Z", converged=False, problems=("R-hat 1.2 on tau_S",)),
    }
    for name, fit in fits.items():
        (folder / name).mkdir()
        fit.save(folder / name / "posterior.nc")
    return folder


@pytest.fixture
def results(saved: Path) -> list[str]:
    """Two results in the folder of results."""
    Path("results").symlink_to(saved)
    return ["results/fast", "results/slow"]


def test_a_comparison_prints_tables_and_names_its_folder(
    results: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--results-dir", str(tmp_path / "out"), "--no-report"]
    assert main([*results, *out, "--price", "X100=2.50/h", "--price", "slow=1", "--slo-ms", "40"]) == 0
    printed = capsys.readouterr()
    assert "X100 / Y50" in printed.out
    assert "cost/million" in printed.out
    assert str(tmp_path / "out" / "compare-fast-slow") in printed.out
    assert "Traceback" not in printed.err
    folder = tmp_path / "out" / "compare-fast-slow"
    assert {path.name for path in folder.iterdir()} == {"summary.json", "comparison.nc", "tables"}


def test_json_is_one_document(results: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--json", "--no-report", "--rope", "10%", "--results-dir", str(tmp_path / "out")]
    assert main([*options, *results]) == 0
    numbers = printed_json(capsys)
    assert numbers["labels"] == ["X100", "Y50"]
    assert numbers["rope"] == pytest.approx(0.1)
    assert numbers["shares"][0]["faster"] == 1.0
    assert numbers["command"].startswith("bayes-sched compare --json --no-report")


def test_an_unconverged_fit_is_exit_status_three(
    results: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [results[0], "results/bad", "--no-report", "--results-dir", str(tmp_path / "out")]
    assert main(arguments) == 3
    printed = capsys.readouterr()
    assert "Z (result bad) has NOT CONVERGED (R-hat 1.2 on tau_S)" in printed.err
    assert printed.err.splitlines()[-1] == (
        "bayes-sched compare: a fit has NOT CONVERGED: do not act on this comparison"
    )


def test_a_label_of_no_fit_is_said_with_the_known_ones(
    results: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    message = fails(main, [*results, "--price", "H200=3", "--name", "x"], capsys)
    assert message.endswith("is that of no fit; give one of X100, Y50, fast, slow")
    assert not Path("results/x").exists()


def test_a_damaged_fit_is_named(results: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    Path("broken").mkdir()
    Path("broken/posterior.nc").write_bytes(b"no netCDF")
    message = fails(main, [results[0], "broken", "--name", "x"], capsys)
    assert "broken/posterior.nc: not a saved fit" in message


def test_long_names_make_a_name_that_is_still_one(capsys: pytest.CaptureFixture[str]) -> None:
    folders = [Path("far", f"{'x' * 60}{i}") for i in range(3)]
    for folder in folders:
        folder.mkdir(parents=True)
        (folder / "posterior.nc").write_bytes(b"precious")
    taken = Path("results", f"compare-{'x' * 60}0-and-2-more")
    taken.mkdir(parents=True)
    (taken / "comparison.nc").write_bytes(b"precious")
    assert f"{taken} exists" in fails(main, [str(folder) for folder in folders], capsys)
