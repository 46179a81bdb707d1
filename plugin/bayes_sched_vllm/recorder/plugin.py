"""What the environment asks for, and the parts put together for it in the process of an engine."""

import multiprocessing
import os
import re
import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from typing import Any

from bayes_sched_vllm.recorder import TRUE
from bayes_sched_vllm.recorder.hook import Fuse, Hook, warn
from bayes_sched_vllm.recorder.log_file import LogFile
from bayes_sched_vllm.recorder.sidecar import Sidecar
from bayes_sched_vllm.recorder.steps import Recorder
from bayes_sched_vllm.recorder.writer import Console, Writer

FALSE = ("0", "false", "no", "off", "")


@dataclass(frozen=True)
class Settings:
    """What is recorded where.

    Attributes
    ----------
    log : str
        Path of the log, as given; engines that share it each write a file of their own beside it.
    console : bool
        One short line a step on standard error.
    rotate_bytes : int
        A log of this size is set aside and a fresh one begun; 0: never.
    """

    log: str = "scheduler_profiling.jsonl"
    console: bool = False
    rotate_bytes: int = 0


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings; what makes no sense is said in the server's log and left at its default.

    Each variable may be given without its prefix ``VLLM_`` too: ``--fail-on-environ-validation`` makes vLLM
    refuse names with that prefix which it does not know.
    """
    return Settings(
        log=os.path.expanduser(_variable(environment, "SCHEDULER_PROFILING_LOG") or Settings.log),
        console=_boolean(environment, "SCHEDULER_PROFILING_CONSOLE"),
        rotate_bytes=_megabytes(environment, "SCHEDULER_PROFILING_ROTATE_MB"),
    )


def install() -> None:
    """Attach to vLLM's schedulers. Doing so again changes nothing."""
    attach(import_module("vllm.v1.core.sched.scheduler").Scheduler, read_settings(), Fuse())


def attach(scheduler_class: type, settings: Settings, fuse: Fuse) -> None:
    """Attach to a scheduler class and its subclasses."""
    Hook(partial(start_recorder, settings=settings, fuse=fuse), fuse).wrap(scheduler_class)


def start_recorder(scheduler: Any, *, settings: Settings, fuse: Fuse) -> Recorder:
    """Make the recorder of a scheduler and start its writer, which lasts as long as the scheduler."""
    config = getattr(scheduler, "vllm_config", None)
    rank = data_parallel_rank(config)
    recorder = Recorder()
    writer = Writer(
        recorder,
        LogFile(rank_path(settings.log, rank), rotate_bytes=settings.rotate_bytes),
        sidecar=Sidecar(config, data_parallel_rank=rank),
        fuse=fuse,
        pause_path=settings.log + ".pause",
        console=_open_console() if settings.console else None,
    )
    writer.start()
    # Also called when the interpreter ends in order, which a server's engine seldom does.
    weakref.finalize(scheduler, writer.close)
    return recorder


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
    stem, extension = os.path.splitext(log)
    return log if rank is None else f"{stem}.dp{rank}{extension}"


def _open_console() -> Console | None:
    try:
        return Console()
    except (AttributeError, OSError, ValueError) as error:  # a process without standard error
        warn("no steps are shown on the console: %s.", error)
        return None


def _variable(environment: Mapping[str, str], name: str) -> str:
    return (environment.get("VLLM_" + name) or environment.get(name) or "").strip()


def _boolean(environment: Mapping[str, str], name: str) -> bool:
    value = _variable(environment, name).lower()
    if value not in TRUE + FALSE:
        warn("%s=%s is neither true nor false: taken for false.", name, value)
    return value in TRUE


def _megabytes(environment: Mapping[str, str], name: str) -> int:
    value = _variable(environment, name)
    try:
        megabytes = float(value or 0)
        if 0 <= megabytes < 1e9:
            return int(megabytes * 1e6)
    except ValueError:
        pass
    warn("%s=%s is no size in megabytes: the log is not rotated.", name, value)
    return 0
