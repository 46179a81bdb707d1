"""What became of promises to simulated servers: how many were broken, and what the others gave away."""

from __future__ import annotations

from typing import Final

import numpy as np
import pandas as pd

from bayes_sched.binomial import share_interval

INTERVAL: Final = 0.95
"""Of the share of broken promises."""

MAKERS: Final = {
    "promised": ("", "promised"),
    "median": ("median_", "posterior median"),
    "curve": ("curve_", "fitted mean"),
}
"""Who promises: by column, the prefix of its columns and its name. The promise itself, the posterior median
in place of a bound, and the single fitted curve of the mean."""

WHAT: Final = {"batch": "largest decode-only batch", "limit": "limit of a kind of steps"}


def with_promises(servers: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that hold a promise; a fit that failed with an error made none."""
    return servers[servers["promise"].notna()].reset_index(drop=True)


def broken_table(servers: pd.DataFrame, *, quantile: float) -> pd.DataFrame:
    """Return how many promises are broken: more steps are late, in truth, than the quantile allows.

    Parameters
    ----------
    servers : DataFrame
        Rows of :class:`~bayes_sched.promises.server_study.SimulatedServer`.
    quantile : float
        Promised.

    Returns
    -------
    DataFrame
        ``promise``, ``by``, ``servers``, ``promises``, ``nothing`` (how many of these are of no batch at all,
        which no step can break), ``broken`` (share of all), ``lower``, ``upper`` (its interval of probability
        :data:`INTERVAL`, which counts servers: promises of one server go together), and
        ``worst_exceedance``.
    """
    rows = []
    for kind, group in with_promises(servers).groupby("promise", sort=True):
        for column, (prefix, by) in MAKERS.items():
            given = group[group[column].notna()]
            late = given[f"{prefix}exceedance"].to_numpy(float)
            if not len(late):
                continue
            number, share = group["server"].nunique(), float((late > 1.0 - quantile).mean())
            lower, upper = share_interval(share * number, number, level=INTERVAL)
            rows.append(
                {
                    "promise": WHAT[str(kind)],
                    "by": by,
                    "servers": number,
                    "promises": len(late),
                    "nothing": int((given[column] == 0).sum()),
                    "broken": share,
                    "lower": float(lower),
                    "upper": float(upper),
                    "worst_exceedance": float(late.max()),
                }
            )
    return pd.DataFrame(rows)


def broken_by_step(servers: pd.DataFrame, *, quantile: float) -> pd.DataFrame:
    """Return :func:`broken_table` of the limits of each probed (B, S), of the promise itself.

    Returns
    -------
    DataFrame
        ``batch_size``, ``total_tokens``, ``promises``, ``broken``, ``lower``, ``upper``.
    """
    limits = servers[servers["promise"] == "limit"]
    rows: list[dict[str, float]] = []
    for _, group in limits.groupby(["batch_size", "total_tokens"]):
        b, s = group[["batch_size", "total_tokens"]].iloc[0]
        count = int((group["exceedance"] > 1.0 - quantile).sum())
        lower, upper = share_interval(count, len(group), level=INTERVAL)
        row = {"batch_size": int(b), "total_tokens": int(s), "promises": len(group)}
        rows.append(row | {"broken": count / len(group), "lower": float(lower), "upper": float(upper)})
    return pd.DataFrame(rows)


def given_away_table(servers: pd.DataFrame) -> pd.DataFrame:
    """Return what promises give away against what is truly possible.

    Returns
    -------
    DataFrame
        ``what``, ``by``, and over the promises ``mean``, ``median``, ``q90`` (nine in ten give away less) and
        ``worst`` of the share given away: of the batch, of the tokens/ms that it decodes, and how much larger
        than the true quantile a limit is. Negative where more was promised than is right.
    """
    batches, limits = (servers[servers["promise"] == kind] for kind in ("batch", "limit"))
    rows = []
    for column, (prefix, by) in MAKERS.items():
        shares = {
            "batch: 1 - B / true B": 1.0 - batches[column] / batches["true_best"],
            "throughput: 1 - rate / true rate": 1.0 - batches[f"{prefix}rate"] / batches["true_rate"],
            "limit: limit / true quantile - 1": limits[column] / limits["true_best"] - 1.0,
        }
        for what, values in shares.items():
            known = values.dropna().to_numpy(float)
            if len(known):
                rows.append({"what": what, "by": by} | _spread(known))
    return pd.DataFrame(rows).sort_values("what", kind="stable", ignore_index=True)


def _spread(values: np.ndarray) -> dict[str, float]:
    return {
        "mean": float(values.mean()),
        "median": float(np.median(values)),
        "q90": float(np.quantile(values, 0.9)),
        "worst": float(values.max()),
    }
