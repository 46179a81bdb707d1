"""What the environment asks of the profiler."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from bayes_sched_profiler.notices import warn

TRUE = ("1", "true", "yes", "on")
FALSE = ("0", "false", "no", "off", "")
DEFAULT_LOG = "scheduler_profiling.jsonl"


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

    log: str = DEFAULT_LOG
    console: bool = False
    rotate_bytes: int = 0


def read_settings(environment: Mapping[str, str] = os.environ) -> Settings:
    """Read the settings; what makes no sense is said in the server's log and left at its default.

    Each variable may be given without its prefix ``VLLM_`` too: ``--fail-on-environ-validation`` makes vLLM
    refuse names with that prefix which it does not know.
    """
    log = _variable(environment, "SCHEDULER_PROFILING_LOG") or DEFAULT_LOG
    return Settings(
        log=os.path.expanduser(log),
        console=_boolean(environment, "SCHEDULER_PROFILING_CONSOLE"),
        rotate_bytes=_megabytes(environment, "SCHEDULER_PROFILING_ROTATE_MB"),
    )


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
