"""Tables of scheduler steps: making and checking them, and their regimes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike

from bayes_sched.arrays import Bools, Floats
from bayes_sched.errors import InputError

type Steps = pd.DataFrame | xr.Dataset

SIZES = ("batch_size", "total_tokens")
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
        raise InputError(f"batch_size and total_tokens do not go together ({error})") from error
    if arrays[0].ndim != 1:
        raise InputError(
            f"batch_size and total_tokens have {arrays[0].ndim} dims: give one, or an xarray.Dataset"
        )
    steps = xr.Dataset({name: ("step", array.copy()) for name, array in zip(SIZES, arrays, strict=True)})
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
        name: np.atleast_1d(_floats(axis))
        for name, axis in zip(SIZES, (batch_size, total_tokens), strict=True)
    }
    for name, axis in axes.items():
        if axis.ndim != 1:
            raise InputError(f"{name} of a grid has {axis.ndim} dims: give one")
    grid = xr.Dataset(coords=axes)
    grid[POSSIBLE] = (grid["total_tokens"] >= grid["batch_size"]).transpose(*SIZES)
    _check(grid)
    return grid


def as_steps(steps: Steps, *, columns: Sequence[str] = SIZES) -> xr.Dataset:
    """Return the columns of a table of steps, and ``possible`` where it has it, as a checked Dataset.

    A table with one row a step becomes dim ``step`` (0, 1, ...); a Dataset keeps its dims.

    Raises
    ------
    InputError
        A column is missing, there is no step, or a step is impossible: fewer than one request, fewer tokens
        than requests, or a value that is not a finite number.
    """
    if not isinstance(steps, pd.DataFrame | xr.Dataset):
        raise InputError(
            f"steps are a DataFrame or an xarray.Dataset, not {type(steps).__name__}: "
            "use steps_arrays or steps_grid for arrays and numbers"
        )
    missing = [name for name in columns if name not in steps]
    if missing:
        raise InputError(f"the steps have no {', '.join(missing)}; the model needs {', '.join(columns)}")
    if isinstance(steps, pd.DataFrame):
        dataset = xr.Dataset({name: ("step", _floats(steps[name])) for name in columns})
        dataset = dataset.assign_coords(step=np.arange(len(steps)))
    else:
        dataset = steps[[*columns, *([POSSIBLE] if POSSIBLE in steps else [])]]
    _check(dataset, columns=columns)
    return dataset


def _floats(values: ArrayLike) -> Floats:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise InputError(f"steps are made of numbers ({error})") from error


def _check(steps: xr.Dataset, *, columns: Sequence[str] = SIZES) -> None:
    for name in columns:
        values = _floats(steps[name])
        if not values.size:
            raise InputError("there is no step to predict for")
        least = 1 if name in SIZES else 0
        for wrong, what in (
            (~np.isfinite(values), "not a finite number"),
            (values < least, f"below {least}"),
        ):
            if wrong.any():
                first, count = _first(wrong), f"{int(wrong.sum()):,} of {wrong.size:,}"
                raise InputError(
                    f"{name} is {what}: {values[first]:g} (step {_place(first)}; {count} values)"
                )
    if POSSIBLE in steps:
        return
    batch_size, total_tokens = (array.to_numpy() for array in xr.broadcast(*(steps[name] for name in SIZES)))
    wrong = total_tokens < batch_size
    if wrong.any():
        first = _first(wrong)
        raise InputError(
            f"{total_tokens[first]:g} tokens for {batch_size[first]:g} requests "
            f"(step {_place(first)}; {int(wrong.sum()):,} of {wrong.size:,} steps): every request "
            "of a step has at least one token"
        )


def _first(wrong: Bools) -> tuple[int, ...]:
    return tuple(np.argwhere(wrong)[0])


def _place(index: tuple[int, ...]) -> str:
    return ", ".join(str(int(i)) for i in index)


REGIMES = {
    "all": "all held-out steps",
    "decode": "steps that only decode",
    "mixed": "steps that decode and prefill",
    "prefill": "steps that only prefill",
    "beyond": "steps with more tokens than any training step",
}
"""Kinds of steps that are scored apart: names, and what they mean."""


def regime(steps: pd.DataFrame) -> pd.Series[str]:
    """Return ``decode``, ``mixed`` or ``prefill`` for each step.

    Where a trace does not tell how many requests prefill and decode, a step with as many tokens as requests
    decodes, and any other one counts as mixed.
    """
    if {"num_prefill_reqs", "num_decode_reqs"} <= set(steps):
        prefills = steps["num_prefill_reqs"].to_numpy() > 0
        decodes = steps["num_decode_reqs"].to_numpy() > 0
    else:
        prefills = (steps["total_tokens"] > steps["batch_size"]).to_numpy()
        decodes = np.ones(len(steps), dtype=bool)
    names = np.where(~prefills, "decode", np.where(decodes, "mixed", "prefill"))
    return pd.Series(names.tolist(), index=steps.index, name="regime")


def regime_masks(test: pd.DataFrame, *, max_train_tokens: float) -> dict[str, Bools]:
    """Return which held-out steps belong to each regime that has any, dims (row,)."""
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
