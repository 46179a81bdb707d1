"""The folder of each study: its tables, figures and README."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from bayes_sched.errors import InputError
from bayes_sched.plots.promise_servers import promise_breaks, promise_costs
from bayes_sched.plots.promise_traces import promise_calibration
from bayes_sched.plots.style import save_figure
from bayes_sched.promises import server_tables, trace_tables
from bayes_sched.records import records
from bayes_sched.whole_file import whole_file

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
