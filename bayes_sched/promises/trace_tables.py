"""What became of promises on held-out steps: predicted against realised shares of late steps."""

from __future__ import annotations

from typing import Final

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
    """Return :func:`calibration_table` of all traces together, each step counting once."""
    chosen = _of_regimes(cells, "limit")
    chosen = chosen.assign(predicted=chosen["predicted"] * chosen["steps"])
    sums = ["steps", "effective_steps", "predicted", "late"]
    total = chosen.groupby(["split", "regime", "level"], as_index=False)[sums].sum()
    total["predicted"] /= total["steps"]
    found = _realised(total.sort_values(["split", "regime", "level"], ignore_index=True))
    return found.drop(columns="late")


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


def _of_regimes(cells: pd.DataFrame, kind: str) -> pd.DataFrame:
    return cells[(cells["cell"] == ALL) & (cells["kind"] == kind)].reset_index(drop=True)


def _realised(rows: pd.DataFrame) -> pd.DataFrame:
    share = rows["late"] / rows["steps"]
    effective = rows["effective_steps"].to_numpy(float)
    lower, upper = share_interval(share.to_numpy(float) * effective, effective, level=INTERVAL)
    return rows.assign(realised=share, lower=lower, upper=upper)
