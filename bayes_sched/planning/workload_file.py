"""Reads a log of requests: CSV with a header, or one JSON object a line."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bayes_sched.errors import InputError
from bayes_sched.planning.workload import MAX_TOKENS, Workload

FIELDS = ("arrival_s", "prompt_tokens", "output_tokens")
"""What is read of a request; other fields are ignored."""

_KINDS = (".csv", ".jsonl")


def read_workload(path: str | os.PathLike[str]) -> Workload:
    """Read the requests of a file: ``.csv`` or ``.jsonl``, with `FIELDS` of each; any order of arrivals.

    Raises
    ------
    InputError
        The file cannot be read, holds no request, or a field of a line is missing, negative or no number: the
        message names file and line.
    """
    path = Path(path)
    if path.suffix not in _KINDS:
        raise InputError(f"{path}: a log of requests is a .csv or a .jsonl file with {', '.join(FIELDS)}")
    rows = []
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            for line, record in _csv(path, file) if path.suffix == ".csv" else _json_lines(path, file):
                rows.append([_value(record, name, f"{path}, line {line}") for name in FIELDS])
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: not a text file of requests ({error})") from error
    if not rows:
        raise InputError(f"{path}: the file holds no request")
    arrival, prompt, output = np.array(rows, dtype=np.float64).T
    return Workload.of(arrival, prompt.astype(np.int64), output.astype(np.int64))


def _csv(path: Path, file: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(file)
    missing = [name for name in FIELDS if name not in (reader.fieldnames or ())]
    if missing and reader.fieldnames is not None:
        raise InputError(f"{path}, line 1: the header names no {', '.join(missing)}")
    for record in reader:
        yield reader.line_num, record


def _json_lines(path: Path, file: Iterator[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}, line {number}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise InputError(f"{path}, line {number}: no JSON object; each line holds one request")
        yield number, record


def _value(record: dict[str, Any], name: str, place: str) -> float:
    value = record.get(name)
    if value is None or value == "":
        raise InputError(f"{place}: {name} is missing")
    is_tokens = name != "arrival_s"
    wanted = f"a whole number from 1 to {MAX_TOKENS:,}" if is_tokens else "seconds, 0 or more"
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    is_fine = 0.0 <= number < math.inf
    if is_tokens:
        is_fine = 1 <= number <= MAX_TOKENS and number.is_integer()
    if not is_fine:
        raise InputError(f"{place}: {name} is {str(value)[:40]!r}: give {wanted}")
    return number
