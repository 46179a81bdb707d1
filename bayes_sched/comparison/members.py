"""The servers of a comparison: their fits, labels and prices, and in what they differ besides the GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import pandas as pd
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from bayes_sched.arrays import Floats
from bayes_sched.comparison.verdicts import Servers
from bayes_sched.errors import InputError
from bayes_sched.format import listed, percent
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.steps import POSSIBLE, steps_grid

MIN_STEPS = 20
"""A median of at least so many observed steps is compared with the equation."""
_SHARE = 0.9


def misfit_of(fit: FittedModel) -> float | None:
    """Return by how much the equation misses the observed medians: nine in ten (B, S) by less.

    Parameters
    ----------
    fit : FittedModel

    Returns
    -------
    float or None
        A share of the latency; None where no (B, S) was seen :data:`MIN_STEPS` times.
    """
    cells = cell_table(fit).assign(median_ms=fit.cells["median_ms"].to_numpy())
    often = cells[cells["count"] >= MIN_STEPS]
    if often.empty:
        return None
    predicted = fit.quantile(often[["batch_size", "total_tokens"]], 0.5).to_numpy()
    return float(np.quantile(np.abs(often["median_ms"].to_numpy() / predicted - 1.0), _SHARE))


def misfit_warnings(members: Sequence[Member], *, rope: float) -> list[str]:
    """Return a sentence for each server whose equation is off by more than counts as equal."""
    found = []
    for member in members:
        misfit = misfit_of(member.fit)
        if misfit is not None and misfit > rope:
            found.append(
                f"{member.label}: the equation misses one in ten of the observed medians by more than "
                f"{percent(misfit, 1)}, and no interval here contains that: take ratios that are as near to "
                "the region of practical equivalence as undecided"
            )
    return found


NUM_BATCH_SIZES, NUM_TOKENS = 14, 20
"""Points of the grid along each axis, unless told otherwise."""
_NUM_ADDED = 8
NEAR = 0.25
"""Steps whose log B and log S are within this of another step's are like it."""

MEDIAN_DECODE, LARGEST_DECODE, FULL_STEP = "median decode step", "largest decode step", "largest step"


def shared_grid(
    servers: Servers, *, batch_size: ArrayLike | None = None, total_tokens: ArrayLike | None = None
) -> xr.Dataset:
    """Return a grid of steps, logarithmic over the range of all traces unless given.

    Parameters
    ----------
    servers : Servers
    batch_size, total_tokens : array-like, optional
        Requests and tokens of the grid.

    Returns
    -------
    Dataset, dims (batch_size, total_tokens)
        ``possible``, ``in_region`` (gpu, batch_size, total_tokens), ``extrapolation``: not in the region of
        every trace, and ``fewest_like``: steps like it in the trace that has the fewest.

    Raises
    ------
    InputError
        No step lies in the regions of all traces.
    """
    shared = shared_cells(servers)
    tokens = np.concatenate([fit.cells["total_tokens"].to_numpy() for fit in servers.fits])
    requests = np.concatenate([fit.cells["batch_size"].to_numpy() for fit in servers.fits])
    b = _log_points(requests, NUM_BATCH_SIZES) if batch_size is None else np.asarray(batch_size, float)
    s = (
        np.union1d(_log_points(tokens, NUM_TOKENS), b)
        if total_tokens is None
        else np.asarray(total_tokens, float)
    )
    grid = marked(servers, steps_grid(batch_size=b, total_tokens=s))
    if not _is_any_shared(grid) and not shared.empty and batch_size is None and total_tokens is None:
        few = shared.iloc[np.unique(np.linspace(0, len(shared) - 1, _NUM_ADDED).astype(int))]
        added = steps_grid(
            batch_size=np.union1d(b, few["batch_size"]), total_tokens=np.union1d(s, few["total_tokens"])
        )
        grid = marked(servers, added)
    if not _is_any_shared(grid):
        texts = [
            f"{label}: {fit.region.text}" for label, fit in zip(servers.labels, servers.fits, strict=True)
        ]
        raise InputError(
            f"no step lies where all traces have data, there is nothing to compare. {' '.join(texts)}"
        )
    return grid


def marked(servers: Servers, steps: xr.Dataset) -> xr.Dataset:
    """Return steps with what the traces know of them.

    Returns
    -------
    Dataset
        `steps` with ``in_region`` (also dim gpu), ``extrapolation``: possible, but not in the region of every
        trace, and ``fewest_like``: steps like it in the trace that has the fewest.
    """
    in_region = servers.in_regions(steps).reset_coords(drop=True)
    b, s = xr.broadcast(steps["batch_size"], steps["total_tokens"])
    fewest = np.min([like_steps(fit, b.to_numpy(), s.to_numpy()) for fit in servers.fits], axis=0)
    is_possible = steps.get(POSSIBLE, True)
    return steps.assign(
        in_region=in_region.assign_coords(gpu=list(servers.labels)),
        extrapolation=~in_region.all("gpu") & is_possible,
        fewest_like=b.copy(data=fewest).reset_coords(drop=True),
    )


def _is_any_shared(grid: xr.Dataset) -> bool:
    return bool(grid["in_region"].all("gpu").any())


def _log_points(values: NDArray[np.generic], num: int) -> Floats:
    """Return whole numbers over the range of the values, evenly spread on a logarithmic scale."""
    points: Floats = np.unique(np.rint(np.geomspace(float(values.min()), float(values.max()), num)))
    return points


def shared_cells(servers: Servers) -> pd.DataFrame:
    """Return the seen (B, S) that the regions of all traces cover.

    Returns
    -------
    DataFrame
        ``batch_size``, ``total_tokens``, ``count``: steps in all traces together, and ``weight``: their
        share, every trace counting alike.
    """
    tables = [cell_table(fit) for fit in servers.fits]
    seen = pd.concat([table.assign(weight=table["count"] / table["count"].sum()) for table in tables])
    cells = seen.groupby(["batch_size", "total_tokens"], as_index=False)[["count", "weight"]].sum()
    is_shared = servers.in_regions(cells).all("gpu").to_numpy()
    return cells[is_shared].reset_index(drop=True)


def cell_table(fit: FittedModel) -> pd.DataFrame:
    """Return the seen (B, S) of a fit and how many steps each holds."""
    names = ("batch_size", "total_tokens", "count")
    return pd.DataFrame({name: fit.cells[name].to_numpy() for name in names})


def typical_shared_steps(shared: pd.DataFrame) -> pd.DataFrame:
    """Return a few steps that a person knows, out of those where all traces have data.

    Parameters
    ----------
    shared : DataFrame
        Of :func:`shared_cells`.

    Returns
    -------
    DataFrame
        ``step`` (in words), ``batch_size``, ``total_tokens``; empty if no seen step is covered by all.
    """
    rows: list[tuple[str, int, int]] = []
    decodes = shared[shared["batch_size"] == shared["total_tokens"]].sort_values("batch_size")
    if len(decodes):
        position = int(np.searchsorted(decodes["count"].cumsum(), 0.5 * decodes["count"].sum()))
        median, largest = int(decodes["batch_size"].iloc[position]), int(decodes["batch_size"].iloc[-1])
        rows.append((MEDIAN_DECODE, median, median))
        if largest > median:
            rows.append((LARGEST_DECODE, largest, largest))
    mixed = shared[shared["total_tokens"] > shared["batch_size"]]
    if len(mixed):
        full = mixed[mixed["total_tokens"] == mixed["total_tokens"].max()].sort_values("count").iloc[-1]
        rows.append((FULL_STEP, int(full["batch_size"]), int(full["total_tokens"])))
    return pd.DataFrame(rows, columns=["step", "batch_size", "total_tokens"])


def like_steps(
    fit: FittedModel, batch_size: NDArray[np.generic], total_tokens: NDArray[np.generic]
) -> Floats:
    """Return how many steps of a trace are like each of some steps, the arguments' shape.

    Like means that B and S are within a factor of about 1.3 (:data:`NEAR` on the logarithms).
    """
    cells = cell_table(fit)
    places = np.log(np.stack([batch_size, total_tokens], axis=-1).astype(float))[..., None, :]
    seen = np.log(cells[["batch_size", "total_tokens"]].to_numpy(float))
    is_like = (np.abs(places - seen) < NEAR).all(axis=-1)
    found: Floats = is_like @ cells["count"].to_numpy(float)
    return found


def region_text(labels: Sequence[str], grid: xr.Dataset) -> str:
    """Say which part of the grid all traces cover."""
    shared = grid["in_region"].all("gpu")
    b = grid["batch_size"].where(shared.any("total_tokens"), drop=True)
    s = grid["total_tokens"].where(shared.any("batch_size"), drop=True)
    return (
        f"The traces of {listed(list(labels))} share {int(shared.sum()):,} of "
        f"{int(grid[POSSIBLE].sum()):,} points of the grid: {int(b.min()):,} to {int(b.max()):,} requests, "
        f"{int(s.min()):,} to {int(s.max()):,} tokens a step, not in every combination; elsewhere at least "
        "one server is extrapolated."
    )


_COLUMNS = {"batch_size", "total_tokens"}
_BUDGET = "most tokens in a step"
_BUDGET_TOLERANCE = 0.05
_UNKNOWN = "unknown"


@dataclass(frozen=True, eq=False, kw_only=True)
class Member:
    """One server of a comparison.

    Attributes
    ----------
    label : str
        Distinct among the members.
    fit : FittedModel
    price_per_hour : float or None
    """

    label: str
    fit: FittedModel
    price_per_hour: float | None = None


def members_of(
    fits: Sequence[FittedModel] | Mapping[str, FittedModel], *, prices: Mapping[str, float]
) -> tuple[Member, ...]:
    """Return the servers after making sure that they can be compared.

    Parameters
    ----------
    fits : sequence, or mapping of label to FittedModel
    prices : mapping of str to float
        An hour's price by label or by name of the result.

    Raises
    ------
    InputError
        Fewer than two fits, one of them twice, models that cannot be compared, a price that is none or is of
        none of the servers.
    """
    labels, chosen = _labelled(fits)
    if len(chosen) < 2:
        msg = f"{len(chosen)} fit: a comparison takes two or more"
        raise InputError(msg)
    for a, b in combinations(range(len(chosen)), 2):
        _check_pair(labels[a], chosen[a], labels[b], chosen[b])
    priced = _prices(labels, chosen, prices)
    return tuple(
        Member(label=label, fit=fit, price_per_hour=priced.get(label))
        for label, fit in zip(labels, chosen, strict=True)
    )


def labels_of(fits: Sequence[FittedModel]) -> list[str]:
    """Return a distinct label for each fit: its GPU, else GPU and LLM, else the name of the result."""
    gpus = [fit.metadata.labels.get("gpu", "") for fit in fits]
    llms = [fit.metadata.labels.get("llm", "") for fit in fits]
    both = [f"{gpu}, {llm}" if gpu and llm else "" for gpu, llm in zip(gpus, llms, strict=True)]
    names = [fit.metadata.name for fit in fits]
    for candidates in (gpus, both, names):
        if all(candidates) and len(set(candidates)) == len(fits):
            return candidates
    return [f"{name} ({number})" for number, name in enumerate(names, start=1)]


def _labelled(
    fits: Sequence[FittedModel] | Mapping[str, FittedModel],
) -> tuple[list[str], list[FittedModel]]:
    if isinstance(fits, Mapping):
        return [str(label) for label in fits], list(fits.values())
    return labels_of(fits), list(fits)


def _check_pair(label_a: str, a: FittedModel, label_b: str, b: FittedModel) -> None:
    if _is_same(a, b):
        name = a.metadata.name
        names = name if name == b.metadata.name else f"{name} and {b.metadata.name}"
        raise InputError(f"{names}: the same fit twice; a comparison takes fits of different traces")
    for label, fit in ((label_a, a), (label_b, b)):
        others = sorted(set(fit.model.columns) - _COLUMNS)
        if others:
            raise InputError(
                f"{label}: its model {fit.model.name} asks for {', '.join(others)} besides requests and "
                "tokens: a comparison is over these two alone; fit the traces with --model saturation for one"
            )
    shapes = [[(p.name, p.unit) for p in fit.model.parameters] for fit in (a, b)]
    if shapes[0] != shapes[1]:
        raise InputError(
            f"{label_a} and {label_b} are fits of incompatible models ({a.model.name}, {b.model.name}: their "
            "parameters differ): fit both traces with the same --model"
        )


def _is_same(a: FittedModel, b: FittedModel) -> bool:
    if a is b:
        return True
    is_same_trace = a.metadata.trace_sha256 == b.metadata.trace_sha256
    return is_same_trace and a.posterior.sizes == b.posterior.sizes and a.posterior.equals(b.posterior)


def _prices(
    labels: Sequence[str], fits: Sequence[FittedModel], prices: Mapping[str, float]
) -> dict[str, float]:
    names = [fit.metadata.name for fit in fits]
    found: dict[str, float] = {}
    for key, price in prices.items():
        matches = [label for label, name in zip(labels, names, strict=True) if key in (label, name)]
        if len(matches) != 1:
            known = ", ".join(dict.fromkeys([*labels, *names]))
            what = "fits several" if matches else "is that of no fit"
            raise InputError(f"price of {key!r}: the label {what}; give one of {known}")
        if not _is_price(price):
            raise InputError(f"price of {key!r}: {price!r} is no positive number an hour")
        if matches[0] in found:
            raise InputError(f"price of {key!r}: given twice (label and name of the result)")
        found[matches[0]] = float(price)
    return found


def _is_price(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0.0 < value < math.inf


def difference_table(members: Sequence[Member]) -> pd.DataFrame:
    """Return in what the servers and their fits differ.

    Parameters
    ----------
    members : sequence of Member

    Returns
    -------
    DataFrame
        ``what``, ``is_server`` (whether it is about the server and not the GPU), and a column a label. A row
        of the LLM stands there also where one of them is unknown.
    """
    rows = []
    for what, values, is_server in _described(members):
        if _differ(what, values):
            shown = [_UNKNOWN if value in (None, "") else str(value) for value in values]
            rows.append(
                {
                    "what": what,
                    "is_server": is_server,
                    **dict(zip((m.label for m in members), shown, strict=True)),
                }
            )
    return pd.DataFrame(rows, columns=["what", "is_server", *(member.label for member in members)])


def _described(members: Sequence[Member]) -> list[tuple[str, list[object], bool]]:
    all_metadata = [member.fit.metadata for member in members]
    keys = dict.fromkeys(key for metadata in all_metadata for key in metadata.labels)
    others = [key for key in keys if key not in ("gpu", "llm")]

    def label(key: str) -> list[object]:
        return [metadata.labels.get(key) for metadata in all_metadata]

    return [
        ("GPU", label("gpu"), False),
        ("LLM", label("llm"), True),
        *((key, label(key), True) for key in others),
        (_BUDGET, [int(member.fit.cells["total_tokens"].max()) for member in members], True),
        ("longest step kept (ms)", [f"{m.cleaning.max_latency_ms:g}" for m in all_metadata], False),
        ("model", [metadata.model.name for metadata in all_metadata], False),
        ("noise", [metadata.noise for metadata in all_metadata], False),
    ]


def _differ(what: str, values: Sequence[object]) -> bool:
    if what == _BUDGET:
        numbers = [float(str(value)) for value in values]
        return max(numbers) > (1.0 + _BUDGET_TOLERANCE) * min(numbers)
    return len(set(values)) > 1 or (what == "LLM" and None in values)


def warnings_of(members: Sequence[Member], differences: pd.DataFrame) -> tuple[str, ...]:
    """Return what to beware of, each a sentence; the worst first."""
    found = []
    for member in members:
        if not member.fit.converged:
            problem = next(iter(member.fit.metadata.problems), "see its report")
            found.append(
                f"{member.label} (result {member.fit.metadata.name}) has NOT CONVERGED ({problem}): do not "
                "act on any number here that involves it; fit its trace again"
            )
    for a, b in combinations(members, 2):
        if a.fit.metadata.trace_sha256 == b.fit.metadata.trace_sha256:
            found.append(
                f"{a.label} and {b.label} are fits of the same trace: their posteriors are not independent, "
                "as the intervals of their ratios suppose"
            )
    others = [
        f"{row['what']} ({listed([f'{row[member.label]} on {member.label}' for member in members])})"
        for row in differences[differences["is_server"].astype(bool)].to_dict("records")
    ]
    if others:
        found.append(f"this compares servers, not GPUs; they differ, or may differ, in: {'; '.join(others)}")
    for member in members:
        found += [f"{member.label}: {warning}" for warning in member.fit.warnings]
    return tuple(found)
