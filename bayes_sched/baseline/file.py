"""A least-squares fit as a JSON file: written whole or not at all, checked when it is read."""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import pandas as pd

from bayes_sched.baseline.least_squares import NAMES, Optimum
from bayes_sched.baseline.scores import Scores
from bayes_sched.baseline.solution import Solution
from bayes_sched.baseline.uncertainty import INFINITY, QUANTITIES
from bayes_sched.errors import InputError
from bayes_sched.file_version import check_version
from bayes_sched.region import Region
from bayes_sched.whole_file import whole_file

FORMAT_NAME = "bayes-sched least-squares baseline"
FORMAT_VERSION = 1
"""Raised whenever a reader of the version before could misread a file."""

_AGAIN = "fit the steps again"
_GIVE = "give a file written by ThroughputSaturationModel.save"


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the estimator was made with."""

    loss: Literal["linear", "huber"]
    min_latency_ms: float
    max_latency_ms: float


class _Document(msgspec.Struct, frozen=True):
    """The file. Numbers that JSON lacks: NaN as null, infinity as text."""

    format: str
    version: int
    settings: Settings
    parameters: dict[str, float]
    initial: dict[str, float]
    huber_ms: float | None
    num_evaluations: int
    at_bound: dict[str, Literal["0", "infinity", "undetermined"]]
    covariance: list[list[float | Literal["infinity"] | None]]
    scores: dict[str, float | None]
    region: list[tuple[float, float]]
    warnings: list[str]


def write(path: str | os.PathLike[str], solution: Solution, settings: Settings) -> None:
    """Write a fit to a JSON file, atomically; an existing file is replaced.

    Raises
    ------
    InputError
        The place cannot be written.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(
            f"{path} is a folder: give the name of a file in it, such as {path / 'baseline.json'}"
        )
    optimum = solution.optimum
    hull = solution.region.hull
    document = {
        "format": FORMAT_NAME,
        "version": FORMAT_VERSION,
        "settings": msgspec.to_builtins(settings),
        "parameters": optimum.parameters,
        "initial": optimum.initial,
        "huber_ms": optimum.huber_ms,
        "num_evaluations": optimum.num_evaluations,
        "at_bound": solution.at_bound,
        "covariance": [[_to_json(value) for value in row] for row in solution.covariance.to_numpy().tolist()],
        "scores": {name: _to_json(value) for name, value in asdict(solution.scores).items()},
        "region": hull.to_numpy().tolist(),
        "warnings": list(solution.warnings),
    }
    text = json.dumps(document, indent=1, ensure_ascii=False, allow_nan=False)
    with whole_file(path, what="the fit") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def read(path: str | os.PathLike[str]) -> tuple[Solution, Settings]:
    """Read what :func:`write` wrote.

    Raises
    ------
    InputError
        The file is missing, no such fit, damaged, or of a later format.
    """
    path = Path(path)
    content = _content(path)
    try:
        _check_format(path, content)
        document = msgspec.json.decode(content, type=_Document)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: the file is damaged ({error}); {_AGAIN}") from error
    problem = _problem(document)
    if problem:
        raise InputError(f"{path}: the file is damaged ({problem}); {_AGAIN}")
    return _solution(document), document.settings


def _solution(document: _Document) -> Solution:
    table = np.array([[_from_json(value) for value in row] for row in document.covariance])
    scores = {name: _from_json(value) for name, value in document.scores.items()}
    corners = np.array(document.region)
    return Solution(
        optimum=Optimum(
            parameters=document.parameters,
            initial=document.initial,
            huber_ms=document.huber_ms,
            num_evaluations=document.num_evaluations,
        ),
        at_bound={name: str(place) for name, place in document.at_bound.items()},
        covariance=pd.DataFrame(table, index=list(QUANTITIES), columns=list(QUANTITIES)),
        scores=Scores(**(scores | {"num_steps": int(scores["num_steps"])})),  # type: ignore[arg-type]
        region=Region.of(corners[:, 0], corners[:, 1]),
        warnings=tuple(document.warnings),
    )


def _content(path: Path) -> bytes:
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the file in it, such as {path / 'baseline.json'}")
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path}: there is no such file; {_GIVE}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    if not content.strip():
        raise InputError(f"{path}: the file is empty; {_AGAIN}")
    return content


def _check_format(path: Path, content: bytes) -> None:
    try:
        found = msgspec.json.decode(content)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        if content.lstrip().startswith(b"{") and FORMAT_NAME.encode() in content[:200]:
            raise InputError(f"{path}: the file is damaged, perhaps cut short; {_AGAIN}") from error
        raise InputError(f"{path}: not a saved baseline (not JSON); {_GIVE}") from error
    if not isinstance(found, dict) or found.get("format") != FORMAT_NAME:
        raise InputError(f"{path}: a JSON file, but no saved baseline; {_GIVE}")
    check_version(path, found.get("version"), known=FORMAT_VERSION, again=_AGAIN)


def _problem(document: _Document) -> str:
    """Return what is wrong with values of the right types; nothing if all is well."""
    for title in ("parameters", "initial"):
        values: dict[str, float] = getattr(document, title)
        if sorted(values) != sorted(NAMES):
            return f"{title} are not {', '.join(NAMES)}"
        # 0 is a bound that the search may reach, where the equation still holds: not for what divides.
        low = {name: math.ulp(0.0) if name in ("P_max", "k_B", "k_S") else 0.0 for name in NAMES}
        wrong = [name for name in NAMES if not low[name] <= values[name] < math.inf]
        if wrong:
            return f"{title}: {wrong[0]} is {values[wrong[0]]:g}"
    if [len(row) for row in document.covariance] != [len(QUANTITIES)] * len(QUANTITIES):
        return f"the covariance is not {len(QUANTITIES)} by {len(QUANTITIES)}"
    if set(document.scores) != set(Scores.__dataclass_fields__) or document.scores["num_steps"] is None:
        return "the scores are not those of a fit"
    if set(document.at_bound) - set(NAMES):
        return "at_bound names something else than parameters"
    if not document.region or any(
        not 1.0 - 1e-9 <= value < math.inf for pair in document.region for value in pair
    ):
        return "the region makes no sense"
    return ""


def _to_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else INFINITY
    return value


def _from_json(value: float | str | None) -> float:
    return math.nan if value is None else math.inf if value == INFINITY else float(value)
