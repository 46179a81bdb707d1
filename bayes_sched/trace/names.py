"""A short name for a trace, from the names of its files."""

import re
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

_ENDINGS = re.compile(r"(\.(gz|zst|zstd|jsonl|ndjson|json|log|txt))+$", re.IGNORECASE)
_MAX_LENGTH = 80


def result_name(paths: Sequence[str]) -> str:
    """Name the result of reading some files.

    Parameters
    ----------
    paths : sequence of str
        As given; ``-`` is standard input.

    Returns
    -------
    str
        Letters, digits, ``.``, ``_`` and ``-``, fit for a folder. Of several files it is the beginning that
        their names share up to a separator, or the first name and how many more there are.
    """
    stems = ["stdin" if path == "-" else _stem(path) for path in paths]
    name = stems[0]
    if len(stems) > 1:
        name = _shared_start(stems) or f"{stems[0]}-and-{len(stems) - 1}-more"
    return _slug(name)


def _shared_start(stems: Sequence[str]) -> str:
    """Give the beginning that all names share, up to a separator; empty if it is too short to help."""
    columns = zip(*[stem + "-" for stem in stems], strict=False)
    shared = "".join(column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns))
    start = shared[: max(map(shared.rfind, "-_. ")) + 1].rstrip("-_. ")
    return start if len(start) > 2 else ""


def _stem(path: str) -> str:
    return _ENDINGS.sub("", Path(path).name)


def _slug(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name)[:_MAX_LENGTH].strip("-._") or "trace"
