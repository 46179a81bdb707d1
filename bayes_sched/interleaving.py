"""Draws of the parts of a posterior put together, each part in proportion to its mass."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from bayes_sched.mixture import Floats
from bayes_sched.nuts import SAMPLE_STATS


def allocate(masses: Floats, draws: int) -> NDArray[np.int64]:
    """Return the draws a chain gets of each part, dims (chain, part): largest remainders, `draws` in all."""
    exact = masses / masses.sum(axis=1, keepdims=True) * draws
    counts = np.floor(exact).astype(np.int64)
    for row, remainder in zip(counts, exact - counts, strict=True):
        row[np.argsort(-remainder)[: draws - row.sum()]] += 1
    return counts


def interleave(parts: list[tuple[Floats, xr.Dataset]], counts: Any) -> tuple[Floats, xr.Dataset]:
    """Merge the parts of each chain evenly, each in its own order, so that autocorrelation stays visible."""
    chains = []
    for chain, count in enumerate(counts):
        position = np.concatenate([(np.arange(n) + 0.5) / n for n in count if n])
        part = np.repeat(np.arange(len(parts)), count)
        order = np.argsort(position, kind="stable")
        x = np.concatenate([values[chain, :n] for (values, _), n in zip(parts, count, strict=True)])[order]
        stats = {
            name: np.concatenate(
                [stats[name].to_numpy()[chain, :n] for (_, stats), n in zip(parts, count, strict=True)]
            )[order]
            for name in SAMPLE_STATS
        }
        chains.append((x, {**stats, "part": part[order]}))
    names = [*SAMPLE_STATS, "part"]
    draws = len(chains[0][0])
    merged = xr.Dataset(
        {name: (("chain", "draw"), np.stack([stats[name] for _, stats in chains])) for name in names},
        coords={"chain": np.arange(len(chains)), "draw": np.arange(draws)},
    )
    return np.stack([x for x, _ in chains]), merged
