"""Whether fitted parameters make sense as physics: signs, documented ranges, saturation, behaviour far out.

For a point estimate a check holds or not. For a posterior each check has a probability, the share of the
draws in which it holds. Both go through the same checks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import xarray as xr

from bayes_sched.arrays import Bools, Floats
from bayes_sched.format import number, span
from bayes_sched.model.equation import PARAMETERS, Parameter, latency_ms
from bayes_sched.posterior.fitted import DEFAULT_MAX_DRAWS, DEFAULT_PROBABILITY, FittedModel
from bayes_sched.region import Region

type Latency = Callable[[Floats, Floats], Floats]
"""Latency of steps by requests and tokens, dims (step,) each, in ms: dims (draw, step)."""

_NUM_BATCH_SIZES, _NUM_TOKENS = 16, 24
_TOKENS_A_REQUEST = (1.0, 4.0, 16.0, 64.0, 256.0, 1024.0)
_FAR = 100.0
_DOUBLE = (1.9, 2.1)
_MAX_SLOWDOWN = 100.0
_LEVEL = 0.01
_SLACK = f", by more than {_LEVEL:.0%}"


@dataclass(frozen=True, slots=True, eq=False)
class PhysicalChecks:
    """What the checks found."""

    table: pd.DataFrame
    """One row a check: ``check`` (what should be so), ``group`` (``sign``, ``range``, ``saturation`` or
    ``boundary``), ``probability`` (share of the draws in which it is; 0 or 1 for a point estimate), ``holds``
    (the probability is at least 90 %), ``detail`` (numbers, and where it fails)."""

    @property
    def plausible(self) -> bool:
        """Whether every check holds."""
        return bool(self.table["holds"].all())

    @property
    def text(self) -> str:
        """A sentence a person can paste."""
        failed = self.table[~self.table["holds"]]
        if failed.empty:
            return f"Physically plausible: all {len(self.table)} checks hold."
        rows = zip(failed["check"], failed["probability"], failed["detail"], strict=True)
        what = "; ".join(
            f"{check} ({'' if probability == 0.0 else f'probability {probability:.2f}, '}{detail})"
            for check, probability, detail in rows
        )
        return f"{len(failed)} of {len(self.table)} checks of physical plausibility fail: {what}."


@dataclass(frozen=True, slots=True)
class _Check:
    check: str
    group: str
    holds: Bools
    """dims (draw,)"""
    detail: str


def check_point_physics(
    parameters: Mapping[str, float], *, region: Region, scale_is_free: bool = False
) -> PhysicalChecks:
    """Check a point estimate of the saturation equation."""
    draws = {name: np.array([value]) for name, value in parameters.items()}

    def latency(batch_size: Floats, total_tokens: Floats) -> Floats:
        with np.errstate(all="ignore"):  # what is not finite is found and said by a check
            result: Floats = latency_ms(batch_size, total_tokens, **parameters)
        return result[None, :]

    grouped = ("P_max", "w_0", "w_1") if scale_is_free else ()
    alone = [p for p in PARAMETERS if p.name not in grouped]
    scale = [_common_scale(parameters)] if scale_is_free else []
    return _table([*_signs(draws), *scale, *_ranges(draws, alone), *_shape(latency, region)])


def check_physics(fit: FittedModel, *, max_draws: int | None = DEFAULT_MAX_DRAWS) -> PhysicalChecks:
    """Check a posterior: the probability of each check is the share of the draws in which it holds.

    Columns of the steps beyond requests and tokens, which a richer model may need, are taken as 0.

    Parameters
    ----------
    fit : FittedModel
    max_draws : int or None
        Draws for the checks of the latency, evenly spaced; None uses all.
    """
    others = [name for name in fit.model.columns if name not in ("batch_size", "total_tokens")]
    draws = {p.name: fit.posterior[p.name].to_numpy().ravel() for p in fit.model.parameters}

    def latency(batch_size: Floats, total_tokens: Floats) -> Floats:
        columns = {"batch_size": batch_size, "total_tokens": total_tokens}
        columns |= {name: np.zeros_like(batch_size) for name in others}
        steps = xr.Dataset({name: ("step", values) for name, values in columns.items()})
        mean = fit.mean_latency(steps, max_draws=max_draws).transpose("chain", "draw", "step").to_numpy()
        return mean.reshape(-1, len(batch_size))

    return _table([*_signs(draws), *_ranges(draws, fit.model.parameters), *_shape(latency, fit.region)])


def _table(checks: Sequence[_Check]) -> PhysicalChecks:
    rows = [(found.check, found.group, float(found.holds.mean()), found.detail) for found in checks]
    table = pd.DataFrame(rows, columns=["check", "group", "probability", "detail"])
    table.insert(3, "holds", table["probability"] >= DEFAULT_PROBABILITY)
    return PhysicalChecks(table)


def _signs(draws: Mapping[str, Floats]) -> list[_Check]:
    wrong = {name: ~(np.isfinite(values) & (values > 0.0)) for name, values in draws.items()}
    holds = ~np.logical_or.reduce(list(wrong.values()))
    names = [name for name, where in wrong.items() if where.any()]
    detail = f"not so: {', '.join(names)}" if names else "all of them"
    return [_Check("parameters are finite and above 0", "sign", holds, detail)]


def _ranges(draws: Mapping[str, Floats], parameters: Sequence[Parameter]) -> list[_Check]:
    found = []
    for p in parameters:
        values, text = draws[p.name], f"{p.name} from {p.low:g} to {p.high:g} {p.unit}"
        holds = (values >= p.low) & (values <= p.high)
        found.append(_Check(text, "range", holds, f"it is {_spread(values)}"))
    return found


def _common_scale(parameters: Mapping[str, float]) -> _Check:
    ranges = {p.name: p for p in PARAMETERS}
    low, high = ranges["P_max"].low, ranges["P_max"].high
    for work in ("w_0", "w_1"):
        ratio = parameters[work] / parameters["P_max"]
        if ratio > 0.0:
            low, high = max(low, ranges[work].low / ratio), min(high, ranges[work].high / ratio)
        elif ranges[work].low > 0.0:
            low = np.inf
    ratios = ", ".join(f"{w}/P_max = {number(parameters[w] / parameters['P_max'])}" for w in ("w_0", "w_1"))
    text = "P_max, w_0 and w_1 in their ranges for some common scale"
    return _Check(text, "range", np.array([low <= high]), ratios)


def _shape(latency: Latency, region: Region) -> list[_Check]:
    """Return the checks of the latency as a function of the step."""
    max_batch_size, max_tokens = region.largest
    max_tokens = max(max_tokens, max_batch_size, 2.0)
    batch_sizes = _whole_numbers(max_batch_size, _NUM_BATCH_SIZES)
    tokens = np.union1d(_whole_numbers(max_tokens, _NUM_TOKENS), batch_sizes)
    by_tokens = [_Row.of(latency, b, tokens[tokens >= b]) for b in batch_sizes]
    ratios = [c for c in _TOKENS_A_REQUEST if c * max_batch_size <= 4.0 * max_tokens]
    growing = [_Row.of(latency, batch_sizes, c * batch_sizes) for c in ratios]
    throughput = [replace(row, values=row.total_tokens / row.values, unit="tokens/ms") for row in by_tokens]
    return [
        _finite(by_tokens),
        _rising(by_tokens, f"latency does not fall with tokens, requests held{_SLACK}", region),
        _rising(growing, f"latency does not fall as requests and tokens grow together{_SLACK}", region),
        _rising(throughput, f"throughput S/T does not fall with tokens, requests held{_SLACK}", region),
        *_boundaries(latency, max_batch_size, max_tokens),
    ]


@dataclass(frozen=True, slots=True)
class _Row:
    """Steps of rising size, dims (step,), and a quantity of them, dims (draw, step)."""

    batch_size: Floats
    total_tokens: Floats
    values: Floats
    unit: str

    @classmethod
    def of(cls, latency: Latency, batch_size: Floats | float, total_tokens: Floats) -> _Row:
        batch_size = np.broadcast_to(batch_size, total_tokens.shape).astype(float)
        return cls(batch_size, total_tokens, latency(batch_size, total_tokens), "ms")


def _finite(rows: Sequence[_Row]) -> _Check:
    values = np.concatenate([row.values for row in rows], axis=1)
    holds = (np.isfinite(values) & (values > 0.0)).all(axis=1)
    extent = span(float(values.min()), float(values.max()))
    text = "latency is finite and above 0"
    return _Check(text, "saturation", holds, f"{extent} ms over the steps looked at")


def _rising(rows: Sequence[_Row], check: str, region: Region) -> _Check:
    """Check that a quantity falls nowhere below what it is for a smaller step of the row."""
    falls = [1.0 - row.values / np.maximum.accumulate(row.values, axis=1) for row in rows]
    holds = np.all([(fall <= _LEVEL).all(axis=1) for fall in falls], axis=0)
    detail = f"in all {sum(row.total_tokens.size for row in rows):,} steps looked at"
    if not holds.all():
        worst = int(np.argmax([np.nan_to_num(fall, nan=np.inf).mean(axis=0).max() for fall in falls]))
        detail = _fall(rows[worst], falls[worst], region)
    return _Check(check, "saturation", holds, detail)


def _fall(row: _Row, falls: Floats, region: Region) -> str:
    """Say how far the quantity falls to a step of the row, by the median of the draws in which it does."""
    last = int(np.argmax(falls.mean(axis=0)))
    is_falling = ~(falls[:, last] <= _LEVEL)
    middle = np.median(row.values[is_falling] if is_falling.any() else row.values, axis=0)
    ends = [int(np.argmax(middle[: last + 1])), last]
    before, after = (f"({row.batch_size[i]:.0f}, {row.total_tokens[i]:.0f})" for i in ends)
    seen = region.contains(row.batch_size[ends], row.total_tokens[ends]).all()
    return (
        f"{number(float(middle[ends[0]]))} to {number(float(middle[last]))} {row.unit} from (B, S) = "
        f"{before} to {after}; {'such steps were seen' if seen else 'no such steps were seen'}"
    )


def _boundaries(latency: Latency, max_batch_size: float, max_tokens: float) -> list[_Check]:
    far_s, far_b = _FAR * max_tokens, _FAR * max_batch_size
    middle = float(np.rint(np.sqrt(max_batch_size)))
    batch_size = [1.0, 1.0, 1.0, max_batch_size, middle, middle, far_b, 2.0 * far_b]
    total_tokens = [1.0, 2.0, max_tokens, max_tokens, far_s, 2.0 * far_s, far_b, 2.0 * far_b]
    steps = np.array(batch_size), np.array(total_tokens)
    one, two, alone, shared, far, farther, many, more = latency(*steps).T
    low, high = _DOUBLE
    by_tokens, by_requests = farther / far, more / many
    return [
        _Check(
            "S small: a step of two tokens takes once to twice the time of one",
            "boundary",
            (two >= one * (1.0 - _LEVEL)) & (two <= 2.0 * one),
            f"T(1, 1) = {_spread(one)} ms, T(1, 2) = {_spread(two)} ms",
        ),
        _Check(
            f"B small: one request with {max_tokens:,.0f} tokens takes at most {_MAX_SLOWDOWN:g} times as "
            f"long as {max_batch_size:,.0f} requests with as many",
            "boundary",
            np.isfinite(alone) & (alone <= _MAX_SLOWDOWN * shared),
            f"{_spread(alone / shared)} times",
        ),
        _Check(
            "S large: twice the tokens take twice the time, throughput has a ceiling",
            "boundary",
            (by_tokens >= low) & (by_tokens <= high),
            f"{_spread(by_tokens)} times from {far_s:,.0f} tokens on",
        ),
        _Check(
            "B large: twice the decoding requests take twice the time",
            "boundary",
            (by_requests >= low) & (by_requests <= high),
            f"{_spread(by_requests)} times from {far_b:,.0f} requests on",
        ),
    ]


def _whole_numbers(high: float, num: int) -> Floats:
    return np.unique(np.rint(np.geomspace(1.0, max(high, 1.0), num))).astype(float)


def _spread(values: Floats) -> str:
    """Write a number, or the median and the interval of several."""
    if len(values) == 1:
        return number(float(values[0]))
    tail = 0.5 * (1.0 - DEFAULT_PROBABILITY)
    low, middle, high = (float(value) for value in np.quantile(values, [tail, 0.5, 1.0 - tail]))
    return f"{number(middle)} ({span(low, high)})"
