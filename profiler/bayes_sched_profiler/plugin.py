"""Puts the parts together in the process of an engine."""

import multiprocessing
import os
import re
import weakref
from functools import partial
from importlib import import_module
from typing import Any

from bayes_sched_profiler.console import Console
from bayes_sched_profiler.description import describe
from bayes_sched_profiler.fuse import Fuse
from bayes_sched_profiler.hook import Hook
from bayes_sched_profiler.log_file import LogFile
from bayes_sched_profiler.notices import warn
from bayes_sched_profiler.recorder import Recorder
from bayes_sched_profiler.settings import Settings, read_settings
from bayes_sched_profiler.sidecar import Sidecar
from bayes_sched_profiler.writer import Writer


def install() -> None:
    """Attach to vLLM's schedulers. Doing so again changes nothing."""
    install_on(import_module("vllm.v1.core.sched.scheduler").Scheduler, read_settings())


def install_on(scheduler_class: type, settings: Settings) -> None:
    """Attach to a scheduler class and its subclasses."""
    fuse = Fuse()
    Hook(partial(start_recorder, settings=settings, fuse=fuse), fuse).wrap(scheduler_class)


def start_recorder(scheduler: Any, *, settings: Settings, fuse: Fuse) -> Recorder:
    """Make the recorder of a scheduler and start its writer, which lasts as long as the scheduler."""
    config = getattr(scheduler, "vllm_config", None)
    rank = data_parallel_rank(config)
    recorder = Recorder()
    writer = Writer(
        recorder,
        LogFile(rank_path(settings.log, rank), rotate_bytes=settings.rotate_bytes),
        sidecar=Sidecar(partial(describe, config, data_parallel_rank=rank)),
        fuse=fuse,
        pause_path=settings.log + ".pause",
        console=open_console() if settings.console else None,
    )
    writer.start()
    # Also called when the interpreter ends in order, which a server's engine seldom does.
    weakref.finalize(scheduler, writer.close)
    return recorder


def open_console() -> Console | None:
    """Give the console; None where there is none."""
    try:
        return Console()
    except (AttributeError, OSError, ValueError) as error:
        warn("no steps are shown on the console: %s.", error)
        return None


def data_parallel_rank(config: Any) -> int | None:
    """Give the rank of this engine among data-parallel ones; None: it is the only one."""
    parallel = getattr(config, "parallel_config", None)
    rank = max(getattr(parallel, f"data_parallel_{name}", None) or 0 for name in ("index", "rank"))
    if rank or (getattr(parallel, "data_parallel_size", None) or 1) > 1:
        return rank
    # vLLM tells ranks of a model without experts that they are alone, save by the names of their processes.
    named = re.fullmatch(r"EngineCore_DP(\d+)", multiprocessing.current_process().name)
    return int(named[1]) if named else None


def rank_path(log: str, rank: int | None) -> str:
    """Give the log of a data-parallel rank, ``STEM.dpN.EXTENSION``: each writes its own."""
    if rank is None:
        return log
    stem, extension = os.path.splitext(log)
    return f"{stem}.dp{rank}{extension}"
