"""The report of a comparison: page, tables, maps and figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr

from bayes_sched.comparison.compare import Comparison, compare
from bayes_sched.reports.comparison import comparison_text, render_comparison, write_comparison
from bayes_sched.reports.page import ReportPaths
from bayes_sched.reports.plots.comparison import (
    comparison_bands,
    parameter_forest,
    probability_map,
    ratio_map,
)
from bayes_sched.reports.terminal import WIDTH
from tests.comparison_fits import server

FIGURES = ("ratio_map", "probability_map", "comparison_bands", "parameter_forest")


@pytest.fixture(scope="module")
def found() -> Comparison:
    fits = [
        server(0.9, name="first", gpu="X100"),
        server(name="second", gpu="<Y50>", llm="qwq", converged=False, problems=("R-hat 1.2",)),
        server(1.1, name="third", gpu="Z", budget=1024, max_b=32),
    ]
    return compare(fits, slo_ms=40.0, prices={"X100": 2.0, "third": 0.5})


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, found: Comparison) -> ReportPaths:
    return write_comparison(found, tmp_path_factory.mktemp("report"), command="python compare")


def test_the_report_holds_page_numbers_tables_maps_and_figures(written: ReportPaths) -> None:
    folder = written.page.parent
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert {"report.html", "summary.json", "comparison.nc", "tables/latency.csv"} <= names
    assert {f"figures/{name}.{kind}" for name in FIGURES for kind in ("png", "svg")} <= names
    assert json.loads(written.summary.read_text("utf-8"))["command"] == "python compare"


def test_the_page_needs_nothing_from_elsewhere_and_escapes_labels(written: ReportPaths) -> None:
    page = written.page.read_text("utf-8")
    assert not re.search(r"https?://|<script", page)
    assert page.count('src="data:image/png;base64,') == len(FIGURES)
    assert "&lt;Y50&gt;" in page
    assert "<Y50>" not in page
    for target in re.findall(r'href="([^"]+)"', page):
        assert (written.page.parent / target).is_file()


def test_the_page_marks_an_unconverged_fit_and_a_comparison_of_servers(written: ReportPaths) -> None:
    page = written.page.read_text("utf-8")
    assert 'class="verdict bad">NOT CONVERGED: &lt;Y50&gt;' in page
    assert "a comparison of servers, not of GPUs" in page
    assert '<tr class="failed"><td class="text">&lt;Y50&gt;' in page


def test_the_page_of_sound_gpus_marks_nothing() -> None:
    sound = compare([server(name="a", gpu="X"), server(name="b", gpu="Y")], batch_size=[4], total_tokens=[64])
    page = render_comparison(sound, {})
    assert "NOT CONVERGED" not in page
    assert "not of GPUs" not in page


def test_the_maps_survive_the_file(written: ReportPaths, found: Comparison) -> None:
    with xr.open_dataset(written.page.parent / "comparison.nc", engine="h5netcdf") as maps:
        xr.testing.assert_allclose(maps["ratio_median"], found.maps["ratio_median"])
        assert maps["gpu"].to_numpy().tolist() == list(found.labels)
        assert maps["verdict"].to_numpy().astype(str).tolist() == found.maps["verdict"].to_numpy().tolist()
        assert "region of practical equivalence" in maps.attrs["rule"]


def test_tables_hold_every_pair_with_full_precision(written: ReportPaths, found: Comparison) -> None:
    table = pd.read_csv(written.tables["latency"])
    assert len(table) == len(found.table)
    assert set(zip(table["gpu"], table["other"], strict=True)) == {
        ("X100", "<Y50>"),
        ("X100", "Z"),
        ("<Y50>", "Z"),
    }
    assert table["ratio_median"].to_numpy() == pytest.approx(
        found.table["ratio_median"].to_numpy(), rel=1e-12
    )


def test_every_figure_says_what_it_shows_and_carries_units(found: Comparison) -> None:
    labels = {
        ratio_map: "tokens in the step, S",
        probability_map: "requests in the step, B",
        comparison_bands: "latency (ms)",
        parameter_forest: "ratio (95% credible interval)",
    }
    for draw, label in labels.items():
        figure = draw(found)
        shown = [text for ax in figure.axes for text in (ax.get_xlabel(), ax.get_ylabel())]
        assert label in shown
        assert len(figure.get_suptitle()) > 20


def test_a_grid_of_one_step_is_drawn_without_a_surface() -> None:
    one = compare([server(name="a"), server(name="b")], batch_size=[4], total_tokens=[64])
    assert ratio_map(one).axes
    assert probability_map(one).axes


def test_the_text_fits_a_terminal_and_names_every_server(found: Comparison) -> None:
    text = comparison_text(found)
    assert max(map(len, text.splitlines())) <= WIDTH
    for label in found.labels:
        assert label in text


def test_every_file_is_written_into_the_folder_alone(tmp_path: Path, found: Comparison) -> None:
    write_comparison(found, tmp_path / "plain", with_report=False)
    names = {path.name for path in (tmp_path / "plain").iterdir()}
    assert names == {"summary.json", "comparison.nc", "tables"}
