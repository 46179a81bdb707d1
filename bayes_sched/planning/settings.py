"""The settings of a scheduler with the most throughput under a limit on its steps.

Settings are a number of requests and a token budget. They keep a limit where all steps up to them do at once,
so that the least limit they keep is a running maximum over the grid of (B, S), taken draw by draw.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd

from bayes_sched.arrays import Bools, Floats
from bayes_sched.format import number, records, span
from bayes_sched.model.equation import PARAMETERS, inverse_saturation
from bayes_sched.posterior.fitted import DEFAULT_MAX_DRAWS, DEFAULT_PROBABILITY, FittedModel
from bayes_sched.posterior.prediction import band_levels, check_probability, thin
from bayes_sched.posterior.provenance import FitDescription
from bayes_sched.sla.evidence import FEW, Evidence
from bayes_sched.sla.limits import StepLine, StepSearch
from bayes_sched.sla.risk import DEFAULT_CONFIDENCE, DEFAULT_QUANTILE, Objective, refusals
from bayes_sched.steps import steps_arrays, steps_grid

ANY_STEP, DECODES = "any step", "decode-only steps"
CASES = (ANY_STEP, DECODES)
"""What a limit is kept by: all steps up to a number of requests and of tokens, or decode-only ones."""

_EXTRAPOLATION_FACTOR = 4.0
_EXACT_REQUESTS, _EXACT_TOKENS = 32, 64  # every number up to there
_NUM_REQUESTS, _NUM_TOKENS = 12, 64  # and so many beyond
_NEGLIGIBLE = 1e-9
_SETTINGS = (
    *("batch_size", "total_tokens", "limited_by", "latency_ms", "tokens_per_s", "decode_tokens_per_s"),
)


@dataclass(frozen=True, eq=False, kw_only=True)
class Optimum:
    """The best settings of a scheduler under a limit on the latency of its steps."""

    fit: FitDescription
    objective: Objective
    probability: float
    """Of credible intervals."""
    frontier: pd.DataFrame
    """Per case and rising limit the settings with the most tokens a second: ``case``, ``limit_ms`` (the least
    limit that they keep, at the quantile and the confidence asked for), ``batch_size``, ``total_tokens``,
    ``latency_ms`` and ``tokens_per_s``, each with ``_lower`` and ``_upper``: mean latency and throughput of a
    step as large as they allow."""
    settings: pd.DataFrame
    """For each number of requests the largest token budget that keeps the limit: ``batch_size``,
    ``total_tokens`` (NA: none), ``limited_by`` (``slo`` or ``data``), ``latency_ms`` and ``tokens_per_s`` of
    a step as large, ``decode_tokens_per_s`` of one that is all decodes."""
    best: dict[str, dict[str, Any] | None]
    """By case the row of the frontier that the limit allows and the trace does not contradict; None where
    there is none."""
    terms: dict[str, pd.DataFrame | None]
    """Where the time of that step goes: :func:`term_table`."""
    evidence: dict[str, Evidence | None]
    """What the steps of the trace near the best settings say."""
    contradicted: dict[str, dict[str, Any] | None]
    """By case the row of the frontier that the model alone would allow, where the trace contradicts it."""
    doubts: tuple[str, ...]
    """What the trace by itself says of decode-only steps, and where it contradicts the model."""
    refusals: tuple[str, ...]

    @property
    def is_promised(self) -> bool:
        """Whether there are settings that keep the limit, for any step."""
        return not self.refusals and self.best[ANY_STEP] is not None

    @property
    def floor_ms(self) -> float:
        """The least limit that any settings keep, ms."""
        return float(self.frontier["limit_ms"].min())

    @property
    def table(self) -> pd.DataFrame:
        """The frontier."""
        return self.frontier

    @property
    def text(self) -> str:
        """Sentences a person can paste."""
        if any((*self.best.values(), *self.contradicted.values())):
            return " ".join([*(self._case_text(case) for case in CASES), *self.doubts, *self.refusals])
        objective = self.objective
        none = (
            f"No settings keep {objective.limit_ms:g} ms: the quickest need {number(self.floor_ms)} ms "
            f"({objective.text.partition(' within')[0]} at {100 * objective.confidence:g}% confidence)."
        )
        return " ".join([none, *self.doubts, *self.refusals])

    def _case_text(self, case: str) -> str:
        row, model = self.best[case], self.contradicted[case]
        terms, seen = self.terms[case], self.evidence[case]
        doubt = ""
        if model is not None:
            doubt = (
                f" (The model alone would allow {model['batch_size']:,} requests and "
                f"{model['total_tokens']:,} tokens, but the trace speaks against "
                "that.)"
            )
        if row is None:
            return f"{case.capitalize()}: no settings may be promised.{doubt}"
        what = "output tokens" if case == DECODES else "tokens"
        settings = f"up to {row['batch_size']:,} request{'' if row['batch_size'] == 1 else 's'}"
        if case == ANY_STEP:
            settings += f" and {row['total_tokens']:,} tokens (max_num_seqs, max_num_batched_tokens)"
        ends = span(row["tokens_per_s_lower"], row["tokens_per_s_upper"])
        where = "" if terms is None else f" {_bottleneck_text(terms)}"
        where += ("" if seen is None or not seen.text else f" {seen.text}") + doubt
        return (
            f"{case.capitalize()}: {settings} give {number(row['tokens_per_s'])} {what} a second ({ends}); "
            f"the largest takes {number(row['latency_ms'])} ms in the mean.{where}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return {
            **self.objective.to_dict(),
            **{name: getattr(self, name) for name in ("probability", "is_promised", "floor_ms", "text")},
            "refusals": list(self.refusals),
            "best": self.best,
            "contradicted": self.contradicted,
            "doubts": list(self.doubts),
            "evidence": {case: None if of is None else asdict(of) for case, of in self.evidence.items()},
            "terms": {case: None if of is None else records(of) for case, of in self.terms.items()},
            "settings": records(self.settings),
            "frontier": records(self.frontier),
        }


def _bottleneck_text(terms: pd.DataFrame) -> str:
    first = terms[terms["kind"] == "group"].sort_values("share", ascending=False).iloc[0]
    return (
        f"Most of it goes to {first['name']}: {100 * first['share']:.0f}% "
        f"({100 * first['share_lower']:.0f} to {100 * first['share_upper']:.0f}%)."
    )


def optimize_steps(
    fit: FittedModel,
    *,
    slo_ms: float,
    quantile: float = DEFAULT_QUANTILE,
    confidence: float = DEFAULT_CONFIDENCE,
    extrapolate: bool = False,
    accept_unconverged: bool = False,
    probability: float = DEFAULT_PROBABILITY,
    max_draws: int | None = DEFAULT_MAX_DRAWS,
) -> Optimum:
    """Return the settings with the most throughput whose steps keep a limit.

    Settings are a number of requests and a token budget; they keep a limit where, with probability
    `confidence`, all steps up to them do at once: a share `quantile` of each kind. Numbers above 32 requests
    and 64 tokens are tried a few percent apart.

    Parameters
    ----------
    fit : FittedModel
    slo_ms : float
        Limit on a step, ms.
    quantile, confidence : float
    extrapolate, accept_unconverged : bool
        What else is trusted, as for :func:`~bayes_sched.sla.steps.step_sla`.
    probability : float
        Of credible intervals.
    max_draws : int or None

    Returns
    -------
    Optimum

    Raises
    ------
    InputError
        A value is out of range, or the fit's model needs more than B and S.
    """
    check_probability(probability, name="probability")
    objective = Objective(limit_ms=slo_ms, quantile=quantile, confidence=confidence)
    b, s = _axes(fit, extrapolate=extrapolate)
    grid = steps_grid(batch_size=b, total_tokens=s)
    dims = ("chain", "draw", "batch_size", "total_tokens")
    mean, late = (
        values.transpose(*dims).to_numpy().reshape(-1, len(b), len(s))
        for values in (
            fit.mean_latency(grid, max_draws=max_draws),
            fit.quantile_draws(grid, quantile, max_draws=max_draws),
        )
    )
    usable = (grid["possible"] if extrapolate else fit.in_region(grid)).transpose(*dims[2:]).to_numpy()
    is_decode = usable & (s[None, :] == b[:, None])
    bounds = {ANY_STEP: _bounds(late, usable, confidence), DECODES: _bounds(late, is_decode, confidence)}
    frontier = pd.concat(
        [_frontier(case, b, s, mean, bound, probability) for case, bound in bounds.items()], ignore_index=True
    )
    search = StepSearch(fit, objective, extrapolate, probability, max_draws)
    chosen = {case: _choose(search, frontier, case) for case in CASES}
    decodes = search.limit(StepLine())

    def terms(row: dict[str, Any] | None) -> pd.DataFrame | None:
        if row is None:
            return None
        step = row["batch_size"], row["total_tokens"]
        return term_table(fit, *step, probability=probability, max_draws=max_draws)

    return Optimum(
        fit=fit.description,
        objective=objective,
        probability=probability,
        frontier=frontier,
        settings=_settings(b, s, mean, bounds[ANY_STEP], slo_ms),
        best={case: row for case, (row, _, _) in chosen.items()},
        terms={case: terms(row) for case, (row, _, _) in chosen.items()},
        evidence={case: seen for case, (_, seen, _) in chosen.items()},
        contradicted={case: first for case, (_, _, first) in chosen.items()},
        doubts=tuple(filter(None, (decodes.seen_text, decodes.wrong_text))),
        refusals=refusals(fit, accept_unconverged=accept_unconverged),
    )


def _axes(fit: FittedModel, *, extrapolate: bool) -> tuple[Floats, Floats]:
    """Return the numbers of requests and of tokens to try."""
    factor = _EXTRAPOLATION_FACTOR if extrapolate else 1.0
    last_b, last_s = (math.floor(factor * end) for end in fit.region.reach)
    b = _axis(last_b, _EXACT_REQUESTS, _NUM_REQUESTS)
    return b, np.union1d(b, _axis(last_s, _EXACT_TOKENS, _NUM_TOKENS))


def _axis(last: float, exact: int, num: int) -> Floats:
    few = np.arange(1.0, min(exact, last) + 1.0)
    return few if last <= exact else np.union1d(few, np.rint(np.geomspace(exact, last, num)))


def _bounds(late: Floats, usable: Bools, confidence: float) -> Floats:
    """Return the least limit that all steps up to each keep, dims (draw, b, s) -> (b, s); NaN: not usable."""
    worst = np.where(usable, late, -np.inf)
    np.maximum.accumulate(worst, axis=1, out=worst)
    np.maximum.accumulate(worst, axis=2, out=worst)
    found = np.full(usable.shape, np.nan)
    found[usable] = np.quantile(worst[:, usable], confidence, axis=0, method="inverted_cdf")
    return found


def _frontier(
    case: str, b: Floats, s: Floats, mean: Floats, bound: Floats, probability: float
) -> pd.DataFrame:
    """Return the settings that have more throughput than all which keep a smaller limit."""
    rows, columns = np.nonzero(~np.isnan(bound))
    rate = 1000.0 * s[columns] / np.median(mean[:, rows, columns], axis=0)
    order = np.lexsort((-rate, bound[rows, columns]))
    rows, columns, rate = rows[order], columns[order], rate[order]
    best_so_far = np.maximum.accumulate(np.concatenate([[0.0], rate[:-1]])) if rate.size else rate
    kept = rate > best_so_far
    rows, columns = rows[kept], columns[kept]
    lower, median, upper = np.quantile(mean[:, rows, columns], band_levels(probability), axis=0)
    tokens = s[columns]
    return pd.DataFrame(
        {
            "case": case,
            "limit_ms": bound[rows, columns],
            "batch_size": b[rows].astype(int),
            "total_tokens": tokens.astype(int),
            "latency_ms": median,
            "latency_ms_lower": lower,
            "latency_ms_upper": upper,
            "tokens_per_s": 1000.0 * tokens / median,
            "tokens_per_s_lower": 1000.0 * tokens / upper,
            "tokens_per_s_upper": 1000.0 * tokens / lower,
        }
    )


def _settings(b: Floats, s: Floats, mean: Floats, bound: Floats, slo_ms: float) -> pd.DataFrame:
    """Return for each number of requests the largest token budget that keeps the limit."""
    typical = np.median(mean, axis=0)
    rows: list[dict[str, Any]] = []
    for row, requests in enumerate(b):
        seen = np.flatnonzero(~np.isnan(bound[row]))
        if not seen.size:
            continue
        kept = seen[bound[row, seen] <= slo_ms]
        found: dict[str, Any] = {"batch_size": int(requests), "total_tokens": None, "limited_by": "slo"}
        if kept.size:
            latency, decode = typical[row, kept[-1]], typical[row, np.searchsorted(s, requests)]
            found |= {
                "total_tokens": int(s[kept[-1]]),
                "limited_by": "data" if kept[-1] == seen[-1] else "slo",
                "latency_ms": latency,
                "tokens_per_s": 1000.0 * s[kept[-1]] / latency,
                "decode_tokens_per_s": 1000.0 * requests / decode,
            }
        rows.append(found)
    return pd.DataFrame(rows, columns=list(_SETTINGS)).astype({"total_tokens": "Int64"})


def _choose(
    search: StepSearch, frontier: pd.DataFrame, case: str
) -> tuple[dict[str, Any] | None, Evidence | None, dict[str, Any] | None]:
    """Return the best settings with what the trace says of them, and what the model alone would allow."""
    allowed = frontier[(frontier["case"] == case) & (frontier["limit_ms"] <= search.objective.limit_ms)]
    # Where the trace contradicts the first, the next have to be borne out by enough steps like them.
    first: dict[str, Any] | None = None
    for row in reversed(records(allowed)):
        requests, tokens = row["batch_size"], row["total_tokens"]
        line, end = (None, requests) if case == DECODES else (requests, tokens)
        seen = search.observed.near(line, end)
        if not search.objection(requests, end, seen) and (first is None or seen.num_steps >= FEW):
            return row, seen, first
        first = first or row
    return None, None, first


TOKENS, REQUESTS, FIXED, IDLE, REST = "tokens", "requests", "fixed cost", "unsaturated device", "other terms"
TERM_COLUMNS = (
    *("kind", "name", "group", "latency_ms", "latency_ms_lower", "latency_ms_upper"),
    *("share", "share_lower", "share_upper", "p_largest"),
)


def term_table(
    fit: FittedModel, batch_size: float, total_tokens: float, *, probability: float, max_draws: int | None
) -> pd.DataFrame | None:
    """Return what each term of the equation adds to the mean latency of a step; None for another equation.

    `TERM_COLUMNS`: ``kind`` (``group`` or ``term``), latency and share (medians, and the ends of credible
    intervals), and the probability that it is the largest of its kind.
    """
    draws = thin(fit.posterior, max_draws=max_draws)
    if any(p.name not in draws for p in PARAMETERS):
        return None
    par = {p.name: draws[p.name].to_numpy().ravel() for p in PARAMETERS}
    slowdown = inverse_saturation(batch_size, total_tokens, k_B=par["k_B"], k_S=par["k_S"])
    fixed_work, work = par["w_0"] / par["P_max"], par["w_1"] * total_tokens / par["P_max"]
    terms: dict[tuple[str, str], Floats] = {
        ("tau_0", FIXED): par["tau_0"],
        ("w_0 / P_max", FIXED): fixed_work,
        ("w_1 S / P_max", TOKENS): work,
        ("tau_S S", TOKENS): par["tau_S"] * total_tokens,
        ("slowdown of the work", IDLE): (slowdown - 1.0) * (fixed_work + work),
        ("tau_B B", REQUESTS): par["tau_B"] * batch_size,
    }
    steps = steps_arrays(batch_size, total_tokens)
    whole = fit.mean_latency(steps, max_draws=max_draws).to_numpy().ravel()
    rest = whole - sum(terms.values())
    if float(np.abs(rest / whole).max()) > _NEGLIGIBLE:
        terms[("other terms of the model", REST)] = rest
    groups: dict[tuple[str, str], Floats] = {}
    for (_, group), values in terms.items():
        groups[(group, group)] = groups.get((group, group), 0.0) + values
    lower, middle, upper = band_levels(probability)
    levels = [middle, lower, upper]
    rows: list[tuple[object, ...]] = []
    for kind, parts in (("group", groups), ("term", terms)):
        largest = np.argmax(np.stack(list(parts.values())), axis=0)
        for place, ((name, group), values) in enumerate(parts.items()):
            ms, share = np.quantile(values, levels), np.quantile(values / whole, levels)
            rows.append((kind, name, group, *ms.tolist(), *share.tolist(), float((largest == place).mean())))
    return pd.DataFrame(rows, columns=list(TERM_COLUMNS))
