"""Removes the steps that the latency equation is not about, and says what went.

The documented rules, each applied to what the one before left: B, S and T positive; T at least 1 ms; T at
most 300 ms. The last one deletes real work where the token budget is large (an H100 with a budget of 8196
takes 400-700 ms for every full prefill step), so a rule that removes a systematic part of the trace warns.
"""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from bayes_sched.errors import InputError

WARN_SHARE = 0.01
"""A rule that removes more than this share of the trace is reported."""
MIN_SYSTEMATIC = 10
"""Fewer removed steps than this are no system, however large their S."""

_NEEDED = ("batch_size", "total_tokens", "latency_ms")

type _Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Cleaned:
    """What `clean_steps` left.

    Attributes
    ----------
    steps : DataFrame
        The steps that are left, with the columns they came with and rows counted from 0.
    table : DataFrame
        One row a rule in the order of application: ``rule``, ``removed`` (steps), ``share`` (of the steps
        before cleaning), ``min_total_tokens`` and ``median_total_tokens`` of the removed steps (NaN if there
        are none).
    warnings : tuple of str
        One sentence for each rule that removed a systematic part of the trace.
    num_before, num_after : int
        Steps before and after.
    """

    steps: pd.DataFrame
    table: pd.DataFrame
    warnings: tuple[str, ...]
    num_before: int
    num_after: int

    @property
    def text(self) -> str:
        """A sentence a person can paste."""
        rules = zip(self.table["rule"], self.table["removed"], strict=True)
        removed = ", ".join(f"{count:,} ({rule})" for rule, count in rules if count)
        return f"{self.num_after:,} of {self.num_before:,} steps are used; removed: {removed or 'none'}."


@dataclass(frozen=True, slots=True)
class _Rule:
    title: str
    option: str
    removed: _Mask
    """Steps that this rule removes, dims (step,) over all steps before cleaning."""


def clean_steps(
    steps: pd.DataFrame, *, min_latency_ms: float = 1.0, max_latency_ms: float = 300.0
) -> Cleaned:
    """Remove idle, too short and too long steps.

    Parameters
    ----------
    steps : DataFrame
        One row a step, with ``batch_size``, ``total_tokens`` and ``latency_ms`` (ms).
    min_latency_ms, max_latency_ms : float
        Steps below the one and above the other are removed; the limits themselves are kept.

    Returns
    -------
    Cleaned
        The steps that are left and the account of the others.

    Raises
    ------
    InputError
        If a limit makes no sense, a column is missing, or no step is left.
    """
    _check_limits(min_latency_ms, max_latency_ms)
    missing = [name for name in _NEEDED if name not in steps]
    if missing:
        raise InputError(f"the steps table lacks {', '.join(missing)}: it needs {', '.join(_NEEDED)}")
    rules = _apply_rules(steps, min_latency_ms, max_latency_ms)
    keep = ~np.logical_or.reduce([rule.removed for rule in rules])
    table = _account(steps, rules)
    num_after = int(keep.sum())
    if not num_after:
        raise InputError(_nothing_left(steps, table))
    return Cleaned(
        steps=steps[keep].reset_index(drop=True),
        table=table,
        warnings=tuple(text for rule in rules if (text := _warning(steps, rule, rules))),
        num_before=len(steps),
        num_after=num_after,
    )


def _check_limits(min_latency_ms: float, max_latency_ms: float) -> None:
    for option, value in (("--min-latency-ms", min_latency_ms), ("--max-latency-ms", max_latency_ms)):
        if not (math.isfinite(value) and value > 0):
            raise InputError(f"{option} is {value}: give a positive, finite number of milliseconds")
    if min_latency_ms >= max_latency_ms:
        raise InputError(
            f"--min-latency-ms {min_latency_ms:g} is not below --max-latency-ms {max_latency_ms:g}: "
            "no step could stay"
        )


def _apply_rules(steps: pd.DataFrame, min_latency_ms: float, max_latency_ms: float) -> tuple[_Rule, ...]:
    batch_size, total_tokens, latency_ms = (steps[name].to_numpy(dtype=float) for name in _NEEDED)
    is_idle = ~((batch_size > 0) & (total_tokens > 0) & (latency_ms > 0) & np.isfinite(latency_ms))
    is_short = ~is_idle & (latency_ms < min_latency_ms)
    is_long = ~is_idle & (latency_ms > max_latency_ms)
    return (
        _Rule("idle: B, S or T not above 0", "", is_idle),
        _Rule(f"T below {min_latency_ms:g} ms", "--min-latency-ms", is_short),
        _Rule(f"T above {max_latency_ms:g} ms", "--max-latency-ms", is_long),
    )


def _account(steps: pd.DataFrame, rules: tuple[_Rule, ...]) -> pd.DataFrame:
    tokens = [steps["total_tokens"][rule.removed] for rule in rules]
    counts = [len(removed) for removed in tokens]
    return pd.DataFrame(
        {
            "rule": [rule.title for rule in rules],
            "removed": counts,
            "share": [count / max(len(steps), 1) for count in counts],
            "min_total_tokens": [float(removed.min()) if len(removed) else math.nan for removed in tokens],
            "median_total_tokens": [
                float(removed.median()) if len(removed) else math.nan for removed in tokens
            ],
        }
    )


def _nothing_left(steps: pd.DataFrame, table: pd.DataFrame) -> str:
    if not len(steps):
        return "there are no steps to clean"
    removed = "; ".join(
        f"{count:,} {rule}" for rule, count in zip(table["rule"], table["removed"], strict=True) if count
    )
    latency_ms = steps["latency_ms"]
    return (
        f"no step is left of {len(steps):,}: {removed}; the latencies run from {latency_ms.min():.4g} to "
        f"{latency_ms.max():.4g} ms: check their unit, or move --min-latency-ms and --max-latency-ms"
    )


def _warning(steps: pd.DataFrame, rule: _Rule, rules: tuple[_Rule, ...]) -> str:
    num_removed = int(rule.removed.sum())
    share = num_removed / len(steps)
    if not rule.option:
        text = (
            f"{num_removed:,} of {len(steps):,} steps ({share:.2%}) are idle (B, S or T not above 0): removed"
        )
        return text if share > WARN_SHARE else ""
    is_long = rule.option == "--max-latency-ms"
    is_work = ~rules[0].removed
    where = _mostly_removed(steps["total_tokens"].to_numpy()[is_work], rule.removed[is_work], above=is_long)
    if not where and share <= WARN_SHARE:
        return ""
    removed = steps[rule.removed]
    tokens = removed["total_tokens"]
    limit_ms = _round_outward(float(removed["latency_ms"].quantile(0.99 if is_long else 0.01)), up=is_long)
    return (
        f"{num_removed:,} of {len(steps):,} steps ({share:.2%}) have {rule.title} and are removed "
        f"(S from {tokens.min():,} to {tokens.max():,}, median {tokens.median():,.0f}){where}: "
        f"if they are real work, keep them with {rule.option} {limit_ms:g}"
    )


def _mostly_removed(total_tokens: npt.NDArray[np.int64], removed: _Mask, *, above: bool) -> str:
    """Find the widest range of S, from its upper or lower end on, in which more than half of the steps go."""
    order = np.argsort(-total_tokens if above else total_tokens, kind="stable")
    tokens, num_removed = total_tokens[order], np.cumsum(removed[order])
    is_last_of_its_kind = np.append(tokens[1:] != tokens[:-1], True)[: len(tokens)]
    num_all = np.arange(1, len(tokens) + 1)
    hits = np.flatnonzero(is_last_of_its_kind & (num_removed > num_all / 2) & (num_removed >= MIN_SYSTEMATIC))
    if not len(hits):
        return ""
    widest = hits[-1]
    limit = f"{tokens[widest]:,} or {'more' if above else 'fewer'} tokens"
    return f"; of the {num_all[widest]:,} steps with {limit} {num_removed[widest]:,} go"


def _round_outward(value: float, *, up: bool) -> float:
    """Round to two digits, away from the steps that are to be kept."""
    nearest = float(f"{value:.2g}")
    unit = 10.0 ** (math.floor(math.log10(value)) - 1)
    if up and nearest < value:
        nearest += unit
    if not up and nearest > value:
        nearest -= unit
    return float(f"{nearest:.2g}")
