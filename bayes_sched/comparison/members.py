"""The servers of a comparison: their fits, labels and prices, and in what they differ besides the GPU."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import pandas as pd

from bayes_sched.errors import InputError
from bayes_sched.fitted import FittedModel
from bayes_sched.numbers import listed

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
