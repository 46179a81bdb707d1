"""Kinds of steps that are scored apart."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from bayes_sched.arrays import Floats
from bayes_sched.errors import InputError

type Steps = pd.DataFrame | xr.Dataset

POSSIBLE = "possible"
"""Variable of a grid: False where fewer tokens than requests make no step. Predictions are NaN there."""


def steps_arrays(batch_size: ArrayLike, total_tokens: ArrayLike) -> xr.Dataset:
    """Return steps from two arrays.

    Parameters
    ----------
    batch_size, total_tokens : array-like
        Requests and tokens of each step; scalars and arrays of one dim, broadcast.

    Returns
    -------
    Dataset, dims (step,)
        ``batch_size`` and ``total_tokens``.

    Raises
    ------
    InputError
        The arrays do not broadcast to one dim, or a step is impossible.
    """
    try:
        arrays = np.broadcast_arrays(*(np.atleast_1d(_floats(a)) for a in (batch_size, total_tokens)))
    except ValueError as error:
        msg = f"batch_size and total_tokens do not go together ({error})"
        raise InputError(msg) from error
    if arrays[0].ndim != 1:
        msg = f"batch_size and total_tokens have {arrays[0].ndim} dims: give one, or an xarray.Dataset"
        raise InputError(msg)
    columns = zip(("batch_size", "total_tokens"), arrays, strict=True)
    steps = xr.Dataset({name: ("step", array.copy()) for name, array in columns})
    _check(steps)
    return steps.assign_coords(step=np.arange(steps.sizes["step"]))


def steps_grid(*, batch_size: ArrayLike, total_tokens: ArrayLike) -> xr.Dataset:
    """Return every combination of some batch sizes with some token counts.

    Parameters
    ----------
    batch_size, total_tokens : array-like
        Requests and tokens; scalars or arrays of one dim.

    Returns
    -------
    Dataset, dims (batch_size, total_tokens)
        Coordinates ``batch_size`` and ``total_tokens``, and ``possible``, which is False where there are
        fewer tokens than requests: predictions are NaN there.

    Raises
    ------
    InputError
        A value is below 1 or not a number.
    """
    axes = {
        "batch_size": np.atleast_1d(_floats(batch_size)),
        "total_tokens": np.atleast_1d(_floats(total_tokens)),
    }
    for name, axis in axes.items():
        if axis.ndim != 1:
            msg = f"{name} of a grid has {axis.ndim} dims: give one"
            raise InputError(msg)
    grid = xr.Dataset(coords=axes)
    grid[POSSIBLE] = grid["total_tokens"] >= grid["batch_size"]
    grid[POSSIBLE] = grid[POSSIBLE].transpose("batch_size", "total_tokens")
    _check(grid)
    return grid


def as_steps(steps: Steps, *, columns: Sequence[str] = ("batch_size", "total_tokens")) -> xr.Dataset:
    """Return the columns of a table of steps as a checked Dataset.

    Parameters
    ----------
    steps : DataFrame or Dataset
        A table with one row a step becomes dim ``step`` (0, 1, ...); a Dataset keeps its dims.
    columns : sequence of str
        What the model needs.

    Returns
    -------
    Dataset
        The columns as variables or coordinates, and ``possible`` where `steps` has it.

    Raises
    ------
    InputError
        A column is missing, there is no step, or a step is impossible: fewer than one request, fewer tokens
        than requests, or a value that is not a finite number.
    """
    if not isinstance(steps, pd.DataFrame | xr.Dataset):
        msg = (
            f"steps are a DataFrame or an xarray.Dataset, not {type(steps).__name__}: "
            "use steps_arrays or steps_grid for arrays and numbers"
        )
        raise InputError(msg)
    missing = [name for name in columns if name not in steps]
    if missing:
        msg = f"the steps have no {', '.join(missing)}; the model needs {', '.join(columns)}"
        raise InputError(msg)
    if isinstance(steps, pd.DataFrame):
        dataset = xr.Dataset({name: ("step", _floats(steps[name])) for name in columns})
        dataset = dataset.assign_coords(step=np.arange(len(steps)))
    else:
        keep = [*columns, *([POSSIBLE] if POSSIBLE in steps else [])]
        dataset = steps[keep]
    _check(dataset, columns=columns)
    return dataset


def _floats(values: ArrayLike) -> NDArray[np.float64]:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        msg = f"steps are made of numbers ({error})"
        raise InputError(msg) from error


def _check(steps: xr.Dataset, *, columns: Sequence[str] = ("batch_size", "total_tokens")) -> None:
    for name in columns:
        values = _floats(steps[name])
        if not values.size:
            raise InputError("there is no step to predict for")
        _refuse(~np.isfinite(values), values, f"{name} is not a finite number")
        if name in {"batch_size", "total_tokens"}:
            _refuse(values < 1, values, f"{name} is below 1")
        else:
            _refuse(values < 0, values, f"{name} is below 0")
    if POSSIBLE in steps:
        return
    batch_size, total_tokens = xr.broadcast(steps["batch_size"], steps["total_tokens"])
    is_wrong = (total_tokens < batch_size).to_numpy()
    if is_wrong.any():
        first = tuple(np.argwhere(is_wrong)[0])
        msg = (
            f"{total_tokens.to_numpy()[first]:g} tokens for {batch_size.to_numpy()[first]:g} requests "
            f"(step {_place(first)}; {int(is_wrong.sum()):,} of {is_wrong.size:,} steps): every request "
            "of a step has at least one token"
        )
        raise InputError(msg)


def _refuse(is_wrong: NDArray[np.bool_], values: NDArray[np.float64], what: str) -> None:
    if is_wrong.any():
        first = tuple(np.argwhere(is_wrong)[0])
        count = f"{int(is_wrong.sum()):,} of {is_wrong.size:,}"
        msg = f"{what}: {values[first]:g} (step {_place(first)}; {count} values)"
        raise InputError(msg)


def _place(index: tuple[int, ...]) -> str:
    return ", ".join(str(int(i)) for i in index)


REGIMES = {
    "all": "all held-out steps",
    "decode": "steps that only decode",
    "mixed": "steps that decode and prefill",
    "prefill": "steps that only prefill",
    "beyond": "steps with more tokens than any training step",
}
"""Names, and what they mean."""


def regime(steps: pd.DataFrame) -> pd.Series[str]:
    """Return ``decode``, ``mixed`` or ``prefill`` for each step.

    Where a trace does not tell which requests prefill, a step with as many tokens as requests decodes, and
    any other one counts as mixed.

    Parameters
    ----------
    steps : DataFrame
        ``num_prefill_reqs`` and ``num_decode_reqs``, or ``batch_size`` and ``total_tokens``.
    """
    if {"num_prefill_reqs", "num_decode_reqs"} <= set(steps):
        prefills = steps["num_prefill_reqs"].to_numpy() > 0
        decodes = steps["num_decode_reqs"].to_numpy() > 0
    else:
        prefills = (steps["total_tokens"] > steps["batch_size"]).to_numpy()
        decodes = np.ones(len(steps), dtype=bool)
    names = np.where(~prefills, "decode", np.where(decodes, "mixed", "prefill"))
    return pd.Series(names.tolist(), index=steps.index, name="regime")


def regime_masks(test: pd.DataFrame, *, max_train_tokens: float) -> dict[str, NDArray[np.bool_]]:
    """Return which held-out steps belong to each regime that has any, dims (row,).

    Parameters
    ----------
    test : DataFrame
    max_train_tokens : float
        Tokens of the largest training step.
    """
    names = regime(test).to_numpy()
    masks = {"all": np.ones(len(test), dtype=bool)}
    masks |= {name: names == name for name in ("decode", "mixed", "prefill")}
    masks["beyond"] = test["total_tokens"].to_numpy() > max_train_tokens
    return {name: mask for name, mask in masks.items() if mask.any()}


MAX_POINTS = 3000
"""More points than this add ink and no information to a figure."""
_SEED = 20240501


def sample_steps(steps: pd.DataFrame, max_rows: int = MAX_POINTS) -> pd.DataFrame:
    """Return at most `max_rows` steps, drawn at random and the same each time, in their order."""
    if len(steps) <= max_rows:
        return steps
    return steps.sample(max_rows, random_state=_SEED).sort_index()


def decode_only(steps: pd.DataFrame) -> pd.DataFrame:
    """Return the steps in which every request has exactly one token."""
    return steps[steps["batch_size"] == steps["total_tokens"]]


def log_grid(low: float, high: float, num: int) -> Floats:
    """Return distinct whole numbers from `low` to `high`, evenly spread on a logarithmic scale."""
    grid: Floats = np.unique(np.rint(np.geomspace(low, max(high, low), num))).astype(float)
    return grid
