"""Kinds of steps that are scored apart."""

from __future__ import annotations

import numpy as np
import pandas as pd
from numpy.typing import NDArray

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
