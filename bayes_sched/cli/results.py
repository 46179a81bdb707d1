"""The folder of a report."""

from __future__ import annotations

import argparse

from bayes_sched.files import result_folder
from bayes_sched.reports.document import Document
from bayes_sched.reports.write import write_report


def write_document(document: Document, options: argparse.Namespace) -> dict[str, str]:
    """Write a report into the folder of its own that the options name; return its files by what they are."""
    name = document.json_name
    with result_folder(options.folder, overwrite=options.overwrite, holds=name) as folder:
        write_report(document, folder)
    names = {"folder": "", "report": "report.html", name.removesuffix(".json"): name}
    return {what: str(options.folder / file) for what, file in names.items()}
