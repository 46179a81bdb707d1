"""What studies found, as documents: the README of each study's folder, and what a terminal shows."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from bayes_sched.files import SIMULATOR, whole_file
from bayes_sched.format import NONE, number, percent, records, span
from bayes_sched.planning.server_record import CORRECTIONS
from bayes_sched.reports import document as doc
from bayes_sched.reports import plots
from bayes_sched.reports.markdown import markdown
from bayes_sched.reports.write import write_json
from bayes_sched.studies.comparison import ComparisonCalibration
from bayes_sched.studies.pooling import PoolValue
from bayes_sched.studies.predictor import PredictorTrial
from bayes_sched.studies.runs import Findings
from bayes_sched.studies.sbc import Calibration
from bayes_sched.studies.simulator import SimulatorCheck
from bayes_sched.studies.sla_servers import INTERVAL as SERVERS_INTERVAL
from bayes_sched.studies.sla_servers import ServerPromises
from bayes_sched.studies.sla_traces import INTERVAL as TRACES_INTERVAL
from bayes_sched.studies.sla_traces import TracePromises
from bayes_sched.studies.speed import FitSpeed, SamplingSpeed


def write_study(found: Findings, folder: Path, *, command: str) -> doc.Document:
    """Write the tables, the figures and the README of a study into its folder; return its document."""
    document = doc.report(found, command=command)
    for name, frame in document.frames.items():
        with whole_file(folder / f"{name}.csv", what="the table") as temporary:
            frame.to_csv(temporary, index=frame.index.name is not None, float_format="%.4g")
    _write_readme(document, folder, folder)
    return document


def write_check(found: SimulatorCheck, folder: Path, *, command: str) -> None:
    """Write the README, the tables, the figures and the numbers of a check of the simulator."""
    document = doc.report(found, command=command)
    for part in ("tables", "figures"):
        (folder / part).mkdir()
    for name, frame in document.frames.items():
        frame.to_csv(folder / "tables" / f"{name}.csv", index=False, lineterminator="\n")
    write_json(document.numbers, folder / document.json_name)
    _write_readme(document, folder, folder / "figures")


def _write_readme(document: doc.Document, folder: Path, figures: Path) -> None:
    for one in document.figures:
        plots.style.save_figure(one.draw(), figures, one.name, with_svg=True)
    place = "" if figures == folder else f"{figures.name}/"
    with whole_file(folder / "README.md", what="the file") as temporary:
        temporary.write_text(markdown(document, figures=place), encoding="utf-8")


def _document(
    result: Any,
    title: str,
    method: str,
    *items: doc.Item,
    command: str,
    figures: Mapping[str, tuple[str, str]],
    files: Mapping[str, str],
    after: str = "",
    **more: Any,
) -> doc.Document:
    """Return a study's document: what made it, the method in words, what was found, its figures and files."""
    listed = pd.DataFrame({"file": [f"`{name}`" for name in files], "what": list(files.values())})
    drawn = [doc.figure(f"studies.{plot}", words, "", result, name=n) for n, (words, plot) in figures.items()]
    made = (doc.Text("Made by", on="page"), doc.Text(command, "code", on="page"), *_paragraphs(method))
    if isinstance(result, Findings):
        listed.loc[len(listed)] = ["`study.json`", "settings; `--resume` goes on with the same"]
        more |= {
            "frames": result.tables,
            "numbers": {name: records(frame) for name, frame in result.tables.items()},
        }
    sections = (*made, *items, *_paragraphs(after), *drawn, doc.Table(listed, on="page"))
    return doc.Document(title=title, name=title, sections=sections, **more)


def _paragraphs(text: str) -> list[doc.Text]:
    """Return the paragraphs of a page, an empty line between them."""
    return [doc.Text(" ".join(part.split()), on="page") for part in text.split("\n\n") if part.strip()]


def _plain(value: Any, digits: int) -> str:
    """Write a value with so many decimals at most."""
    return f"{round(value, digits):g}" if isinstance(value, float) else doc.cell(value)


def _table(frame: pd.DataFrame, *, digits: int = 4, **formats: Any) -> doc.Table:
    """Return a table under the frame's own names."""
    flat = frame if frame.index.name is None else frame.reset_index()
    write = partial(_plain, digits=digits)
    return doc.Table(
        flat, tuple(doc.Column(str(n), str(n), formats.get(str(n), write)) for n in flat.columns)
    )


def _seconds(seconds: pd.Series, one: str) -> str:
    return f"Seconds a {one}: median {seconds.median():.1f}, sum {seconds.sum():,.0f}."


def _cpu(seconds: pd.Series) -> str:
    return f"CPU seconds of one: median {seconds.median():.1f}; of all: {seconds.sum():,.0f}."


def _promise(settings: Mapping[str, Any]) -> str:
    return f'"quantile {settings["quantile"]:g} at confidence {settings["confidence"]:g}"'


@doc.report.register
def _(result: Calibration, *, command: str = "") -> doc.Document:
    settings, table, failures = result.settings, result.tables["evenness"], dict(result.gate_failures)
    least, failed = float(table["p_value"].min()), failures.pop("all")
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in failures.items())
    ranks = "Difference between the distribution function of the ranks and an even one, with 95 % bands"
    return _document(
        result,
        "Simulation-based calibration",
        f"""For each simulation: parameters are drawn from the documented priors, the latencies of
        {result.num_steps} steps are simulated (the (B, S) of a random choice from {settings["design"]}), the
        sampler fits them ({settings["chains"]} chains, {settings["tune"]} tuning and {settings["draws"]} kept
        draws each), and the true values are ranked among 99 evenly spaced draws. If the sampler returns the
        model's posterior, the ranks are even on 0 to 99. Every simulation counts, absurd latencies and fits
        that failed the gate included; fits this short miss the gate's 400 effective draws more often than
        those of the default settings.""",
        _table(table, digits=3, even=lambda even: "yes" if even else "NO"),
        doc.Text(
            f"{len(table)} quantities, {int((~table['even']).sum())} outside their 95 % band; the smallest "
            f"p-value is {least:.3f}, times {len(table)}: {min(1.0, least * len(table)):.2f}. "
            f"{result.num_simulations:,} simulations, {result.num_errors:,} not fitted for an error; "
            f"{failed:,} of the fits failed the gate (their ranks count): {reasons}. "
            f"{_seconds(result.seconds, 'simulation')}"
        ),
        command=command,
        after="""`p_value`: how often even ranks would stray as far from an even distribution.
        `max_deviation`: the largest difference between the distribution functions. Beside the parameters, the
        combinations that data identify.""",
        figures={"calibration": (ranks, "simulated_ranks")},
        files={
            "calibration.png": "the figure, and as `.svg`",
            "ranks.csv": "rank of the true value, one row a simulation",
            "simulations.csv": "true values, ranks, and what the gate says of each fit",
            "evenness.csv": "the table above",
        },
    )


@doc.report.register
def _(result: ComparisonCalibration, *, command: str = "") -> doc.Document:
    settings, number_of, tables = result.settings, result.num_pairs, result.tables
    words = "Intervals against true ratios, and reliability of the probability to be faster"
    return _document(
        result,
        "Does the comparison of servers find the truth?",
        f"""For each pair: the first server's parameters are drawn from the documented priors (until its steps
        take a plausible time), the second takes a known factor of 0.8 to 1.25 of it for every step.
        {settings["rows"]} steps of each are simulated (the (B, S) of a random choice from
        {settings["design"]}) and fitted with NUTS, and the two posteriors are compared. Every pair counts,
        those whose fits failed the gate included.""",
        doc.Text(
            f"Coverage of the {100 * settings['probability']:g}% intervals of the ratio of mean latencies:"
        ),
        _table(tables["coverage"], digits=3),
        doc.Text("P(first is faster), one step a pair:"),
        _table(tables["reliability"], digits=3),
        doc.Text(
            f"Ranks of the true ratio among 99 draws: p-value of evenness {result.uniformity_p:.3f}. "
            f"{number_of:,} pairs, {result.num_errors} not compared for an error; of {2 * number_of:,} fits "
            f"{result.num_passed:,} passed the gate. {_seconds(result.seconds, 'pair')}"
        ),
        command=command,
        figures={"calibration": (words, "comparison_calibration")},
        files={
            "calibration.png": "the figure, and as `.svg`",
            "pairs.csv": "one row a pair and probed step",
            "coverage.csv": "the first table above",
            "reliability.csv": "the second",
        },
    )


@doc.report.register
def _(result: PoolValue, *, command: str = "") -> doc.Document:
    settings = result.settings
    chosen = "in a row, from a random place" if settings["consecutive"] else "chosen at random"
    passed = ", ".join(f"{prior} {percent(share)}" for prior, share in result.passed.items())
    return _document(
        result,
        "What is a pool of other servers worth, where a server's own trace is short?",
        f"""{settings["steps"]} steps of a trace, {chosen}, are fitted, and predict a random choice of the
        others. The prior is the documented one; the pool of the traces of other servers (`new server`); the
        pool of all other traces, those of the same server among them (`known server`). CRPS in ms, less is
        better; `ratio` is to the CRPS with documented priors on the same steps (median, 5 % and 95 % of the
        runs), `better` the share of runs in which it is below 1; `whole_crps_ms` is that of the fit of the
        whole trace.""",
        _table(result.tables["summary"], digits=3),
        doc.Text(f"Fits that passed the gate: {passed}. {_seconds(result.seconds, 'fit')}"),
        command=command,
        figures={},
        files={"runs.csv": "one row a run and prior", "summary.csv": "the table above"},
    )


@doc.report.register
def _(result: ServerPromises, *, command: str = "") -> doc.Document:
    settings, tables = result.settings, result.tables
    return _document(
        result,
        "Are promises to simulated servers kept?",
        f"""For each server: parameters are drawn from the documented priors until its steps behave like those
        of a real one (`bayes_sched/studies/sla_servers.py` says how), {settings["rows"]} steps are simulated
        (the (B, S) of a random choice from {settings["design"]}) and fitted with NUTS ({settings["chains"]}
        chains, {settings["tune"]} tuning and {settings["draws"]} kept draws each). Then the promises are made
        that `sla.py` makes: the largest decode-only batch under a limit, which is chosen so that the true one
        lies anywhere in the range of the trace, and the limit for five kinds of steps. A promise is broken if
        in truth more than {1.0 - settings["quantile"]:.2g} of the steps are late. Beside it: the same with
        the posterior median in place of the bound, and the batch that the fitted curve of the mean allows.
        Where one request may already be too much, nothing is promised: `nothing` counts such promises, which
        cannot be broken and give everything away.""",
        doc.Text(
            f"Broken promises of {_promise(settings)} (wanted: at most {1.0 - settings['confidence']:.0%}; "
            f"{SERVERS_INTERVAL:.0%} intervals):"
        ),
        _table(tables["broken"]),
        doc.Text("Limits by kind of steps:"),
        _table(tables["broken_by_step"]),
        doc.Text("Given away (shares; negative: promised too much):"),
        _table(tables["given_away"]),
        doc.Text(
            f"{result.num_servers:,} servers, {result.num_errors} not fitted for an error; "
            f"{result.num_passed:,} fits passed the gate, and all count. {_cpu(result.cpu_seconds)}"
        ),
        command=command,
        figures={
            "broken": ("True share of late steps at each promise", "promise_breaks"),
            "given_away": ("Throughput given away", "promise_costs"),
        },
        files={"servers.csv": "one row a promise", **{f"{name}.csv": "a table above" for name in tables}},
    )


@doc.report.register
def _(result: TracePromises, *, command: str = "") -> doc.Document:
    settings, tables, interval = result.settings, result.tables, f"{TRACES_INTERVAL:.0%}"
    return _document(
        result,
        "Are promises kept on steps that a fit has not seen?",
        f"""A fifth of each trace is held out, at random or in stretches of 100 consecutive steps, and the
        saturation model is fitted to the rest (at most {settings["max_rows"]:,} steps). The held-out steps
        are put in cells of one (B, S), or of similar ones where they are few, at least 20 steps each. The
        limits of a cell are quantiles predicted for its middle step, and the steps beyond them are counted
        against the predicted number.

        The intervals of a trace, and of all traces together, allow for stretches of 100 steps that go
        together, as far as late steps are seen to come in stretches: where no step or every one is late, or
        the stretches differ no more than by chance, all steps are taken as independent. So are those of a
        cell, always. The two splits share a trace and are not independent.""",
        doc.Text(
            f"Share of held-out steps beyond the limit promised for their (B, S) at {_promise(settings)} "
            f"(wanted: at most {1.0 - settings['quantile']:.2g}; {interval} intervals). borne_out: of the "
            "steps whose promise the fitted steps do not contradict:"
        ),
        _table(tables["kept"]),
        doc.Text(f"Predicted and realised shares of late steps, all traces together ({interval} intervals):"),
        _table(tables["pooled"]),
        doc.Text(f"Cells whose {interval} interval holds the prediction, by level:"),
        _table(result.agreement),
        doc.Text(
            f"{result.num_fits:,} fits of up to {settings['max_rows']:,} steps, {settings['chains']} chains "
            f"of {settings['draws']} draws each; {result.num_passed:,} passed the gate, "
            f"{len(result.errors)} failed with an error. {_cpu(result.cpu_seconds)}",
            points=result.errors,
        ),
        command=command,
        figures={"calibration": ("Realised against predicted shares of late steps", "promise_calibration")},
        files={
            "calibration.csv": "predicted and realised shares by trace",
            "pooled.csv": "and of all traces together",
            "kept.csv": "steps beyond the promised limits",
            "cells.csv": "one row a limit and cell",
            "cells_agree.csv": "how many cells agree with their prediction",
        },
    )


_DECISIONS = {
    "steps of the server": "num_steps",
    "steps of the simulator": "num_simulated",
    "same requests and tokens": "share_equal",
    "same number of requests (B)": "share_equal_batch_size",
    "same number of tokens (S)": "share_equal_total_tokens",
    "B differs by 1 at most": "share_batch_size_within_1",
    "same B, share of the time": "time_share_equal_batch_size",
    "mean B of the server, over time": "mean_batch_size",
    "mean difference of B, over time": "mean_batch_size_difference",
    "largest difference of B": "largest_batch_size_difference",
    "mean difference of S": "mean_total_tokens_difference",
    "95% quantile of the difference of S": "p95_total_tokens_difference",
}


@doc.report.register
def _(result: SimulatorCheck, *, command: str = "") -> doc.Document:
    heads = (
        "Times of the simulated engine alone, beside what clients measured (ms):",
        f"With {number(result.residual_ms)} ms more, the median of the first half (ms):",
        "With what a request of the first half, drawn by lot, took beyond the engine (ms):",
    )
    times: list[doc.Item] = []
    for head, correction in zip(heads, CORRECTIONS, strict=True):
        chosen = result.table[result.table["correction"] == correction]
        times += [doc.Text(head), _times(chosen, f"{100 * result.probability:g}% interval")]
    return _document(
        result,
        "The simulator beside a real server",
        "",
        *(doc.Text(result.text), doc.Text(result.sources_text), _decisions(result.decisions), *times),
        command=command,
        after="""*Told the queue*: the simulated scheduler is told, step by step, how many requests wait or
        run, and nothing else of what the real one did. *Told the clock*: requests come when clients sent
        them, plus the typical way to the scheduler, and steps end when the real ones did. *Error with own
        steps*: of one replay with the server's own step times, so that none of it is the fit's.

        What clients measured *beyond the engine* is of such a replay of the first half: HTTP, tokenisation,
        the way there and back, and whatever the simulation gets wrong. Predictions with it added rest on the
        second half being like the first; what the simulator knows by itself are the times of the engine
        alone.""",
        figures={
            "predicted_times": (
                "Requests answered within a time: measured, and predicted",
                "predicted_times",
            ),
            "decisions_over_time": (
                "Requests and tokens of each step: of vLLM, and simulated",
                "decisions_over_time",
            ),
        },
        files={
            "tables/requests.csv": "the times above, with full precision",
            "tables/decisions.csv": "requests and tokens of each step, real and simulated (told the clock)",
            SIMULATOR: "everything, for machines",
        },
        frames={"requests": result.table, "decisions": result.steps},
        numbers={**result.numbers, "command": command},
        json_name=SIMULATOR,
    )


def _decisions(decisions: Mapping[str, Mapping[str, float]]) -> doc.Table:
    def written(name: str, value: float) -> str:
        if "share" in name:
            return percent(value, 2)
        return f"{value:,.0f}" if value == round(value) else number(value)

    told = {"told the queue": decisions["of_queue"], "told the clock": decisions["of_clock"]}
    columns = {title: [written(name, of[name]) for name in _DECISIONS.values()] for title, of in told.items()}
    return doc.Table(pd.DataFrame({"decisions": list(_DECISIONS), **columns}))


def _times(rows: pd.DataFrame, interval: str) -> doc.Table:
    signed = "{:+.1%}".format
    return doc.Table(
        rows,
        (
            doc.Column("time", "time", str.upper),
            doc.Column("level", "quantile", lambda level: f"p{100 * level:g}"),
            doc.Column("measured_ms", "measured", number),
            doc.Column("predicted_ms", "predicted", number),
            doc.Column(("lower_ms", "upper_ms"), interval, span),
            doc.Column("error", "error", signed),
            doc.Column("is_inside", "inside", lambda inside: "yes" if inside else "NO"),
            doc.Column("own_steps_error", "error with own steps", signed),
        ),
    )


def _gate(passed: Any) -> str:
    return "passed" if passed else "failed"


@doc.report.register
def _(result: SamplingSpeed, *, command: str = "") -> doc.Document:
    depth, best = result.direct_max_depth, result.ratios
    columns = (
        doc.Column("method", "method"),
        doc.Column("gate_passed", "gate", _gate),
        doc.Column("divergences", "divergent"),
        doc.Column("worst_r_hat", "worst R-hat", "{:.3f}".format),
        doc.Column("min_ess_bulk", "min bulk ESS", "{:,.0f}".format),
        doc.Column("effective_per_1000_gradients", "ESS/1,000 gradients", "{:.3g}".format),
        doc.Column("effective_per_1000_gradients_all", "with warm-up*", "{:.3g}".format),
        doc.Column("effective_per_second", "ESS/s†", "{:.3g}".format),
        doc.Column("share_at_max_depth", "at max depth", "{:.0%}".format),
        doc.Column("ours_per_gradient", "ours/this per gradient", "{:,.1f}".format),
        doc.Column("ours_per_second", "per second", "{:,.1f}".format),
    )
    return doc.Document(
        title=result.trace,
        name=result.trace,
        sections=(
            doc.Text(f"{result.trace}: {result.rows:,} of {result.rows_of:,} cleaned steps"),
            doc.Table(result.table, columns),
            doc.Text(
                "ours over the best direct one: effective draws a gradient x "
                f"{best['effective_per_1000_gradients']:,.1f}, a second x {best['effective_per_second']:,.1f}"
            ),
            doc.Text(
                f"The direct formulation's trajectories are cut at depth {depth} ({2**depth - 1:,} leapfrog "
                "steps). The ESS of chains that fail the gate is not to be trusted.",
                points=(
                    "* gradients of the warm-up and, of ours, all evaluations of the exploration counted as "
                    "well",
                    "† wall time of warm-up, draws and, of ours, the exploration; without compiling",
                ),
            ),
        ),
        numbers=result.to_dict(),
    )


@doc.report.register
def _(result: FitSpeed, *, command: str = "") -> doc.Document:
    one = "{:.1f}".format
    columns = (
        doc.Column("trace", "trace", lambda name: name.removesuffix(".gz").removesuffix(".jsonl")),
        *doc.titled(seed="seed", rows="rows"),
        *(doc.Column(f"{name}_s", f"{name} s", one) for name in ("compile", "pilot")),
        *(
            doc.Column(f"{name}_s", f"{short} s", one)
            for name, short in (("sampling", "sample"), ("total", "total"))
        ),
        doc.Column("peak_memory_mb", "peak MB", "{:,.0f}".format),
        doc.Column("divergences", "divergent"),
        doc.Column("worst_r_hat", "worst R-hat", "{:.4f}".format),
        doc.Column("min_ess_bulk", "bulk ESS", "{:,.0f}".format),
        doc.Column("min_ess_tail", "tail ESS", "{:,.0f}".format),
        doc.Column("leapfrogs_per_draw", "leapfrogs/draw", one),
        doc.Column("effective_per_1000_gradients", "ESS/1,000 gradients", one),
        *doc.titled(modes="modes", parts="parts"),
        doc.Column("probability_a_1_above_tau_S", "P(a_1 > tau_S)", "{:.3f}".format),
        doc.Column("gate_passed", "gate", _gate),
    )
    note = (
        "total: wall time of the whole command from its start; the stages are wall time too. ESS: smallest "
        "of all parameters and coordinates; gradients: leapfrog steps after warm-up."
    )
    spread = [
        doc.Text(f"{trace}: P(a_1 > tau_S) from {least:.3f} to {most:.3f} over the seeds")
        for trace, (least, most) in result.spread.items()
    ]
    frame = pd.DataFrame([{k: v for k, v in row.items() if k != "problems"} for row in result.fits])
    return doc.Document(
        title="Whole fits", name="Whole fits", sections=(doc.Table(frame, columns), *spread, doc.Text(note))
    )


@doc.report.register
def _(result: PredictorTrial, *, command: str = "") -> doc.Document:
    fresh, rows = result.fresh, result.replays
    errors = ", ".join(f"{name} {value:.3%}" for name, value in result.largest_errors.items())
    against = f"largest errors against every draw of the fit, inside the region: {errors}"
    replays = (
        doc.Column("factor", "second half", "x {:g}".format),
        *doc.titled(alarms_before="alarms before", alarms_after="after"),
        doc.Column("delay", "noticed after", lambda delay: "-" if delay is None else f"{delay:,.0f} steps"),
        doc.Column("level", "level", "{:.3f}".format),
        doc.Column("coverage", "90 % band", "{:.1%}".format),
        doc.Column("coverage_uncorrected", "uncorrected", "{:.1%}".format),
        doc.Column("anomalous_share", "anomalous", "{:.2%}".format),
        doc.Column("largest_evidence", "largest evidence", "{:.1e}".format),
    )
    speed = (
        doc.Column("name", "call"),
        doc.Column("one", "one step, us", lambda seconds: f"{1e6 * seconds:.2f}"),
        doc.Column("many", "a million, s", _known("{:.3f}")),
        doc.Column("one_ratio", "one / equation", "{:.2f}".format),
        doc.Column("many_ratio", "million / equation", _known("{:.2f}")),
    )
    return doc.Document(
        title=result.name,
        name=result.name,
        sections=(
            doc.Text(
                f"{result.name}, in a fresh process: import and load {fresh['all_wall_s']:.3f} s "
                f"({fresh['all_cpu_s']:.3f} s of CPU), {fresh['all_wall_s'] / fresh['numpy_wall_s']:.2f} x "
                f"the import of numpy alone ({fresh['numpy_wall_s']:.3f} s, {fresh['numpy_cpu_s']:.3f} s of "
                "CPU)"
            ),
            doc.Table(result.speed, speed),
            *((doc.Text(against),) if errors else ()),
            doc.Text(
                f"replay of {rows['num_steps'].iloc[0]:,} steps: alarm at {result.tolerance:.1%} off, "
                f"false-alarm bound {result.false_alarm_rate:g} a step"
            ),
            doc.Table(rows, replays),
            doc.Text(
                "Each alarm is cleared so that the next can come. Largest evidence: in the first half; an "
                "alarm is 1."
            ),
        ),
        numbers=result.to_dict(),
    )


def _known(form: str) -> Any:
    return lambda value: NONE if value is None else form.format(value)
