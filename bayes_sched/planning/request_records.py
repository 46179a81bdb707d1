"""Lines of a log of requests, one record each, with their place: CSV or JSON lines, plain or packed."""

from __future__ import annotations

import csv
import gzip
import json
import math
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from bayes_sched.errors import InputError
from bayes_sched.planning.workload import MAX_TOKENS

FIELDS = ("arrival_s", "prompt_tokens", "output_tokens")
"""What every request has."""

_CSV, _JSON_LINES, _PACKED = ".csv", ".jsonl", ".gz"


def request_records(path: Path, *, fields: tuple[str, ...] = FIELDS) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the place of each request (``FILE, line 7``) and its record.

    Parameters
    ----------
    path : Path
        ``.csv`` or ``.jsonl``, and either with ``.gz`` behind it.
    fields : tuple of str
        What the header of a CSV file has to name.

    Raises
    ------
    InputError
        The file cannot be read, is of another kind, or a line of it is no record.
    """
    kind = Path(path.stem).suffix if path.suffix == _PACKED else path.suffix
    if kind not in (_CSV, _JSON_LINES):
        raise InputError(
            f"{path}: a log of requests is a .csv or a .jsonl file (or .gz of it) with {', '.join(fields)}"
        )
    try:
        with _opened(path) as file:
            yield from _csv(path, file, fields) if kind == _CSV else _json_lines(path, file)
    except (UnicodeDecodeError, csv.Error, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(f"{path}: not a text file of requests ({error})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error})") from error


def _opened(path: Path) -> TextIO:
    if path.suffix == _PACKED:
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _csv(path: Path, file: TextIO, fields: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    reader = csv.DictReader(file)
    missing = [name for name in fields if name not in (reader.fieldnames or ())]
    if missing and reader.fieldnames is not None:
        raise InputError(f"{path}, line 1: the header names no {', '.join(missing)}")
    for record in reader:
        yield f"{path}, line {reader.line_num}", record


def _json_lines(path: Path, file: TextIO) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(file, start=1):
        if not line.strip():
            continue
        place = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"{place}: not valid JSON ({error})") from error
        if not isinstance(record, dict):
            raise InputError(f"{place}: no JSON object; each line holds one request")
        yield place, record


def request_value(record: dict[str, Any], name: str, place: str) -> float:
    """Return a number of a record: whole for tokens, and 0 or more for what is measured.

    Raises
    ------
    InputError
        It is missing, or no such number.
    """
    value = record.get(name)
    if value is None or value == "":
        raise InputError(f"{place}: {name} is missing")
    is_tokens = name.endswith("_tokens")
    unit = "milliseconds" if name.endswith("_ms") else "seconds"
    wanted = f"a whole number from 1 to {MAX_TOKENS:,}" if is_tokens else f"{unit}, 0 or more"
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
