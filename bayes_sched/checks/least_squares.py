r"""The documented estimator: fit, predict, plot, save.

.. math::

    T(B, S) = \tau_0 + \frac{w_0 + w_1 S}{P_{max} (1 - e^{-k_B B}) (1 - e^{-k_S S})} + \tau_B B + \tau_S S

with the eight positive parameters (:data:`bayes_sched.model.equation.PARAMETERS`) that make the sum of
squared residuals least, or Huber's sum, in which outliers count less.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self

import msgspec
import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from bayes_sched.arrays import Floats
from bayes_sched.checks.optimization import (
    INFINITY,
    NAMES,
    NOWHERE,
    QUANTITIES,
    RATIOS,
    Solution,
    possible_steps,
    solve,
    with_ratios,
)
from bayes_sched.checks.physics import PhysicalChecks, check_point_physics
from bayes_sched.checks.scores import ResidualAnalysis, Scores, analyse_residuals
from bayes_sched.errors import InputError
from bayes_sched.files import check_version, file_content, whole_file
from bayes_sched.format import percent
from bayes_sched.model.equation import PARAMETERS, Parameter, latency_ms
from bayes_sched.region import LEAST, Region, region_of
from bayes_sched.steps import as_steps

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FORMAT_NAME = "bayes-sched least-squares baseline"
FORMAT_VERSION = 1
"""Raised whenever a reader of the version before could misread a file."""
LOSSES = ("linear", "huber")

_FILE = "baseline.json"
_AGAIN = "fit the steps again"
_GIVE = "give a file written by ThroughputSaturationModel.save"
_RATIO_ROWS = (
    Parameter("a_0", "a_0", "saturated cost of the fixed work, w_0 / P_max", "ms", math.nan, math.nan),
    Parameter("a_1", "a_1", "saturated cost of a token's work, w_1 / P_max", "ms/token", math.nan, math.nan),
)

_TABLE_COLUMNS = ("name", "meaning", "unit", "value", "standard_error", "at_bound", "low", "high", "verdict")

type Loss = Literal["linear", "huber"]


class ThroughputSaturationModel:
    """The saturation equation by least squares, with the manners of a scikit-learn estimator.

    >>> model = ThroughputSaturationModel(loss="huber").fit(steps)  # doctest: +SKIP
    >>> model.predict(batch_size=16, total_tokens=512)  # doctest: +SKIP

    Parameters
    ----------
    loss : {"linear", "huber"}
        ``linear`` squares every residual. ``huber`` squares those below 1.345 robust standard deviations,
        which the fit finds out itself, and counts the larger ones linearly: a few slow steps matter less.
    min_latency_ms, max_latency_ms : float
        Steps below the one and above the other are left out of a fit.

    Attributes
    ----------
    parameters_ : dict of str to float
        The eight parameters, raw units. P_max, w_0 and w_1 are known only by their ratios.
    ratios_ : dict of str to float
        ``a_0`` = w_0/P_max (ms) and ``a_1`` = w_1/P_max (ms/token).
    standard_errors_ : dict of str to float
        Of parameters and ratios: NaN at a bound, infinite where the steps do not identify the quantity.
    covariance_ : DataFrame
        Of parameters and ratios, with the same marks; see :mod:`bayes_sched.checks.optimization`.
    at_bound_ : dict of str to str
        Parameters that sit at a bound, and at which: ``0``, ``infinity`` (a saturation rate: every step seen
        is saturated), ``undetermined`` (the fit does not depend on it).
    initial_ : dict of str to float
        Where the search started.
    huber_ms_ : float or None
        Residuals beyond this count linearly, ms.
    metrics_ : Scores
        On the steps of the fit, without those that were left out.
    region_ : Region
        The (B, S) that those steps cover.
    warnings_ : tuple of str
        What a person should know.

    Raises
    ------
    InputError
        The loss is unknown; later, what is asked before a fit, and steps that are idle or impossible.
    """

    parameters_: dict[str, float]
    ratios_: dict[str, float]
    standard_errors_: dict[str, float]
    covariance_: pd.DataFrame
    at_bound_: dict[str, str]
    initial_: dict[str, float]
    huber_ms_: float | None
    metrics_: Scores
    region_: Region
    warnings_: tuple[str, ...]

    def __init__(
        self, *, loss: Loss = "linear", min_latency_ms: float = 1.0, max_latency_ms: float = 300.0
    ) -> None:
        if loss not in LOSSES:
            raise InputError(f"the loss {loss!r} is unknown: give {' or '.join(LOSSES)}")
        self.loss: Loss = loss
        self.min_latency_ms = min_latency_ms
        self.max_latency_ms = max_latency_ms
        self._solution: Solution | None = None

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.get_params().items())
        return f"{type(self).__name__}({settings})"

    def get_params(self, deep: bool = True) -> dict[str, Any]:
        """Return what the estimator was made with, as scikit-learn's ``clone`` asks."""
        return {name: getattr(self, name) for name in ("loss", "min_latency_ms", "max_latency_ms")}

    def fit(self, df: pd.DataFrame) -> Self:
        """Fit the equation to steps.

        Parameters
        ----------
        df : DataFrame
            One row a step: ``batch_size`` (requests), ``total_tokens``, ``latency_ms`` (ms). Idle steps, and
            those outside the limits of the latency, are left out.

        Raises
        ------
        InputError
            A column is missing, a value is negative or no number, too few steps are left, or the search
            does not end.
        """
        options = self.get_params()
        self._adopt(solve(df, huber=options.pop("loss") == "huber", **options))
        return self

    def predict(self, batch_size: ArrayLike = 16, total_tokens: ArrayLike = 512) -> float | Floats:
        """Return the latency of steps.

        Parameters
        ----------
        batch_size, total_tokens : float or array-like
            Requests and tokens, at least one token a request; broadcast against each other.

        Returns
        -------
        float or ndarray, shape of both, broadcast
            ms.
        """
        parameters = self._fitted().parameters
        try:
            arrays = np.broadcast_arrays(*(np.asarray(a, dtype=float) for a in (batch_size, total_tokens)))
        except (TypeError, ValueError) as error:
            raise InputError(f"batch_size and total_tokens do not go together ({error})") from error
        flat = zip(("batch_size", "total_tokens"), arrays, strict=True)
        as_steps(xr.Dataset({name: ("step", array.ravel()) for name, array in flat}))
        result = latency_ms(*arrays, **parameters)
        return np.asarray(result, dtype=float) if arrays[0].ndim else float(result)

    def residuals(self, df: pd.DataFrame) -> ResidualAnalysis:
        """Return what the model leaves unexplained of three steps or more, in their order."""
        steps, predicted_ms = self._compared(df)
        if len(steps) < 3:
            raise InputError(f"{len(steps)} steps are too few for an analysis of residuals: give at least 3")
        return analyse_residuals(steps, predicted_ms)

    def score(self, df: pd.DataFrame) -> float:
        """Return R² on steps, none of which is left out."""
        return self.metrics(df).r2

    def metrics(self, df: pd.DataFrame) -> Scores:
        """Return R², RMSE, MAE, MAPE and bias on steps, none of which is left out."""
        steps, predicted_ms = self._compared(df)
        return Scores.of(steps["latency_ms"].to_numpy(), predicted_ms)

    def parameter_table(self) -> pd.DataFrame:
        """Return what is known of each parameter and ratio.

        Returns
        -------
        DataFrame
            One row a quantity: ``name``, ``meaning``, ``unit``, ``value``, ``standard_error``, ``at_bound``
            (empty where it is not), ``low`` and ``high`` (documented range; NaN for ratios), ``verdict``.
        """
        self._fitted()
        values, errors = self.parameters_ | self.ratios_, self.standard_errors_
        shown = (*PARAMETERS, *_RATIO_ROWS)
        known = {key: [getattr(p, key) for p in shown] for key in ("name", "meaning", "unit", "low", "high")}
        table = pd.DataFrame(known | {"value": [values[p.name] for p in shown]})
        return table.assign(
            standard_error=[errors[p.name] for p in shown],
            at_bound=[self.at_bound_.get(p.name, "") for p in shown],
            verdict=[_verdict(p, values[p.name], errors[p.name], self.at_bound_) for p in shown],
        )[[*_TABLE_COLUMNS]]

    def physical_checks(self) -> PhysicalChecks:
        """Return whether the fit makes sense as physics: signs, ranges, saturation, behaviour far out."""
        solution = self._fitted()
        return check_point_physics(solution.parameters, region=solution.region, scale_is_free=True)

    def plot_contour(
        self, batch_range: tuple[float, float] = (1, 64), token_range: tuple[float, float] = (1, 2048)
    ) -> Figure:
        """Draw contours of the latency over requests and tokens.

        Parameters
        ----------
        batch_range, token_range : tuple of float
            From and to, at least 1.

        Raises
        ------
        InputError
            The model is not fitted, or a range makes no sense.
        """
        solution = self._fitted()
        for name, (low, high) in {"batch_range": batch_range, "token_range": token_range}.items():
            if not 1 <= low < high < np.inf:
                raise InputError(f"{name} is {low:g} to {high:g}: give two numbers, 1 or more, rising")
        if batch_range[0] >= token_range[1]:
            raise InputError("no step is possible: batch_range begins where token_range ends, or above")
        from bayes_sched.reports.plots.fit import point_contours  # noqa: PLC0415, imports matplotlib

        return point_contours(
            lambda batch_size, total_tokens: latency_ms(batch_size, total_tokens, **self.parameters_),
            region=solution.region,
            batch_range=batch_range,
            token_range=token_range,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the fit to a JSON file, atomically; an existing file is replaced."""
        _write(Path(path), self._fitted(), _Settings(**self.get_params()))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read a fit written by :meth:`save`; it predicts the same to the last digit.

        Raises
        ------
        InputError
            The file is missing, no such fit, damaged or of a later format.
        """
        solution, settings = _read(Path(path))
        model = cls(**msgspec.to_builtins(settings))
        model._adopt(solution)
        return model

    def _adopt(self, solution: Solution) -> None:
        self._solution = solution
        quantities = with_ratios(solution.parameters)
        errors = np.sqrt(np.diag(solution.covariance.to_numpy()))
        self.parameters_ = {name: quantities[name] for name in NAMES}
        self.ratios_ = {name: quantities[name] for name in RATIOS}
        self.standard_errors_ = dict(zip(QUANTITIES, errors.tolist(), strict=True))
        self.metrics_ = solution.scores
        for name in ("covariance", "at_bound", "initial", "huber_ms", "region", "warnings"):
            setattr(self, f"{name}_", getattr(solution, name))

    def _fitted(self) -> Solution:
        if self._solution is None:
            raise InputError("the model is not fitted: call fit(df) first, or load a saved one")
        return self._solution

    def _compared(self, df: pd.DataFrame) -> tuple[pd.DataFrame, Floats]:
        parameters = self._fitted().parameters
        steps = possible_steps(df)
        sizes = (steps[name].to_numpy() for name in ("batch_size", "total_tokens"))
        return steps, latency_ms(*sizes, **parameters)


def _verdict(parameter: Parameter, value: float, error: float, at_bound: dict[str, str]) -> str:
    bound = at_bound.get(RATIOS.get(parameter.name, parameter.name)) or (
        at_bound.get("P_max") if parameter.name in RATIOS else None
    )
    if bound == NOWHERE:
        return "the fit does not depend on it"
    if bound == INFINITY:
        return "at infinity: every step seen is saturated"
    if bound:
        return "at its bound 0"
    if math.isinf(error):
        is_scale = parameter.name in ("P_max", *RATIOS.values())
        return "only its ratio is known (a_0, a_1)" if is_scale else "the steps do not identify it"
    known = f"known to {percent(error / value, 1)}" if error < value else "its standard error exceeds it"
    if parameter.low <= value <= parameter.high or parameter.name in RATIOS:
        return known
    return f"{known}; outside the documented {parameter.low:g} - {parameter.high:g} {parameter.unit}"


class _Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    loss: Loss
    min_latency_ms: float
    max_latency_ms: float


class _Document(msgspec.Struct, frozen=True):
    """The file. Numbers that JSON lacks: NaN as null, infinity as text."""

    format: str
    version: int
    settings: _Settings
    parameters: dict[str, float]
    initial: dict[str, float]
    huber_ms: float | None
    num_evaluations: int
    at_bound: dict[str, Literal["0", "infinity", "undetermined"]]
    covariance: list[list[float | Literal["infinity"] | None]]
    scores: dict[str, float | None]
    region: list[tuple[float, ...]]
    warnings: list[str]


_SHARED = ("parameters", "initial", "huber_ms", "num_evaluations", "at_bound")


def _write(path: Path, solution: Solution, settings: _Settings) -> None:
    if path.is_dir():
        raise InputError(f"{path} is a folder: give the name of a file in it, such as {path / _FILE}")
    document = _Document(
        format=FORMAT_NAME,
        version=FORMAT_VERSION,
        settings=settings,
        covariance=[[_to_json(value) for value in row] for row in solution.covariance.to_numpy().tolist()],
        scores={name: _to_json(value) for name, value in asdict(solution.scores).items()},
        region=[(b, s, int(count)) for b, s, count in solution.region.cells.tolist()],
        warnings=list(solution.warnings),
        **{name: getattr(solution, name) for name in _SHARED},
    )
    text = json.dumps(msgspec.to_builtins(document), indent=1, ensure_ascii=False, allow_nan=False)
    with whole_file(path, what="the fit") as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")


def _read(path: Path) -> tuple[Solution, _Settings]:
    content = file_content(path, such_as=_FILE, missing=_GIVE, again=_AGAIN)
    try:
        _check_format(path, content)
        document = msgspec.json.decode(content, type=_Document)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: the file is damaged ({error}); {_AGAIN}") from error
    problem = _problem(document)
    if problem:
        raise InputError(f"{path}: the file is damaged ({problem}); {_AGAIN}")
    table = np.array([[_from_json(value) for value in row] for row in document.covariance])
    scores: dict[str, Any] = {name: _from_json(value) for name, value in document.scores.items()}
    solution = Solution(
        covariance=pd.DataFrame(table, index=list(QUANTITIES), columns=list(QUANTITIES)),
        scores=Scores(**(scores | {"num_steps": int(scores["num_steps"])})),
        region=region_of(*np.array([(*cell, LEAST)[:3] for cell in document.region]).T),
        warnings=tuple(document.warnings),
        **{name: getattr(document, name) for name in _SHARED},
    )
    return solution, document.settings


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
    if not document.region or not all(
        len(cell) in (2, 3) and all(1.0 - 1e-9 <= value < math.inf for value in cell)
        for cell in document.region
    ):
        return "the region makes no sense"
    return ""


def _to_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else INFINITY
    return value


def _from_json(value: float | str | None) -> float:
    return math.nan if value is None else math.inf if value == INFINITY else float(value)
