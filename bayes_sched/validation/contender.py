"""What competes: whatever learns from some steps and predicts others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import pandas as pd

from bayes_sched.validation.forecast import Forecast

type Predict = Callable[[pd.DataFrame], Forecast]
"""Steps in, forecast out."""


class Contender(Protocol):
    """Whatever learns from some steps and predicts others.

    A frozen dataclass is the easy way to write one: its ``repr`` names everything that its numbers depend
    on, by which an interrupted study knows what is done::

        @dataclass(frozen=True)
        class Mean:
            name: str = "mean"
            columns: tuple[str, ...] = ()

            def fit(self, train, *, seed):
                noise = scipy.stats.norm(train["latency_ms"].mean(), train["latency_ms"].std())
                return lambda steps: from_distribution(noise, steps)

    Attributes
    ----------
    name : str
    columns : tuple of str
        Columns of the steps that it cannot do without.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def columns(self) -> tuple[str, ...]: ...  # noqa: D102

    def fit(self, train: pd.DataFrame, *, seed: int) -> Predict:
        """Learn from steps; return what predicts others.

        Parameters
        ----------
        train : DataFrame
            One row a step: ``latency_ms`` and `columns`.
        seed : int
            Of everything random.
        """
        ...
