"""The folder of each study: its tables, figures and README."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bayes_sched.errors import InputError
from bayes_sched.files import whole_file
from bayes_sched.format import number, percent, records, span
from bayes_sched.planning.forecast import CORRECTIONS
from bayes_sched.reports.plots.studies import promise_breaks, promise_calibration, promise_costs
from bayes_sched.reports.plots.style import save_figure
from bayes_sched.reports.terminal import WIDTH, text_table
from bayes_sched.studies import sla_servers as server_tables
from bayes_sched.studies import sla_traces as trace_tables
from bayes_sched.studies.simulator import SimulatorCheck

_DECISIONS = {
    "steps of the server": ("num_steps", False),
    "steps of the simulator": ("num_simulated", False),
    "same requests and tokens": ("share_equal", True),
    "same number of requests (B)": ("share_equal_batch_size", True),
    "same number of tokens (S)": ("share_equal_total_tokens", True),
    "B differs by 1 at most": ("share_batch_size_within_1", True),
    "same B, share of the time": ("time_share_equal_batch_size", True),
    "mean B of the server, over time": ("mean_batch_size", False),
    "mean difference of B, over time": ("mean_batch_size_difference", False),
    "largest difference of B": ("largest_batch_size_difference", False),
    "mean difference of S": ("mean_total_tokens_difference", False),
    "95% quantile of the difference of S": ("p95_total_tokens_difference", False),
}


def check_text(check: SimulatorCheck) -> str:
    """Return the verdict, the decisions, and the times of requests."""
    parts = [check.text, check.sources_text]
    filled = [textwrap.fill(part, WIDTH, break_on_hyphens=False) for part in parts]
    return "\n\n".join([*filled, _decisions_text(check), *(_times_text(check, each) for each in CORRECTIONS)])


def _decisions_text(check: SimulatorCheck) -> str:
    queue, clock = check.of_queue.to_dict(), check.of_clock.to_dict()
    rows = []
    for words, (name, is_share) in _DECISIONS.items():
        values = (queue[name], clock[name])
        rows.append([words, *(percent(v, 2) if is_share else _count(v) for v in values)])
    titles = ["decisions", "told the queue", "told the clock"]
    return text_table(titles, rows, right=set(titles[1:]))


def _count(value: float) -> str:
    return f"{value:,.0f}" if value == round(value) else number(value)


def _times_text(check: SimulatorCheck, correction: str) -> str:
    heads = {
        "none": "Times of the simulated engine alone, beside what clients measured (ms):",
        "median": f"With {number(check.forecast.residual_ms)} ms more, the median of the first half (ms):",
        "drawn": "With what a request of the first half, drawn by lot, took beyond the engine (ms):",
    }
    table = check.table
    titles = ["time", "quantile", "measured", "predicted", f"{100 * check.probability:g}% interval"]
    titles += ["error", "inside", "error with own steps"]
    rows = [
        [
            str(row["time"]).upper(),
            f"p{100 * row['level']:g}",
            number(row["measured_ms"]),
            number(row["predicted_ms"]),
            span(row["lower_ms"], row["upper_ms"]),
            f"{100 * row['error']:+.1f}%",
            "yes" if row["is_inside"] else "NO",
            f"{100 * row['own_steps_error']:+.1f}%",
        ]
        for row in records(table[table["correction"] == correction])
    ]
    return f"{heads[correction]}\n{text_table(titles, rows, right=set(titles[2:]))}"


_FITS: dict[str, tuple[str, str]] = {
    "trace": ("trace", "{}"),
    "seed": ("seed", "{}"),
    "rows": ("rows", "{:,}"),
    "compile_s": ("compile s", "{:.1f}"),
    "pilot_s": ("pilot s", "{:.1f}"),
    "sampling_s": ("sample s", "{:.1f}"),
    "total_s": ("total s", "{:.1f}"),
    "peak_memory_mb": ("peak MB", "{:,.0f}"),
    "divergences": ("divergent", "{:,}"),
    "worst_r_hat": ("worst R-hat", "{:.4f}"),
    "min_ess_bulk": ("bulk ESS", "{:,.0f}"),
    "min_ess_tail": ("tail ESS", "{:,.0f}"),
    "leapfrogs_per_draw": ("leapfrogs/draw", "{:.1f}"),
    "effective_per_1000_gradients": ("ESS/1,000 gradients", "{:.1f}"),
    "modes": ("modes", "{}"),
    "parts": ("parts", "{}"),
    "probability_a_1_above_tau_S": ("P(a_1 > tau_S)", "{:.3f}"),
    "gate_passed": ("gate", "{}"),
}
"""Key of a row, title of its column, and how it is written."""


def sampling_text(result: dict[str, Any], found: pd.DataFrame) -> str:
    """Return the ways to sample one trace, side by side.

    Parameters
    ----------
    result : dict
        ``trace``, ``rows``, ``rows_of``, ``direct_max_depth`` and the ``ratios`` of
        :func:`bayes_sched.benchmarking.ratios_to_best`.
    found : DataFrame
        One row of :meth:`bayes_sched.benchmarking.Measured.to_dict` a method.
    """
    ours = found[found["method"] == "ours"].iloc[0]
    per_gradient = ours["effective_per_1000_gradients"] / found["effective_per_1000_gradients"]
    per_second = ours["effective_per_second"] / found["effective_per_second"]
    table = {
        "method": found["method"].tolist(),
        "gate": ["passed" if passed else "failed" for passed in found["gate_passed"]],
        "divergent": [f"{n:,}" for n in found["divergences"]],
        "worst R-hat": [f"{x:.3f}" for x in found["worst_r_hat"]],
        "min bulk ESS": [f"{x:,.0f}" for x in found["min_ess_bulk"]],
        "ESS/1,000 gradients": [f"{x:.3g}" for x in found["effective_per_1000_gradients"]],
        "with warm-up*": [f"{x:.3g}" for x in found["effective_per_1000_gradients_all"]],
        "ESS/s**": [f"{x:.3g}" for x in found["effective_per_second"]],
        "at max depth": [f"{x:.0%}" for x in found["share_at_max_depth"]],
        "ours/this per gradient": [f"{x:,.1f}" for x in per_gradient],
        "per second": [f"{x:,.1f}" for x in per_second],
    }
    best = result["ratios"]
    return (
        f"{result['trace']}: {result['rows']:,} of {result['rows_of']:,} cleaned steps\n"
        f"{_table(table)}\n"
        "ours over the best direct one: effective draws a gradient "
        f"x {best['effective_per_1000_gradients']:,.1f}, a second x {best['effective_per_second']:,.1f}\n"
        f"The direct formulation's trajectories are cut at depth {result['direct_max_depth']} "
        f"({2 ** result['direct_max_depth'] - 1:,} leapfrog steps): --max-depth. The ESS of chains that fail "
        "the gate is not to be trusted.\n"
        "*  gradients of the warm-up and, of ours, all evaluations of the pilot run counted as well\n"
        "** wall time of warm-up, draws and, of ours, the pilot run; without compiling\n"
    )


def fits_text(rows: list[dict[str, Any]]) -> str:
    """Return whole fits as a table, and how far those of the same trace agree.

    Parameters
    ----------
    rows : list of dict
        :func:`bayes_sched.benchmarking.fit_account` of each, with ``trace``, ``seed``, ``total_s`` and
        ``peak_memory_mb``.
    """
    shown = [row | {"gate_passed": "passed" if row["gate_passed"] else "failed"} for row in rows]
    table = {title: [form.format(row[key]) for row in shown] for key, (title, form) in _FITS.items()}
    table["trace"] = [name.removesuffix(".gz").removesuffix(".jsonl") for name in table["trace"]]
    spread = []
    for trace in dict.fromkeys(row["trace"] for row in rows):
        values = [row["probability_a_1_above_tau_S"] for row in rows if row["trace"] == trace]
        if len(values) > 1:
            spread.append(
                f"{trace}: P(a_1 > tau_S) from {min(values):.3f} to {max(values):.3f} over the seeds"
            )
    note = (
        "total: wall time of the whole command from its start; the stages are wall time too. ESS: smallest "
        "of all parameters and coordinates; gradients: leapfrog steps after warm-up."
    )
    return "\n".join([_table(table), *spread, note])


def _table(columns: dict[str, list[str]]) -> str:
    """Align columns, the first to the left."""
    titles = list(columns)
    return text_table(titles, list(zip(*columns.values(), strict=True)), right=set(titles[1:]))


type Summary = tuple[str, dict[str, Any]]
"""In words, and in numbers ready for JSON."""


def write_server_summary(
    folder: Path, servers: pd.DataFrame, *, settings: Mapping[str, Any], command: str
) -> Summary:
    """Write what became of promises to simulated servers.

    Parameters
    ----------
    folder : Path
        Of the study; it exists.
    servers : DataFrame
        Its rows.
    settings : mapping
        ``quantile``, ``confidence``, ``rows``, ``design``, ``draws``, ``tune``, ``chains``.
    command : str
        That makes the study.

    Raises
    ------
    InputError
        No server could be fitted, or the folder cannot be written.
    """
    made = server_tables.with_promises(servers)
    if made.empty:
        raise InputError(f"no server could be fitted; see the column error of the table in {folder}")
    quantile, confidence = settings["quantile"], settings["confidence"]
    tables = {
        "broken": server_tables.broken_table(made, quantile=quantile),
        "broken_by_step": server_tables.broken_by_step(made, quantile=quantile),
        "given_away": server_tables.given_away_table(made),
    }
    _write_tables(folder, tables)
    save_figure(
        promise_breaks(made, makers=server_tables.MAKERS, quantile=quantile, confidence=confidence),
        folder,
        "broken",
    )
    save_figure(promise_costs(made), folder, "given_away")
    text = _server_text(servers, tables, settings)
    _write_readme(folder, _server_readme(text, settings, command))
    return text, {name: records(table) for name, table in tables.items()}


def _server_text(
    servers: pd.DataFrame, tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]
) -> str:
    each = servers.drop_duplicates("server")
    failed = int(each["error"].notna().sum())
    passed = int(each["gate_passed"].fillna(False).astype(bool).sum())
    wanted = 1.0 - settings["confidence"]
    return "\n".join(
        [
            f"Broken promises of {_promise(settings)} (wanted: at most {wanted:.0%}; "
            f"{server_tables.INTERVAL:.0%} intervals):",
            _shown(tables["broken"]),
            "",
            "Limits by kind of steps:",
            _shown(tables["broken_by_step"]),
            "",
            "Given away (shares; negative: promised too much):",
            _shown(tables["given_away"]),
            "",
            f"{len(each):,} servers, {failed} not fitted for an error; {passed:,} fits passed the gate, and "
            f"all count. {_cost(each)}",
        ]
    )


def _server_readme(text: str, settings: Mapping[str, Any], command: str) -> str:
    return f"""# Are promises to simulated servers kept?

Made by

    {command}

For each server: parameters are drawn from the documented priors until its steps behave like those of a real
one (`bayes_sched/promises/plausible.py` says how), {settings["rows"]} steps are simulated (the (B, S) of a
random choice from {settings["design"]}) and fitted with NUTS ({settings["chains"]} chains,
{settings["tune"]} tuning and {settings["draws"]} kept draws each). Then the promises are made that `sla.py`
makes: the largest decode-only batch under a limit, which is chosen so that the true one lies anywhere in the
range of the trace, and the limit for five kinds of steps. A promise is broken if in truth more than
{1.0 - settings["quantile"]:.2g} of the steps are late. Beside it: the same with the posterior median in place
of the bound, and the batch that the fitted curve of the mean allows. Where one request may already be too
much, nothing is promised: `nothing` counts such promises, which cannot be broken and give everything away.

```
{text}
```

![True share of late steps at each promise](broken.png)

![Throughput given away](given_away.png)

| file | what |
|---|---|
| `servers.csv` | one row a promise |
| `broken.csv`, `broken_by_step.csv`, `given_away.csv` | the tables above |
| `study.json` | settings; `--resume` goes on with the same |
"""


def write_trace_summary(
    folder: Path, cells: pd.DataFrame, *, settings: Mapping[str, Any], command: str
) -> Summary:
    """Write what became of promises on held-out steps.

    Parameters
    ----------
    folder : Path
        Of the study; it exists.
    cells : DataFrame
        Its rows.
    settings : mapping
        ``quantile``, ``confidence``, ``max_rows``, ``draws``, ``tune``, ``chains``.
    command : str
        That makes the study.

    Raises
    ------
    InputError
        No trace could be fitted, or the folder cannot be written.
    """
    if cells["steps"].isna().all():
        raise InputError(f"no trace could be fitted; see the column error of the table in {folder}")
    tables = {
        "kept": trace_tables.kept_table(cells),
        "pooled": trace_tables.pooled_table(cells),
        "cells_agree": trace_tables.cell_table(cells),
        "calibration": trace_tables.calibration_table(cells),
    }
    _write_tables(folder, tables)
    figure = promise_calibration(tables["calibration"], interval=trace_tables.INTERVAL)
    save_figure(figure, folder, "calibration")
    text = _trace_text(cells, tables, settings)
    _write_readme(folder, _trace_readme(text, settings, command))
    return text, {name: records(table) for name, table in tables.items()}


def _trace_text(cells: pd.DataFrame, tables: Mapping[str, pd.DataFrame], settings: Mapping[str, Any]) -> str:
    each = cells.drop_duplicates("run")
    failed = each.loc[each["error"].notna(), "error"].tolist()
    passed = int(each["gate_passed"].fillna(False).astype(bool).sum())
    wanted, interval = 1.0 - settings["quantile"], trace_tables.INTERVAL
    return "\n".join(
        [
            f"Share of held-out steps beyond the limit promised for their (B, S) at {_promise(settings)} "
            f"(wanted: at most {wanted:.2g}; {interval:.0%} intervals). borne_out: of the steps whose "
            "promise the fitted steps do not contradict:",
            _shown(tables["kept"]),
            "",
            f"Predicted and realised shares of late steps, all traces together ({interval:.0%} intervals):",
            _shown(tables["pooled"]),
            "",
            f"Cells whose {interval:.0%} interval holds the prediction:",
            _shown(_by_level(tables["cells_agree"])),
            "",
            f"{len(each):,} fits of up to {settings['max_rows']:,} steps, {settings['chains']} chains of "
            f"{settings['draws']} draws each; {passed:,} passed the gate, {len(failed)} failed with an "
            f"error. {_cost(each)}",
            *failed,
        ]
    )


def _trace_readme(text: str, settings: Mapping[str, Any], command: str) -> str:
    return f"""# Are promises kept on steps that a fit has not seen?

Made by

    {command}

A fifth of each trace is held out, at random or in stretches of 100 consecutive steps, and the saturation
model is fitted to the rest (at most {settings["max_rows"]:,} steps). The held-out steps are put in cells of
one (B, S), or of similar ones where they are few, at least 20 steps each. The limits of a cell are quantiles
predicted for its middle step, and the steps beyond them are counted against the predicted number.

The intervals of a trace, and of all traces together, allow for stretches of 100 steps that go together, as
far as late steps are seen to come in stretches: where no step or every one is late, or the stretches differ
no more than by chance, all steps are taken as independent. So are those of a cell, always. The two splits
share a trace and are not independent.

```
{text}
```

![Realised against predicted shares of late steps](calibration.png)

| file | what |
|---|---|
| `calibration.csv`, `pooled.csv` | predicted and realised shares by trace, and of all traces together |
| `kept.csv` | steps beyond the promised limits |
| `cells.csv`, `cells_agree.csv` | one row a limit and cell; how many cells agree with their prediction |
| `study.json` | settings; `--resume` goes on with the same |
"""


def _write_tables(folder: Path, tables: Mapping[str, pd.DataFrame]) -> None:
    for name, table in tables.items():
        with whole_file(folder / f"{name}.csv", what="the table") as temporary:
            table.to_csv(temporary, index=False, float_format="%.4g")


def _write_readme(folder: Path, text: str) -> None:
    with whole_file(folder / "README.md", what="the file") as temporary:
        temporary.write_text(text, encoding="utf-8")


def _promise(settings: Mapping[str, Any]) -> str:
    return f'"quantile {settings["quantile"]:g} at confidence {settings["confidence"]:g}"'


def _by_level(agree: pd.DataFrame) -> pd.DataFrame:
    return agree.pivot_table(index=["split", "regime", "cells"], columns="level", values="agree")


def _cost(each: pd.DataFrame) -> str:
    seconds = each["cpu_seconds"]
    return f"CPU seconds of one: median {seconds.median():.1f}; of all: {seconds.sum():,.0f}."


def _shown(table: pd.DataFrame) -> str:
    return table.round(4).to_string(index=not isinstance(table.index, pd.RangeIndex))
