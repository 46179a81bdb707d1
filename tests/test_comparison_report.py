"""The report of a comparison: page, tables, maps and figures."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
import xarray as xr

from bayes_sched.comparison.compare import Comparison, compare
from bayes_sched.reports.comparison import certainty, equivalent_sentence
from bayes_sched.reports.document import Document, report
from bayes_sched.reports.html import html
from bayes_sched.reports.plots.servers import probability_map, ratio_map
from bayes_sched.reports.terminal import WIDTH, terminal
from bayes_sched.reports.write import ReportPaths, write_report
from tests.comparison_fits import server

LABELS = {
    "ratio_map": "tokens in the step, S",
    "probability_map": "requests in the step, B",
    "comparison_bands": "latency (ms)",
    "parameter_forest": "ratio (95% credible interval)",
}


@pytest.fixture(scope="module")
def found() -> Comparison:
    fits = [
        server(0.9, name="first", gpu="X100"),
        server(name="second", gpu="<Y50>", llm="qwq", converged=False, problems=("R-hat 1.2",)),
        server(1.1, name="third", gpu="Z", budget=1024, max_b=32),
    ]
    return compare(fits, slo_ms=40.0, prices={"X100": 2.0, "third": 0.5})


@pytest.fixture(scope="module")
def document(found: Comparison) -> Document:
    return report(found, command="python compare")


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory, document: Document) -> ReportPaths:
    return write_report(document, tmp_path_factory.mktemp("report"))


def test_the_page_needs_nothing_from_elsewhere_and_escapes_labels(
    written: ReportPaths, found: Comparison
) -> None:
    found.save(written.page.parent / "comparison.nc")
    page = written.page.read_text("utf-8")
    assert not re.search(r"https?://|<script", page)
    assert page.count('src="data:image/png;base64,') == len(LABELS)
    assert "&lt;Y50&gt;" in page
    assert "<Y50>" not in page
    for target in re.findall(r'href="([^"]+)"', page):
        assert (written.page.parent / target).is_file()
    with xr.open_dataset(written.page.parent / "comparison.nc", engine="h5netcdf") as maps:
        xr.testing.assert_allclose(maps["ratio_median"], found.maps["ratio_median"])
        assert maps["gpu"].to_numpy().tolist() == list(found.labels)
        assert maps["verdict"].to_numpy().astype(str).tolist() == found.maps["verdict"].to_numpy().tolist()
        assert "region of practical equivalence" in maps.attrs["rule"]


def test_an_unconverged_fit_and_a_comparison_of_servers_are_marked_where_they_are(
    written: ReportPaths, comparison: Comparison
) -> None:
    page = written.page.read_text("utf-8")
    assert 'class="verdict bad">NOT CONVERGED: &lt;Y50&gt;' in page
    assert "a comparison of servers, not of GPUs" in page
    assert '<tr class="failed"><td class="text">&lt;Y50&gt;' in page
    sound = html(report(comparison), dict.fromkeys(LABELS, written.figures["ratio_map"]))
    assert "NOT CONVERGED" not in sound
    assert "not of GPUs" not in sound


def test_tables_hold_every_pair_with_full_precision(written: ReportPaths, found: Comparison) -> None:
    table = pd.read_csv(written.tables["latency"])
    assert len(table) == len(found.table)
    pairs = {("X100", "<Y50>"), ("X100", "Z"), ("<Y50>", "Z")}
    assert set(zip(table["gpu"], table["other"], strict=True)) == pairs
    ratios = found.table["ratio_median"].to_numpy()
    assert table["ratio_median"].to_numpy() == pytest.approx(ratios, rel=1e-12)


def test_the_numbers_are_ready_for_json(written: ReportPaths, comparison: Comparison) -> None:
    assert json.loads(written.summary.read_text("utf-8"))["command"] == "python compare"
    numbers = json.loads(json.dumps(report(comparison).numbers, allow_nan=False))
    assert numbers["labels"] == ["X100", "Y50"]
    assert numbers["grid"][0]["gpu"] == "X100"
    assert numbers["fits"][0]["price_per_hour"] == 2.0
    assert numbers["converged"] is True
    assert numbers["text"] in " ".join(terminal(report(comparison)).split())


def test_every_figure_says_what_it_shows_and_carries_units(document: Document) -> None:
    for shown in document.figures:
        figure = shown.draw()
        labels = [text for ax in figure.axes for text in (ax.get_xlabel(), ax.get_ylabel())]
        assert LABELS[shown.name] in labels
        assert len(figure.get_suptitle()) > 20


def test_a_grid_of_one_step_is_drawn_without_a_surface() -> None:
    one = compare([server(name="a"), server(name="b")], batch_size=[4], total_tokens=[64])
    assert ratio_map(one).axes
    assert probability_map(one).axes


def test_the_text_fits_a_terminal_and_names_every_server(document: Document, found: Comparison) -> None:
    text = terminal(document)
    assert max(map(len, text.splitlines())) <= WIDTH
    for label in found.labels:
        assert label in text


def test_what_is_beyond_is_said_so_and_no_probability_is_written_as_certain() -> None:
    row = {"batch_size": 32, "gpu": "A", "other": "B", "limit": 400.0, "extrapolation": True}
    text = equivalent_sentence({**row, "median": None, "lower": 390.0, "upper": None})
    assert text == "32 decodes on A cost what more than 400 on B do (390 to more than 400; an extrapolation)"
    assert "less than 1" in equivalent_sentence({**row, "median": 0.0, "lower": 0.0, "upper": 2.0})
    assert [certainty(p) for p in (0.0, 0.25, 1.0)] == ["below 0.1%", "25.0%", "above 99.9%"]


def test_numbers_and_tables_alone_are_written_without_a_page(tmp_path: Path, document: Document) -> None:
    write_report(document, tmp_path / "plain", with_page=False)
    assert {path.name for path in (tmp_path / "plain").iterdir()} == {"summary.json", "tables"}
