"""``bayes-sched study``: is all this true? Calibrations, validations and benchmarks."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import bayes_sched
from bayes_sched.cli.command import DONE, NOT_CONVERGED, Call, given, print_json
from bayes_sched.cli.progress import shown_progress
from bayes_sched.cli.results import print_result
from bayes_sched.cli.study_parsers import SCHEDULER
from bayes_sched.errors import InputError
from bayes_sched.files import POSTERIOR, SIMULATOR, VALIDATION, result_folder
from bayes_sched.model.protocol import load_model, load_model_file
from bayes_sched.planning.server_record import ServerRecord
from bayes_sched.planning.workload import read_measured_requests
from bayes_sched.posterior.fit import fit
from bayes_sched.posterior.fitted import FittedModel
from bayes_sched.predictor.monitor import MonitorSettings
from bayes_sched.predictor.predictor import Predictor
from bayes_sched.reports.document import Document
from bayes_sched.reports.kinds import report
from bayes_sched.reports.studies import write_check, write_study
from bayes_sched.reports.terminal import terminal
from bayes_sched.reports.write import write_report
from bayes_sched.sampling.nuts import SamplerSettings
from bayes_sched.studies.comparison import PairStudy
from bayes_sched.studies.competitors import competitors_by_name
from bayes_sched.studies.folder import StudyFolder
from bayes_sched.studies.forecasts import ForecastCache
from bayes_sched.studies.pooling import FewSteps, PoolStudy, Target
from bayes_sched.studies.prediction import StudySettings, validate
from bayes_sched.studies.predictor import try_out
from bayes_sched.studies.runs import Findings, TableStudy, complete
from bayes_sched.studies.sbc import CalibrationStudy, SimulatedFits
from bayes_sched.studies.simulator import check_simulator
from bayes_sched.studies.sla_servers import ServerStudy
from bayes_sched.studies.sla_traces import TraceStudy
from bayes_sched.studies.speed import FitSpeed, compare_sampling, fit_provenance
from bayes_sched.studies.splits import servers_of
from bayes_sched.trace.cleaning import choose_rows, clean_steps
from bayes_sched.trace.reader import read_scheduler, read_trace

_HELD_OUT = ("random", "blocks")
_ROOT = Path(bayes_sched.__file__).parents[1]
_FRESH = """
import time
wall, cpu = time.perf_counter(), time.process_time()
import numpy
numpy_wall, numpy_cpu = time.perf_counter() - wall, time.process_time() - cpu
import sys
sys.path.insert(0, {root!r})
from bayes_sched import Predictor
Predictor.load({path!r})
print(numpy_wall, numpy_cpu, time.perf_counter() - wall, time.process_time() - cpu)
"""


def run(options: argparse.Namespace, call: Call) -> int:
    """Do what was asked for; return the exit status."""
    return int(_RUNS[options.kind](options, call))


def _validate(options: argparse.Namespace, call: Call) -> int:
    start = time.perf_counter()
    if options.overwrite:
        shutil.rmtree(options.unfinished, ignore_errors=True)
    with shown_progress(call) as show:
        servers = servers_of(
            [read_trace(file, progress=show) for file in options.files],
            pooled=not options.each,
            mark=options.server_mark,
            **given(options, "min_latency_ms", "max_latency_ms"),
        )
        chosen, missing = competitors_by_name(options.models, settings=_settings(options, seed=0))
        for sentence in missing:
            call.say(sentence)
        names = ("splits", "repeats", "seed", "max_train", "max_test", "rare_first")
        found = validate(
            servers,
            competitors=chosen,
            settings=StudySettings(**given(options, *names)),
            cache=ForecastCache(options.unfinished),
            notes=missing,
            progress=show,
        )
        show("writing the tables" if options.no_report else "writing the report", None)
        with result_folder(options.folder, overwrite=options.replace, holds=VALIDATION) as folder:
            document = report(found, command=options.command)
            write_report(document, folder, with_page=not options.no_report, with_svg=options.svg)
            scores = found.scores.to_csv(index=False, float_format="%.6g", lineterminator="\n")
            (folder / VALIDATION).write_text(scores, encoding="utf-8")
    if not options.keep:
        shutil.rmtree(options.unfinished, ignore_errors=True)
    paths = {"folder": str(options.folder), "scores": str(options.folder / VALIDATION)}
    if not options.no_report:
        paths["report"] = str(options.folder / "report.html")
    numbers = {**found.to_dict(), "command": options.command}
    saved = "folder" if options.no_report else "report"
    print_result(document, options, paths, saved=[saved], start=start, numbers=numbers)
    return DONE


def _settings(options: argparse.Namespace, **more: Any) -> SamplerSettings:
    names = [name for name in ("draws", "tune", "chains", "seed") if getattr(options, name, None) is not None]
    return SamplerSettings(**given(options, *names) | more)


def _simulated(options: argparse.Namespace, *, model: str, noise: str | None = None) -> SimulatedFits:
    """Return fits of simulated latencies for the (B, S) of the design."""
    return SimulatedFits.of_design(
        clean_steps(read_trace(options.design).steps).steps,
        rows=options.rows,
        model=load_model(model),
        noise=noise,
        settings=_settings(options),
    )


def _completed(
    study: TableStudy[Findings], folder: StudyFolder, options: argparse.Namespace, call: Call
) -> Document:
    """Make the runs that are missing and write what all of them say."""
    resume = options.resume and folder.has_settings  # a part that has not begun begins
    with shown_progress(call) as show:
        found = complete(study, folder, resume=resume, progress=show, tell=call.say)
    return write_study(found, folder.folder, command=options.command)


def _calibrate(options: argparse.Namespace, call: Call) -> int:
    study = make_calibration(options)
    print(terminal(_completed(study, options.study, options, call)))
    return DONE


def make_calibration(options: argparse.Namespace) -> CalibrationStudy:
    """Return the study of the ranks of true values."""
    fits = _simulated(options, model=options.model, noise=options.noise)
    return CalibrationStudy(fits, options.simulations)


def _calibrate_comparison(options: argparse.Namespace, call: Call) -> int:
    study = make_pairs(options)
    print(terminal(_completed(study, options.study, options, call)))
    return DONE


def make_pairs(options: argparse.Namespace) -> PairStudy:
    """Return the study of pairs of servers."""
    fits = _simulated(options, model="saturation")
    return PairStudy(fits, options.pairs, options.probability)


def _calibrate_promises(options: argparse.Namespace, call: Call) -> int:
    makers = {"servers": make_servers, "traces": make_traces}
    made = {name: makers[name](options) for name in options.studies}  # what cannot be used leaves no folder
    documents = {
        name: _completed(study, options.studies[name], options, call) for name, study in made.items()
    }
    if options.json:
        numbers = {name: document.numbers for name, document in documents.items()}
        print_json({**numbers, "command": options.command})
    else:
        print("\n\n".join(map(terminal, documents.values())))
    return DONE


def make_servers(options: argparse.Namespace) -> TableStudy[Findings]:
    """Return the study of promises to simulated servers."""
    return ServerStudy(
        _simulated(options, model="saturation"),
        load_model_file("saturation"),
        num_runs=options.servers,
        **given(options, "quantile", "confidence"),
    )


def make_traces(options: argparse.Namespace) -> TableStudy[Findings]:
    """Return the study of promises on held-out steps."""
    return TraceStudy(
        servers_of([read_trace(name) for name in options.traces], pooled=False),
        splits=_HELD_OUT,
        settings=_settings(options),
        max_rows=options.max_rows,
        **given(options, "quantile", "confidence"),
    )


def _validate_pool(options: argparse.Namespace, call: Call) -> int:
    loaded = [FittedModel.load(path) for path in options.posteriors]
    fits = {fit.metadata.name: fit for fit in loaded}
    makers = {}
    for path in options.trace:
        trace = read_trace(path)
        name = next((n for n, f in fits.items() if f.metadata.trace_sha256 == trace.sha256), None)
        if name is None:
            raise InputError(f"{path}: none of the fits is of this trace; fit it with bayes-sched fit")
        limits = fits[name].metadata.cleaning
        steps = clean_steps(
            trace.steps, min_latency_ms=limits.min_latency_ms, max_latency_ms=limits.max_latency_ms
        ).steps
        makers[name] = partial(_few_steps, name, steps, fits, options)
    study = PoolStudy(makers, runs_each=options.runs)
    print(terminal(_completed(study, options.study, options, call)))
    return DONE


def _few_steps(name: str, steps: Any, fits: dict[str, FittedModel], options: argparse.Namespace) -> FewSteps:
    return FewSteps(
        target=Target.of(name, steps, fits=fits),
        num_steps=options.steps,
        max_test=options.max_test,
        is_consecutive=options.consecutive,
        settings=_settings(options),
    )


def _check_simulator(options: argparse.Namespace, call: Call) -> int:
    requests, trace = read_measured_requests(options.requests), read_trace(options.trace)
    told = read_scheduler([source.path for source in trace.sources])
    record = ServerRecord.of(trace.steps, requests, told=told)
    call.warn(record.warnings)
    path = None
    with shown_progress(call) as show:
        first_half = fit(
            record.steps[record.is_first_step].reset_index(drop=True),
            model=options.model,
            max_latency_ms=options.max_latency_ms,
            settings=SamplerSettings(seed=options.seed),
            name="first-half",
            progress=show,
        ).fit
        call.warn(first_half.warnings)
        found = check_simulator(
            first_half,
            record,
            record.settings(**given(options, *SCHEDULER)),
            num_draws=options.draws,
            probability=options.probability,
            seed=options.seed,
            progress=show,
        )
        if options.folder is not None:
            show("writing the report", None)
            with result_folder(options.folder, overwrite=options.overwrite, holds=SIMULATOR) as folder:
                write_check(found, folder, command=options.command)
            path = str(options.folder / "README.md")
    if options.json:
        print_json({**found.numbers, "report": path})
    else:
        print("\n\n".join([terminal(report(found)), *([] if path is None else [f"Saved {path}"])]))
    call.warn(first_half.metadata.problems, of="not converged")
    return DONE if first_half.converged else NOT_CONVERGED


def _sampling(options: argparse.Namespace, call: Call) -> int:
    tables = {file: clean_steps(read_trace(file).steps).steps for file in options.files}
    results = []
    for file, steps in tables.items():
        name = Path(file).name
        found = compare_sampling(
            load_model(options.model),
            choose_rows(steps, options.rows, seed=options.seed),
            trace=name,
            rows_of=len(steps),
            settings=_settings(options),
            tune=options.tune,
            max_depth=options.max_depth,
            progress=partial(_say_of, call, name),
        )
        results.append(found.to_dict())
        if not options.json:
            print(f"{terminal(report(found))}\n", flush=True)
    if options.json:
        print_json(results)
    return DONE


def _say_of(call: Call, name: str, text: str) -> None:
    call.say(f"{name}: {text}")


def _fits(options: argparse.Namespace, call: Call) -> int:
    with tempfile.TemporaryDirectory(prefix="bayes_sched_") as folder:
        rows: list[dict[str, Any]] = []
        for file in options.files:
            for seed in options.seeds:
                call.say(f"{Path(file).name}, seed {seed}")
                results = Path(folder) / str(len(rows))
                measured = _fit_once(options, file, seed, results)
                rows.append(measured | fit_provenance(FittedModel.load(results / "fit" / POSTERIOR)))
    found = FitSpeed(rows)
    if options.json:
        print_json(rows)
    else:
        print(terminal(report(found)))
    return DONE if found.all_passed else NOT_CONVERGED


def _fit_once(options: argparse.Namespace, file: str, seed: int, results: Path) -> dict[str, Any]:
    """Run the command that people run; measure it from outside."""
    line = [sys.executable, "-m", "bayes_sched", "fit", file, "--name", "fit", "--seed", str(seed)]
    line += ["--model", options.model, "--results-dir", str(results)]
    line += ["--no-report"] if options.no_report else []
    log = results.with_suffix(".log")
    start = time.perf_counter()
    with log.open("wb") as stream:
        child = subprocess.Popen(line, stdout=subprocess.DEVNULL, stderr=stream)
        _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode not in (DONE, NOT_CONVERGED):
        last = log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["no message"]
        raise InputError(f"{file}: the fit ended with exit status {child.returncode}: {last[-1]}")
    unit = 1.0 if sys.platform == "darwin" else 1024.0
    return {
        "trace": Path(file).name,
        "seed": seed,
        "total_s": seconds,
        "cpu_s": usage.ru_utime + usage.ru_stime,
        "peak_memory_mb": usage.ru_maxrss * unit / 1e6,
    }


def _benchmark_predictor(options: argparse.Namespace, call: Call) -> int:
    settings = MonitorSettings(tolerance=options.tolerance)
    predictor = Predictor.load(options.predictor, settings=settings)
    call.say("timing fresh processes")
    fresh = _fresh(options)
    found = try_out(
        predictor,
        clean_steps(read_trace(options.trace).steps).steps,
        fit=None if options.fit is None else FittedModel.load(options.fit),
        factors=options.factors,
        fresh=fresh,
        seed=options.seed,
        progress=call.say,
    )
    if options.json:
        print_json(found.to_dict())
    else:
        print(terminal(report(found)))
    return DONE


def _fresh(options: argparse.Namespace) -> dict[str, float]:
    """Return seconds of wall and CPU time of import and load, numpy's import among them: the best run."""
    code = _FRESH.format(root=str(_ROOT), path=str(options.predictor.resolve()))
    names = ("numpy_wall_s", "numpy_cpu_s", "all_wall_s", "all_cpu_s")
    runs: list[dict[str, float]] = []
    for _ in range(options.runs):
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        runs.append(dict(zip(names, map(float, done.stdout.split()), strict=True)))
    return min(runs, key=lambda times: times["all_wall_s"])


_RUNS = {
    "validate": _validate,
    "validate-pool": _validate_pool,
    "calibrate": _calibrate,
    "calibrate-promises": _calibrate_promises,
    "calibrate-comparison": _calibrate_comparison,
    "check-simulator": _check_simulator,
    "sampling": _sampling,
    "fits": _fits,
    "benchmark-predictor": _benchmark_predictor,
}
