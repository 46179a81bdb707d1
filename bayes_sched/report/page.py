"""Renders the page of a report; everything that comes from data is escaped."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined

from bayes_sched.report.figures import ReportFigure
from bayes_sched.report.summary import Summary
from bayes_sched.report.tables import (
    cleaning_page,
    convergence_page,
    cost_page,
    mapping_page,
    parameter_page,
    prior_page,
    step_page,
)


def render_page(summary: Summary, figures: Mapping[ReportFigure, Path]) -> str:
    """Return the page as one self-contained HTML document.

    Parameters
    ----------
    summary : Summary
    figures : mapping of ReportFigure to Path
        Each figure and its PNG file, in the order of the page.
    """
    environment = Environment(
        loader=PackageLoader("bayes_sched", "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    metadata = summary.metadata
    return environment.get_template("report.html.j2").render(
        summary=summary,
        metadata=metadata,
        made_at=_date(metadata.created_at),
        tables={
            "steps": step_page(summary),
            "costs": cost_page(summary),
            "parameters": parameter_page(summary, combinations=False),
            "combinations": parameter_page(summary, combinations=True),
            "convergence": convergence_page(summary),
            "cleaning": cleaning_page(summary),
            "priors": prior_page(summary),
            "bad_lines": mapping_page(dict(metadata.bad_lines), ("reason", "lines")),
            "sampler": mapping_page(dict(metadata.sampler), ("setting", "value")),
            "timings": mapping_page(dict(metadata.timings_s), ("stage", "seconds")),
            "versions": mapping_page(dict(metadata.package_versions), ("package", "version")),
        },
        figures=[
            {"name": f.name, "heading": f.heading, "caption": f.caption, "uri": _data_uri(path)}
            for f, path in figures.items()
        ],
    )


def _date(iso: str) -> str:
    """Write an ISO 8601 time as a person reads it; what is none stays as it is."""
    try:
        return f"{datetime.fromisoformat(iso).astimezone(UTC):%Y-%m-%d %H:%M} UTC"
    except ValueError:
        return iso


def _data_uri(path: Path) -> str:
    return f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode('ascii')}"
