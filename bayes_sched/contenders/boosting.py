"""Gradient-boosted quantile regression: the strongest practical alternative where steps are plenty."""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.scoring import LEVELS, Floats
from bayes_sched.validation.contender import Predict
from bayes_sched.validation.forecast import from_quantiles

_STEP = ("batch_size", "total_tokens")


def has_lightgbm() -> bool:
    """Return whether LightGBM is installed; it is an optional dependency (``bayes-sched[validate]``)."""
    return find_spec("lightgbm") is not None


@dataclass(frozen=True)
class LightGBM:
    """One boosted model for each quantile level; crossing quantiles are sorted.

    Attributes
    ----------
    name : str
    columns : tuple of str
        Features it cannot do without.
    optional : tuple of str
        Features that are used where the steps hold them.
    num_trees : int
    learning_rate : float
    leaf_share : float
        Of the training steps that a leaf holds at least, between 2 steps and 20: where steps are few, the 20
        that LightGBM asks for leave no room for a tree, and it would lose for want of one setting.
    """

    name: str = "lightgbm"
    columns: tuple[str, ...] = _STEP
    optional: tuple[str, ...] = ()
    num_trees: int = 200
    learning_rate: float = 0.1
    leaf_share: float = 0.025

    def fit(self, train: pd.DataFrame, *, seed: int) -> Predict:
        """Train a booster for each level."""
        lightgbm: Any = import_module("lightgbm")
        features = [*self.columns, *(name for name in self.optional if name in train)]
        settings = {
            "objective": "quantile",
            "learning_rate": self.learning_rate,
            "num_leaves": 31,
            "min_data_in_leaf": int(np.clip(self.leaf_share * len(train), 2, 20)),
            "min_data_in_bin": 1,
            "seed": seed,
            "deterministic": True,
            "num_threads": 1,
            "verbosity": -1,
        }

        def values(steps: pd.DataFrame) -> Floats:
            return steps[features].to_numpy(np.float64)

        # Binned once for all levels; the levels differ in nothing but their loss.
        data = lightgbm.Dataset(
            values(train),
            label=train["latency_ms"].to_numpy(np.float64),
            params=settings,
            free_raw_data=False,
        )
        boosters = [
            lightgbm.train({**settings, "alpha": float(level)}, data, num_boost_round=self.num_trees)
            for level in LEVELS
        ]

        def predict(steps: pd.DataFrame) -> Any:
            crossing = np.column_stack([b.predict(values(steps), num_threads=1) for b in boosters])
            return from_quantiles(np.sort(np.maximum(crossing, 0.0), axis=1), steps)

        return predict
