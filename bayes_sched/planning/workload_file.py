"""Reads a log of requests: CSV with a header, or one JSON object a line, plain or packed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np

from bayes_sched.errors import InputError
from bayes_sched.planning.request_records import FIELDS, request_records, request_value
from bayes_sched.planning.workload import Workload


def read_workload(path: str | os.PathLike[str]) -> Workload:
    """Read the requests of a file: ``.csv`` or ``.jsonl`` (or ``.gz`` of it), with `FIELDS` of each.

    They may come in any order; other fields are ignored.

    Raises
    ------
    InputError
        The file cannot be read, holds no request, or a field of a line is missing, negative or no number: the
        message names file and line.
    """
    path = Path(path)
    rows = [
        [request_value(record, name, place) for name in FIELDS] for place, record in request_records(path)
    ]
    if not rows:
        raise InputError(f"{path}: the file holds no request")
    arrival, prompt, output = np.array(rows, dtype=np.float64).T
    return Workload.of(arrival, prompt.astype(np.int64), output.astype(np.int64))
