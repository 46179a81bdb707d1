"""Where a report goes, and what is printed beside it."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from typing import Any

from bayes_sched.cli.command import Call, print_json
from bayes_sched.cli.progress import shown_progress
from bayes_sched.files import result_folder
from bayes_sched.reports.document import Document
from bayes_sched.reports.terminal import terminal
from bayes_sched.reports.write import write_report


def write_document(document: Document, options: argparse.Namespace) -> dict[str, str]:
    """Write a report into the folder of its own that the options name; return its files by what they are."""
    name = document.json_name
    with result_folder(options.folder, overwrite=options.overwrite, holds=name) as folder:
        write_report(document, folder, with_svg=options.svg)
    names = {"folder": "", "report": "report.html", name.removesuffix(".json"): name}
    return {what: str(options.folder / file) for what, file in names.items()}


def print_answer(
    document: Document,
    options: argparse.Namespace,
    call: Call,
    *,
    numbers: Mapping[str, Any],
    seconds: float,
) -> None:
    """Write the report where one is wanted; print the answer, or `numbers` as one JSON document."""
    paths: dict[str, str] = {}
    if options.report:
        with shown_progress(call) as show:
            show("writing the report", None)
            paths = write_document(document, options)
    if options.json:
        print_json({**numbers, "paths": paths, "seconds": round(seconds, 2)})
    else:
        print("\n\n".join([terminal(document), *([f"Saved {paths['report']}"] if paths else [])]))


def print_result(
    document: Document,
    options: argparse.Namespace,
    paths: Mapping[str, str],
    *,
    saved: Sequence[str],
    start: float,
    numbers: Mapping[str, Any] | None = None,
    note: str = "",
    stages: str = "",
) -> None:
    """Print a result, which of its files are `saved`, and how long it took since `start`; or all as JSON."""
    seconds = time.perf_counter() - start
    if options.json:
        print_json({**(numbers or document.numbers), "paths": paths, "seconds": round(seconds, 1)})
        return
    lines = [f"Saved {paths[name]}" for name in saved if name in paths]
    print(f"{terminal(document)}\n\n{note}" + "\n".join([*lines, f"Took {seconds:.1f} s{stages}"]))
