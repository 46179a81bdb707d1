"""What a comparison says, in sentences that a person can paste."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from bayes_sched.comparison.throughput import COST, equivalent_sentence
from bayes_sched.comparison.verdicts import EQUIVALENT, IN_TRACES, ON_GRID, UNDECIDED
from bayes_sched.format import listed, number, percent, records, span

_NARROW = 1.02


def certainty(p: float | None) -> str:
    """Write a probability; never as certain."""
    if p is None:
        return "unknown"
    if p > 0.999:
        return "above 99.9%"
    return "below 0.1%" if p < 0.001 else percent(p, 1)


def ratio_text(row: Mapping[str, Any]) -> str:
    """Write a ratio with its interval, with a digit more where that is narrow."""
    lower, upper = row["ratio_lower"], row["ratio_upper"]
    digits = 4 if upper < _NARROW * lower else 3
    return f"{number(row['ratio_median'], digits)} ({span(lower, upper, digits)})"


def verdict_sentences(shares: pd.DataFrame, *, rope: float) -> list[str]:
    """Return for each pair how often which verdict is given."""
    sentences = []
    for (first, second), group in shares.groupby(["gpu", "other"], sort=False):
        rows = {row["of"]: row for row in records(group)}
        grid = rows[ON_GRID]
        text = (
            f"Against {second}, {first} is {_shares(grid, rope)} of the {grid['num_steps']:,} steps of a "
            f"logarithmic grid that all traces cover (ratio of the mean latencies from "
            f"{number(grid['ratio_smallest'])} to {number(grid['ratio_largest'])})"
        )
        if (often := rows.get(IN_TRACES)) is not None:
            text += (
                f"; over the steps that the traces hold, as often as they occur, it is {_shares(often, rope)}"
            )
        sentences.append(f"{text}.")
    return sentences


def _shares(row: Mapping[str, Any], rope: float) -> str:
    names = {
        "faster": f"faster by more than {100 * rope:g}% at",
        "slower": f"slower by more than {100 * rope:g}% at",
        EQUIVALENT: "equivalent at",
        UNDECIDED: "undecided at",
    }
    return listed([f"{text} {percent(row[word])}" for word, text in names.items() if row[word] >= 0.005])


def step_sentences(steps: pd.DataFrame) -> list[str]:
    """Return for each pair what the typical steps take."""
    return [
        f"The {row['step']} ({row['batch_size']:,} request{'' if row['batch_size'] == 1 else 's'}, "
        f"{row['total_tokens']:,} tokens) takes {number(row['gpu_ms'])} ms on {row['gpu']} and "
        f"{number(row['other_ms'])} ms on {row['other']} on average, ratio {ratio_text(row)}: "
        f"{row['gpu']} is faster on average with probability {certainty(row['p_faster'])}, in a single step "
        f"with {certainty(row['p_step_faster'])}."
        for row in records(steps)
    ]


def equivalent_sentences(equivalents: pd.DataFrame) -> list[str]:
    """Return for each ordered pair the equivalent of 32 decodes, or of the most within what is covered."""
    sentences = []
    for _, group in equivalents.groupby(["gpu", "other"], sort=False):
        covered = group[~group["extrapolation"]]
        chosen = group[group["batch_size"] == 32] if covered.empty else covered.iloc[[-1]]
        sentences += [equivalent_sentence(row) for row in records(chosen)]
    return [f"{'; '.join(sentences)}."] if sentences else []


def money_sentences(money: pd.DataFrame, throughput: pd.DataFrame) -> list[str]:
    """Return what a million tokens costs, in two cases at most: within the latency limit if there is one."""
    costs = money[money["quantity"] == COST]
    cases = costs["case"].drop_duplicates().tolist()[-2:]
    sentences = []
    for row in records(costs[costs["case"].isin(cases)]):
        of_case = throughput[throughput["case"] == row["case"]]
        each = {rate["gpu"]: rate for rate in records(of_case)}
        prices = [
            f"{number(rate['cost'])} ({span(rate['cost_lower'], rate['cost_upper'])}) on {label}"
            for label, rate in ((label, each[label]) for label in (row["gpu"], row["other"]))
        ]
        sentences.append(
            f"A million tokens cost {listed(prices)} ({row['case']}): {row['gpu']} is cheaper with "
            f"probability {certainty(row['p_better'])}."
        )
    return sentences


def wanted_sentences(wanted: pd.DataFrame) -> list[str]:
    """Return for each pair which further steps would decide most."""
    sentences = []
    for _, group in wanted.groupby(["gpu", "other"], sort=False):
        row = records(group)[0]
        times = row["times_data"]
        much = (
            "the ratio lies so near to the end of the region of equivalence that data will hardly decide"
            if times is None
            else f"about {number(times, 2)} times as much data would decide"
        )
        sentences.append(
            f"Where {row['gpu']} against {row['other']} is undecided, it is least known at steps like B = "
            f"{row['batch_size']:,}, S = {row['total_tokens']:,} (ratio {ratio_text(row)}), most of all on "
            f"{row['measure']}, whose trace has {row['steps_seen']:,} such steps: {much}."
        )
    return sentences


def parameter_sentences(ratios: pd.DataFrame) -> list[str]:
    """Return which parameters differ, and on which there is no verdict."""
    sentences = []
    chosen = ratios[ratios["kind"] != "noise"]
    for (first, second), group in chosen.groupby(["gpu", "other"], sort=False):
        known = records(group[group["identified"]])
        parts = [
            f"{row['name']} is {row['verdict']} ({ratio_text(row)} times)"
            for row in known
            if row["verdict"] in {"lower", "higher"}
        ]
        same = [row["name"] for row in known if row["verdict"] == "equivalent"]
        open_names = group.loc[~group["identified"], "name"].tolist()
        text = [f"On {first} against {second}, {listed(parts)}"] if parts else []
        text += [f"{listed(same)} {'is' if len(same) == 1 else 'are'} equivalent"] if same else []
        if open_names:
            text.append(f"no verdict on {listed(open_names)}, which the data do not identify on both")
        if text:
            sentences.append(f"{'; '.join(text)}.")
    return sentences


def paragraph(
    *,
    shares: pd.DataFrame,
    steps: pd.DataFrame,
    equivalents: pd.DataFrame,
    money: pd.DataFrame,
    throughput: pd.DataFrame,
    ratios: pd.DataFrame,
    wanted: pd.DataFrame,
    rope: float,
) -> tuple[str, ...]:
    """Return the sentences; of more than one pair only the verdicts and the costs, the tables hold the rest.

    Parameters
    ----------
    shares, steps, equivalents, money, throughput, ratios, wanted : DataFrame
        The tables of a :class:`~bayes_sched.comparison.result.Comparison`.
    rope : float
    """
    found = verdict_sentences(shares, rope=rope)
    if len(shares[["gpu", "other"]].drop_duplicates()) > 1:
        return (*found, *money_sentences(money, throughput))
    return (
        *found,
        *step_sentences(steps),
        *equivalent_sentences(equivalents),
        *money_sentences(money, throughput),
        *parameter_sentences(ratios),
        *wanted_sentences(wanted),
    )
