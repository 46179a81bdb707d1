"""What became of promises on held-out steps: predicted against realised shares of late steps."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from bayes_sched.binomial import share_interval
from bayes_sched.promises.trace_study import ALL

INTERVAL: Final = 0.9
"""Of the realised share of late steps."""
_RUN = ["trace", "split", "regime"]


def calibration_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return predicted and realised shares of late steps for each trace, split, regime and level of limits.

    Parameters
    ----------
    cells : DataFrame
        Rows of :meth:`~bayes_sched.promises.trace_study.TraceStudy.run_one`.

    Returns
    -------
    DataFrame
        ``trace``, ``split``, ``regime``, ``level`` (of the cells' limits), ``steps``, ``effective_steps``,
        ``predicted``, ``realised``, ``lower``, ``upper``: interval of probability :data:`INTERVAL` of the
        realised share.
    """
    return _realised(_of_regimes(cells, "limit"))[
        [*_RUN, "level", "steps", "effective_steps", "predicted", "realised", "lower", "upper"]
    ]


def pooled_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return :func:`calibration_table` of all traces together, each step counting once.

    Traces are independent, so that the variances of their numbers of late steps add up; ``effective_steps``
    are as many independent steps as have that variance, never more than there are.
    """
    keys, sums = ["split", "regime", "level"], ["steps", "predicted", "late", "variance"]
    chosen = _of_regimes(cells, "limit")
    chosen = chosen.assign(
        predicted=chosen["predicted"] * chosen["steps"],
        variance=_variance(chosen["steps"], chosen["late"]) * chosen["steps"] / chosen["effective_steps"],
    )
    total = chosen.groupby(keys, as_index=False)[sums].sum()
    total["predicted"] /= total["steps"]
    independent = _variance(total["steps"], total["late"])
    variance = np.maximum(total["variance"], independent)
    total["effective_steps"] = total["steps"] * np.where(variance > 0.0, independent / variance, 1.0)
    found = _realised(total)
    return found[[*keys, "steps", "effective_steps", "predicted", "realised", "lower", "upper"]]


def kept_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return how many held-out steps exceed the limit promised for their (B, S).

    Returns
    -------
    DataFrame
        ``trace``, ``split``, ``regime``, ``steps``, ``late`` (share), ``lower``, ``upper``; and of promises
        that the fitted steps bear out, ``borne_out`` (share of the steps), ``borne_out_late``,
        ``borne_out_lower``, ``borne_out_upper``.
    """
    made = _realised(_of_regimes(cells, "promise"))[[*_RUN, "steps", "realised", "lower", "upper"]]
    made = made.rename(columns={"realised": "late"})
    borne = _realised(_of_regimes(cells, "borne out"))
    borne = borne[[*_RUN, "steps", "realised", "lower", "upper"]].rename(
        columns={
            "steps": "borne_out",
            "realised": "borne_out_late",
            "lower": "borne_out_lower",
            "upper": "borne_out_upper",
        }
    )
    both = made.merge(borne, on=_RUN, how="left")
    return both.assign(borne_out=both["borne_out"].fillna(0) / both["steps"])


def cell_table(cells: pd.DataFrame) -> pd.DataFrame:
    """Return how many cells agree with what was predicted for them.

    Returns
    -------
    DataFrame
        ``split``, ``regime``, ``level``, ``cells``, and ``agree``: the share whose realised share's interval
        of probability :data:`INTERVAL` (all steps taken as independent) holds the predicted one.
    """
    chosen = cells[(cells["cell"] != ALL) & (cells["kind"] == "limit")]
    found = _realised(chosen.assign(effective_steps=chosen["steps"]))
    agree = (found["lower"] <= found["predicted"]) & (found["predicted"] <= found["upper"])
    groups = found.assign(agree=agree).groupby(["split", "regime", "level"])["agree"]
    return groups.agg(cells="size", agree="mean").reset_index()


def _variance(steps: pd.Series, late: pd.Series) -> pd.Series:
    """Return the variance of the number of late ones among independent steps."""
    return late * (1.0 - late / steps)


def _of_regimes(cells: pd.DataFrame, kind: str) -> pd.DataFrame:
    return cells[(cells["cell"] == ALL) & (cells["kind"] == kind)].reset_index(drop=True)


def _realised(rows: pd.DataFrame) -> pd.DataFrame:
    share = rows["late"] / rows["steps"]
    effective = rows["effective_steps"].to_numpy(float)
    lower, upper = share_interval(share.to_numpy(float) * effective, effective, level=INTERVAL)
    return rows.assign(realised=share, lower=lower, upper=upper)
